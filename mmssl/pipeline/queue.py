"""What SLURM says of jobs, by its own commands (and without torch)."""

import subprocess
from collections.abc import Collection
from dataclasses import dataclass

from mmssl.errors import UserError

_OVER = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)


@dataclass(frozen=True)
class Queued:
    """A job as SLURM has it.

    Attributes:
        state: ``"PENDING"``, ``"RUNNING"``, ``"FAILED"``, ...
        reason: why it is pending, such as ``"Dependency"``.
    """

    state: str
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Does it run, or may it yet?"""
        return self.state not in _OVER

    @property
    def stuck(self) -> bool:
        """Does it wait for a job that failed, and so for ever?"""
        return self.state == "PENDING" and self.reason == "DependencyNeverSatisfied"


def ask(jobs: Collection[str]) -> dict[str, Queued]:
    """The states of jobs, by id; those that SLURM has forgotten are left out.

    Args:
        jobs: ids, ``123`` or ``123_4``.

    Raises:
        UserError: there is no SLURM here, or it does not answer.
    """
    if not jobs:
        return {}
    ids = ",".join(jobs)
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
    try:
        lines = _run([*command, f"--jobs={ids}"])
    except UserError as error:
        if "Invalid job id" not in str(error):  # it has forgotten the only one
            raise
        lines = []
    found = {job: Queued(state, reason) for job, state, reason in _fields(lines, 3)}
    if forgotten := [job for job in jobs if job not in found]:
        command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State"]
        try:
            lines = _run([*command, f"--jobs={','.join(forgotten)}"])
        except UserError:  # this cluster keeps no accounts
            lines = []
        for job, state in _fields(lines, 2):
            found[job] = Queued(state.split()[0])  # "CANCELLED by 1000"
    return {job: found[job] for job in jobs if job in found}


def cancel(jobs: Collection[str]) -> None:
    """Cancel jobs; those that are over already do not matter.

    Raises:
        UserError: SLURM does not do it.
    """
    _run(["scancel", *jobs])


def _fields(lines: list[str], count: int) -> list[list[str]]:
    return [fields for line in lines if len(fields := line.split("|")) == count]


def _run(command: list[str]) -> list[str]:
    """The lines that a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise UserError(f"there is no {command[0]} here: is this a node of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} does not answer; is the cluster up?") from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(reason if command[0] in reason else f"{command[0]}: {reason}")
    return done.stdout.splitlines()
