"""Launchers for one machine: this process (or ranks that somebody else started), and local ones."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mmssl.contracts import Launcher
from mmssl.errors import UserError
from mmssl.pipeline.job_log import Tail
from mmssl.pipeline.jobs import GPUS, Stage, run_here
from mmssl.pipeline.records import Job
from mmssl.pipeline.run_folder import RunFolder, now
from mmssl.recipe import Recipe
from mmssl.training import distributed
from mmssl.training.interruption import Interrupted, StopRequests, stop_requests
from mmssl.training.progress import Progress

# Local jobs have no time limit; submitit wants one.
_TEN_YEARS = 10 * 365 * 24 * 60

# Seconds between two looks at a local job's log, and between two requests to stop: the first may
# come before the job can understand it.
_LOOK_EVERY, _ASK_EVERY = 0.2, 5.0


class Inline(Launcher):
    """Runs every stage in this process, one after the other.

    Under ``torchrun``, or in a step that ``srun`` started, each process is a rank.
    """

    def __init__(self) -> None:
        if distributed.place().size > 1:
            self.ranks = distributed.place().size

    def launch(self, recipe: Recipe, stages: list[str], progress: Progress) -> None:
        """Run ``stages``, which are in an order that satisfies what each needs."""
        folder = RunFolder(recipe)
        for stage in stages:
            progress.say(f"stage: {stage}")
            run_here(recipe, folder, stage, sys.argv, progress)

    def launch_all(self, runs: Sequence[tuple[Recipe, list[str]]], progress: Progress) -> None:
        """Launch runs one after the other; of several ranks, one that fails ends all."""
        if distributed.size() == 1:
            super().launch_all(runs, progress)
            return
        for recipe, stages in runs:
            progress.say(f"run: {recipe.name}")
            self.launch(recipe, stages, progress)


class Local(Launcher):
    """Runs every stage in processes of its own on this machine, one stage after the other.

    Their logs are in the run's folder; the terminal shows the main one's.

    Args:
        processes: processes that train together; at most one a GPU is of use.
    """

    def __init__(self, *, processes: Annotated[int, Field(gt=0)]) -> None:
        self.ranks = processes

    def launch(self, recipe: Recipe, stages: list[str], progress: Progress) -> None:
        """Run ``stages``, which are in an order that satisfies what each needs."""
        refuse_ranks("local")
        folder = RunFolder(recipe)
        for stage in stages:
            progress.say(f"stage: {stage}")
            self._run(folder, stage, progress)

    def _run(self, folder: RunFolder, stage: str, progress: Progress) -> None:
        with stop_requests() as stop:
            process, job = self._start(folder, stage)
            _follow(process, job.log, stop, progress)
        if folder.finished(stage):
            return
        ended = folder.records.ended(stage)
        if stop.is_set() or (ended and ended["state"] == "interrupted"):
            raise Interrupted(again=False)
        if ended is None:
            logs = f"{Path(job.folder) / job.job}_*_log.out"
            raise UserError(f"stage {stage} was killed: see {logs}")
        raise UserError(ended["reason"])

    def _start(self, folder: RunFolder, stage: str) -> "tuple[subprocess.Popen[bytes], Job]":
        from submitit import LocalExecutor
        from submitit.local.local import LocalJob

        logs = folder.path.absolute() / "jobs" / stage
        executor = LocalExecutor(folder=logs)
        executor.update_parameters(
            tasks_per_node=self.ranks, timeout_min=_TEN_YEARS, stderr_to_stdout=True
        )
        folder.records.ended_file(stage).unlink(missing_ok=True)
        with _environment(), _ignored(signal.SIGINT):
            submitted = executor.submit(Stage(str(folder.path.absolute()), stage))
        assert isinstance(submitted, LocalJob)
        process = submitted._process
        assert process is not None
        job = Job(
            launcher="local",
            job=submitted.job_id,
            folder=str(logs),
            submitted=now(),
            host=socket.gethostname(),
            ranks=self.ranks,
            command=sys.argv,
        )
        folder.hand_over(stage, job)
        return process, job


def refuse_ranks(launcher: str) -> None:
    """A launcher that starts processes is itself started once.

    Raises:
        UserError: this process is one of several ranks.
    """
    if distributed.size() > 1:
        raise UserError(
            f"launch: {launcher} starts processes itself: run mmssl once, without torchrun or "
            "srun, or with --launch inline"
        )


@contextmanager
def _environment() -> Iterator[None]:
    """What the ranks of a local job find in their environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = dict(os.environ)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        GPUS: before.get("CUDA_VISIBLE_DEVICES", "all"),
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """Processes that are started meanwhile ignore a signal.

    The one that controls a local job would end the ranks a second after Ctrl-C, saved or not.
    """
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


def _follow(
    process: "subprocess.Popen[bytes]", log: Path, stop: StopRequests, progress: Progress
) -> None:
    """Show what the main rank prints until the job ends; pass on that it is to stop."""
    tail = Tail(log)
    asked = -_ASK_EVERY
    while True:
        gone = process.poll() is not None
        for line in tail.lines(whole=not gone):
            if not line.startswith("mmssl: "):  # how it ended is told last, by whoever follows
                progress.say(line)
        if gone:
            return
        if stop.is_set() and time.monotonic() - asked > _ASK_EVERY:
            asked = time.monotonic()
            process.send_signal(signal.SIGTERM)  # which it passes on to every rank
        time.sleep(_LOOK_EVERY)
