"""How the stages of runs are doing, from what their folders and SLURM say (and without torch)."""

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmssl.errors import UserError
from mmssl.pipeline import queue
from mmssl.pipeline.records import PRETRAIN, Job, Records

ACTIVE = ("running", "queued", "waiting")


@dataclass(frozen=True)
class Status:
    """How a stage is doing.

    Attributes:
        stage: its name.
        state: ``"finished"``, ``"running"``, ``"queued"``, ``"waiting"``, ``"blocked"``,
            ``"failed"``, ``"interrupted"``, ``"cancelled"``, ``"not started"`` or ``"unknown"``.
        why: what it waits for, why it failed.
        job: what it was handed over to.
        restarts: how often a process began at it again.
    """

    stage: str
    state: str
    why: str = ""
    job: Job | None = None
    restarts: int = 0

    @property
    def active(self) -> bool:
        """Will it, as things are, go on by itself?"""
        return self.state in ACTIVE

    @property
    def described(self) -> str:
        """In words."""
        if not self.why:
            return self.state
        link = {"waiting": " for ", "blocked": ": "}.get(self.state, ": ")
        return f"{'will not run' if self.state == 'blocked' else self.state}{link}{self.why}"


def statuses(runs: Sequence[Records]) -> list[list[Status]]:
    """Of every stage of every run; SLURM is asked once for all.

    Raises:
        UserError: a run's recipe cannot be read.
    """
    jobs = [
        job.job
        for run in runs
        for stage in run.stages
        if (job := run.job(stage)) and job.launcher == "slurm" and not run.finished(stage)
    ]
    try:
        queued, trouble = queue.ask(jobs), ""
    except UserError as error:
        queued, trouble = {}, str(error)
    return [[_status(run, stage, queued, trouble) for stage in run.stages] for run in runs]


def _status(run: Records, stage: str, queued: dict[str, queue.Queued], trouble: str) -> Status:
    job = run.job(stage)
    restarts = max(0, len(run.starts(stage)) - 1)

    def status(state: str, why: str = "") -> Status:
        return Status(stage, state, why, job, restarts)

    if run.finished(stage):
        return status("finished")
    in_queue = queued.get(job.job) if job else None
    if in_queue and in_queue.alive:
        return status(*_alive(in_queue))
    if run.held(stage) or (job and job.launcher == "local" and controller(job)):
        return status("running")
    ended = run.ended(stage)
    if ended and ended["state"] == "failed":
        return status("failed", ended["reason"])
    if in_queue and in_queue.state == "CANCELLED":
        return status("cancelled")
    if in_queue:
        return status("failed", f"SLURM says {in_queue.state}")
    if job and job.launcher == "slurm" and not ended:
        if trouble:
            return status("unknown", trouble)
        return status("failed", "SLURM knows its job no more")
    return status("interrupted" if ended or run.starts(stage) else "not started")


def _alive(found: queue.Queued) -> tuple[str, str]:
    if found.stuck:
        return "blocked", f"{PRETRAIN} failed"
    if found.state != "PENDING":
        return "running", "" if found.state == "RUNNING" else found.state.lower()
    if found.reason == "Dependency":
        return "waiting", PRETRAIN
    return "queued", "" if found.reason in ("None", "") else found.reason


def controller(job: Job) -> int | None:
    """The process that controls a local job's ranks, if it lives and is on this machine."""
    if job.host != socket.gethostname():
        return None
    with suppress(OSError):
        words = Path(f"/proc/{job.job}/cmdline").read_bytes().split(b"\0")
        if b"submitit.local._local" in words and os.fsencode(job.folder) in words:
            return int(job.job)
    return None


def cancel(run: Records) -> list[str]:
    """Stop all jobs of a run; what was done, in words."""
    done, jobs = [], []
    for status in statuses([run])[0]:
        job = status.job
        if job and job.launcher == "local" and (process := controller(job)):
            os.kill(process, signal.SIGTERM)  # which it passes on to every rank
            done.append(f"{status.stage}: asked process {process} to save its state and stop")
        elif job and job.launcher == "slurm" and (status.active or status.state == "blocked"):
            jobs.append(job.job)
            done.append(f"{status.stage}: cancelled job {job.job}")
        elif status.active:
            start = (run.starts(status.stage) or [{}])[-1]
            done.append(
                f"{status.stage}: runs in process {start.get('process')} on {start.get('host')}; "
                "stop it there (Ctrl-C, or kill -INT)"
            )
    if jobs:
        queue.cancel(jobs)
    return done
