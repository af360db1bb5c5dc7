"""The launcher of clusters: each stage is a SLURM job, or a job array for the runs of a sweep."""

import contextlib
import dataclasses
import io
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from mmssl.contracts import Launcher
from mmssl.errors import UserError
from mmssl.pipeline import queue
from mmssl.pipeline.jobs import Stage
from mmssl.pipeline.launchers import refuse_ranks
from mmssl.pipeline.records import PRETRAIN, Job
from mmssl.pipeline.run_folder import RunFolder, now
from mmssl.recipe import Recipe
from mmssl.recipe.typed import Expects, Typed, suggest
from mmssl.training.progress import Progress

# These stand in comments of a shell script, which end with the line.
Line = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$"),
    Expects("text on one line"),
]
Option = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9-]*$"),
    Expects("an option of sbatch without its dashes, such as mail-user"),
]
Minutes = Annotated[int, Field(gt=0)]
Clock = Annotated[
    str,
    StringConstraints(pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}$"),
    Expects("D-HH:MM:SS or HH:MM:SS"),
]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Gigabytes = Annotated[float, Field(gt=0)]


# What stands for all of them among the names of stages.
_EVALUATIONS = "evaluations"


class Resources(Typed):
    """What a stage needs otherwise than the others; null is what they need."""

    nodes: Positive | None = None
    gpus_per_node: Count | None = None
    tasks_per_node: Positive | None = None
    cpus_per_task: Positive | None = None
    memory: Gigabytes | None = None
    partition: Line | None = None
    account: Line | None = None
    qos: Line | None = None
    constraint: Line | None = None
    timeout: Minutes | Clock | None = None


# How long a job may take to end, in seconds: a cancelled one takes the cluster's KillWait.
_ENDS_WITHIN, _LOOK_EVERY = 180.0, 1.0

# Exit codes of srun when a task was killed: SIGABRT, SIGBUS, SIGKILL (by hand, or for memory),
# SIGSEGV, and SIGUSR2 that came before the task could handle it. A mistake in a recipe, or in the
# code, ends otherwise, or leaves word beside the logs: ranks that outlived the one that made it
# are killed, too. Whoever waits for the job must not see that it failed before it is requeued.
_AFTERWARDS = """\
code=$?
# One member of an array has the array's own number: by it, all members would be requeued.
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
case $code in
  134 | 135 | 137 | 139 | 140)
    # SLURM's own count has the times that the job was preempted, too.
    lost=$(cat {folder}/"${{job}}_lost" 2> /dev/null || echo 0)
    if [ ! -e {folder}/"${{job}}_failed" ] && [ "$lost" -lt {max_requeues} ]; then
      echo $((lost + 1)) > {folder}/"${{job}}_lost"
      echo "a task was killed (exit code $code): the job is started again"
      scontrol requeue "$job" && sleep 300
    fi ;;
esac
exit $code
"""


class Slurm(Launcher):
    """Submits every stage as a SLURM job and returns; evaluations wait for pretraining.

    A job that is preempted, reaches its time limit, loses a node or a process goes on where it
    was. ``mmssl status``, ``mmssl logs`` and ``mmssl cancel`` look after the jobs.

    Args:
        nodes: nodes of a stage.
        gpus_per_node: GPUs of each node.
        tasks_per_node: processes on each node; null: one for each GPU, or one.
        cpus_per_task: cores of each process; null: one for it and one for each loader process.
        memory: of each node, in GB; null: the cluster's default.
        partition: null: the cluster's default.
        account: null: the user's default.
        qos: null: the account's default.
        constraint: on the nodes' features, such as ``a100|h100``.
        timeout: time limit in minutes, or as ``D-HH:MM:SS``. A stage that reaches it is started
            again.
        signal_delay: seconds before the time limit at which the stage saves its state.
        array_parallelism: jobs of a sweep that run at once.
        setup: lines of shell that a job runs first, such as ``module load cuda``.
        sbatch: further options of sbatch, such as ``{mail-user: me@example.org}``.
        srun: further arguments of srun.
        max_requeues: how often a stage may reach its time limit, and how often it may lose a
            process, before it has failed.
        wckey: workload key; many clusters refuse any.
        stages: what single stages need otherwise: ``{linear_probe: {nodes: 1, timeout: 60}}``;
            under ``evaluations`` what all but pretraining need.
    """

    here = False

    def __init__(
        self,
        *,
        nodes: Positive = 1,
        gpus_per_node: Count = 0,
        tasks_per_node: Positive | None = None,
        cpus_per_task: Positive | None = None,
        memory: Gigabytes | None = None,
        partition: Line | None = None,
        account: Line | None = None,
        qos: Line | None = None,
        constraint: Line | None = None,
        timeout: Minutes | Clock = 24 * 60,
        signal_delay: Positive = 120,
        array_parallelism: Positive = 256,
        setup: list[str] = [],  # noqa: B006 - never changed
        sbatch: dict[Option, Line | int | bool] = {},  # noqa: B006
        srun: list[Line] = [],  # noqa: B006
        max_requeues: Count = 10,
        wckey: Line | None = None,
        stages: dict[str, Resources] = {},  # noqa: B006
    ) -> None:
        self.common = Resources(
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            tasks_per_node=tasks_per_node,
            cpus_per_task=cpus_per_task,
            memory=memory,
            partition=partition,
            account=account,
            qos=qos,
            constraint=constraint,
            timeout=timeout,
        )
        self.stages = stages
        self.signal_delay = signal_delay
        self.array_parallelism = array_parallelism
        self.setup = setup
        self.sbatch = sbatch
        self.srun = srun
        self.max_requeues = max_requeues
        self.wckey = wckey
        self.ranks = self.ranks_of(PRETRAIN)

    def check(self, recipe: Recipe) -> None:
        """Check the names of ``stages``, and the path that a job's script names."""
        known = [PRETRAIN, _EVALUATIONS, *recipe.evaluations]
        for name in self.stages:
            if name not in known:
                there = suggest(name, known)
                raise recipe.error(("launch", "stages", name), f"there is no such stage{there}")
        path = str(RunFolder(recipe).path.absolute())
        if re.search(r"[\x00-\x1f\x7f%\\]", path):
            raise recipe.error(
                ("runs",), f"SLURM reads more into '%', '\\' and control characters: {path!r}"
            )

    def resources(self, stage: str) -> Resources:
        """What a stage needs."""
        own: dict[str, Any] = {}
        for name in (*([] if stage == PRETRAIN else [_EVALUATIONS]), stage):
            if name in self.stages:
                own |= self.stages[name].model_dump(exclude_none=True)
        return self.common.model_copy(update=own)

    def tasks_per_node(self, stage: str) -> int:
        """Processes of a stage on each node."""
        needs = self.resources(stage)
        return needs.tasks_per_node or max(1, needs.gpus_per_node or 0)

    def ranks_of(self, stage: str) -> int:
        """Processes of a stage."""
        return (self.resources(stage).nodes or 1) * self.tasks_per_node(stage)

    def launch(self, recipe: Recipe, stages: list[str], progress: Progress) -> None:
        """Submit ``stages``, but those whose job lives."""
        self.launch_all([(recipe, stages)], progress)

    def launch_all(self, runs: Sequence[tuple[Recipe, list[str]]], progress: Progress) -> None:
        """Submit runs, each stage as one array, but the stages whose job lives."""
        refuse_ranks("slurm")
        for command in ("sbatch", "srun"):
            if shutil.which(command) is None:
                raise UserError(
                    f"there is no {command} on this machine: start the run on a login node of the "
                    "cluster, or with --launch inline or local"
                )
        Submission(
            self, [(RunFolder(recipe), stages) for recipe, stages in runs], progress
        ).submit()

    def executor(self, recipe: Recipe, stage: str, folder: Path, name: str) -> SlurmExecutor:
        """Submitit's, with all that a stage's job needs but what it waits for.

        Args:
            recipe: whose stage it is.
            stage: its name.
            folder: for the job's script and logs.
            name: of the job, in SLURM's lists.
        """
        needs = self.resources(stage)
        cpus = needs.cpus_per_task or recipe.data.workers + 1
        executor = SlurmExecutor(folder=folder, max_num_timeout=self.max_requeues)
        parameters: dict[str, Any] = {
            "job_name": name,
            "nodes": needs.nodes,
            "ntasks_per_node": self.tasks_per_node(stage),
            "cpus_per_task": cpus,
            "gpus_per_node": needs.gpus_per_node or None,
            "mem": None if needs.memory is None else f"{round(needs.memory * 1024)}M",
            "partition": needs.partition,
            "account": needs.account,
            "qos": needs.qos,
            "constraint": needs.constraint,
            "time": _minutes(needs.timeout or 1),
            "signal_delay_s": self.signal_delay,
            "array_parallelism": self.array_parallelism,
            "wckey": self.wckey,
            "stderr_to_stdout": True,
            # A line of setup that fails fails the job; what follows srun must be reached.
            "setup": ["set -e", *self.setup, "set +e"],
            "teardown": [
                _AFTERWARDS.format(
                    folder=shlex.quote(str(folder.absolute())), max_requeues=self.max_requeues
                )
            ],
            "additional_parameters": {"requeue": True, **self.sbatch},
            # A rank whose peer has gone would wait for hours. Since 22.05, srun does not take the
            # number of cores from sbatch.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}", *self.srun],
        }
        executor.update_parameters(**parameters)
        return executor


def _clear_drafts(folder: Path) -> None:
    """What submitit names after no job: links to the scripts of jobs, and what was refused."""
    drafts = [*folder.glob(".submission_file_*.sh"), *folder.glob("[0-9a-f]" * 32 + ".pkl")]
    for draft in drafts:
        draft.unlink(missing_ok=True)


def _minutes(timeout: int | str) -> int:
    if isinstance(timeout, int):
        return timeout
    days, _, clock = timeout.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return (int(days or 0) * 24 + hours) * 60 + minutes + -(-seconds // 60)


@dataclasses.dataclass
class Submission:
    """What is submitted at once: some stages of one run, or of the runs of a sweep.

    Args:
        launcher: says how.
        runs: each with the stages that are not finished.
        progress: is told what was done.
    """

    launcher: Slurm
    runs: list[tuple[RunFolder, list[str]]]
    progress: Progress

    def submit(self) -> None:
        """Submit the stages whose job does not live.

        Raises:
            UserError: SLURM refuses a job, or does not answer.
        """
        self._jobs = {
            (folder.path, stage): job
            for folder, stages in self.runs
            for stage in stages
            if (job := folder.records.job(stage)) and job.launcher == "slurm"
        }
        self._queue = self._settled([job.job for job in self._jobs.values()])
        fresh = [
            f for f, stages in self.runs if PRETRAIN in stages and not self._lives(f, PRETRAIN)
        ]
        arrays = self._hand_over(fresh, PRETRAIN, None)
        evaluations = dict.fromkeys(s for _, stages in self.runs for s in stages if s != PRETRAIN)
        for stage in evaluations:
            self._evaluate(stage, fresh, arrays)
        self._say_what_next()

    def _settled(self, jobs: list[str]) -> dict[str, queue.Queued]:
        """States of jobs, as soon as none is just ending: it may be over then, or queued again."""
        deadline = time.monotonic() + _ENDS_WITHIN
        told = False
        while True:
            found = queue.ask(jobs)
            ending = [job for job, state in found.items() if state.state == "COMPLETING"]
            if not ending:
                return found
            if time.monotonic() > deadline:
                raise UserError(
                    f"job {ending[0]} is ending, but does not end: run the same command again when "
                    "squeue does not show it any more"
                )
            if not told:
                self.progress.say(f"waiting for job {ending[0]} to end")
                told = True
            time.sleep(_LOOK_EVERY)

    def _evaluate(self, stage: str, fresh: list[RunFolder], pretraining: list[Job]) -> None:
        """Submit an evaluation of all runs, each to wait for its own pretraining."""
        free, waiting = [], []
        for folder, stages in self.runs:
            if stage not in stages or folder in fresh:
                continue
            if PRETRAIN not in stages:
                if not self._lives(folder, stage):
                    free.append(folder)
            elif not self._lives(folder, stage, after=self._job(folder, PRETRAIN)):
                waiting.append(folder)
        if pretraining:
            for folder in fresh:  # theirs wait for jobs that have failed
                self._cancel_if_alive(folder, stage)
            array = pretraining[0].job.partition("_")[0]
            after = f"aftercorr:{array}" if len(fresh) > 1 else f"afterok:{array}"
            self._hand_over(fresh, stage, after, [job.job for job in pretraining])
        self._hand_over(free, stage, None)
        for folder in waiting:
            job = self._job(folder, PRETRAIN)
            self._hand_over([folder], stage, f"afterok:{job}", [job])

    def _job(self, folder: RunFolder, stage: str) -> str:
        return self._jobs[folder.path, stage].job

    def _lives(self, folder: RunFolder, stage: str, after: str | None = None) -> bool:
        """Is a job of the stage queued or running? One that waits for another job is cancelled."""
        job = self._jobs.get((folder.path, stage))
        state = job and self._queue.get(job.job)
        if not job or not state or not state.alive:
            return False
        if state.stuck or (state.state == "PENDING" and after and job.after != after):
            queue.cancel([job.job])
            return False
        self.progress.say(f"{folder.recipe.name}: {stage} is {_phrase(state)} as job {job.job}")
        return True

    def _cancel_if_alive(self, folder: RunFolder, stage: str) -> None:
        job = self._jobs.get((folder.path, stage))
        state = job and self._queue.get(job.job)
        if job and state and state.alive:
            queue.cancel([job.job])

    def _hand_over(
        self,
        folders: list[RunFolder],
        stage: str,
        dependency: str | None,
        after: Sequence[str | None] = (),
    ) -> list[Job]:
        """Submit one stage of some runs, as an array if there are several."""
        if not folders:
            return []
        recipe = folders[0].recipe
        if len(folders) == 1:
            logs = folders[0].path.absolute() / "jobs" / stage
            name = f"{recipe.name}.{stage}"
        else:
            name = f"{_common([folder.recipe.name for folder in folders])}.{stage}"
            logs = Path(recipe.runs).absolute() / ".sweeps" / name
        executor = self.launcher.executor(recipe, stage, logs, name)
        if dependency is not None:
            executor.update_parameters(dependency=dependency)
        for folder in folders:
            folder.records.ended_file(stage).unlink(missing_ok=True)
        functions = [Stage(str(folder.path.absolute()), stage) for folder in folders]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the error has it, too
                submitted = executor.submit_array(functions)
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
            reason = "; ".join(filter(None, lines))
            raise UserError(f"SLURM refuses the job of stage {stage}: {reason}") from None
        finally:
            _clear_drafts(logs)
        jobs = []
        for folder, one, before in zip(
            folders, submitted, after or [None] * len(folders), strict=True
        ):
            job = Job(
                launcher="slurm",
                job=one.job_id,
                folder=str(logs),
                submitted=now(),
                host=socket.gethostname(),
                ranks=self.launcher.ranks_of(stage),
                command=sys.argv,
                after=before,
            )
            folder.hand_over(stage, job)
            self._jobs[folder.path, stage] = job
            jobs.append(job)
            waits = f", after job {before}" if before else ""
            self.progress.say(f"{folder.recipe.name}: {stage} submitted as job {job.job}{waits}")
        return jobs

    def _say_what_next(self) -> None:
        runs = " ".join(str(folder.path) for folder, _ in self.runs[:1])
        if len(self.runs) > 1:
            runs = str(Path(self.runs[0][0].recipe.runs) / (self._family() + "*"))
        for verb, what in (("status", runs), ("logs", f"{runs} --follow"), ("cancel", runs)):
            if verb != "logs" or len(self.runs) == 1:
                self.progress.say(f"  mmssl {verb} {what}")

    def _family(self) -> str:
        return _common([folder.recipe.name for folder, _ in self.runs])


def _common(names: list[str]) -> str:
    """What the names of a sweep's runs begin with."""
    first, last = min(names), max(names)
    length = next((i for i, c in enumerate(first) if i >= len(last) or last[i] != c), len(first))
    return first[:length].rpartition("-")[0] or first[:length].rstrip("-.") or "sweep"


def _phrase(state: queue.Queued) -> str:
    return "running" if state.state == "RUNNING" else "queued"
