"""SLURM: are its commands here, and does the cluster answer?"""

import getpass
import shutil
import subprocess
from collections.abc import Callable, Iterator

from mmssl.doctor import Doing, Finding
from mmssl.errors import one_line

_SECONDS = 6.0

_ADVICE = "ask whoever runs the cluster; --launch inline and local work without"
_WITHOUT = {"sacct": "without it mmssl status knows less of jobs that have ended"}


def look() -> Iterator[Finding | Doing]:
    """Nothing of it is no problem: runs also start here."""
    there = [name for name in ("sbatch", "srun", "sinfo", "squeue", "sacct") if shutil.which(name)]
    if not there:
        yield Finding("SLURM", "ok", "not here; runs start with --launch inline or local")
        return
    for name in ("sbatch", "srun", "squeue", "sinfo"):
        if name not in there:
            advice = "install SLURM's client, or load its module; --launch inline and local work"
            yield Finding(
                name, "warning", "not on PATH, though other commands of SLURM are", advice
            )
    if "sinfo" in there:
        yield Doing("sinfo")
        yield _said("sinfo", ["--noheader", "--format=%P %a %D %G"], _partitions)
    if "squeue" in there:
        yield Doing("squeue")
        arguments = ["--noheader", f"--user={getpass.getuser()}", "--format=%i"]
        yield _said("squeue", arguments, lambda lines: f"{len(lines)} jobs of yours")
    if "sacct" in there:
        yield Doing("sacct")
        yield _said("sacct", ["--allocations", "--noheader"], lambda _: "answers")


def _said(command: str, arguments: list[str], meant: Callable[[list[str]], str]) -> Finding:
    """What a command answers, in words; if it does not, runs that need it fail, and others work."""
    advice = _WITHOUT.get(command, _ADVICE)
    try:
        done = subprocess.run(
            [command, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(command, "warning", f"no answer within {_SECONDS:g} s", advice)
    except OSError as error:
        return Finding(command, "warning", f"does not start: {error.strerror}", advice)
    if done.returncode:
        reason = one_line(
            (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        )
        return Finding(command, "warning", reason, advice)
    return Finding(command, "ok", meant(done.stdout.splitlines()))


def _partitions(lines: list[str]) -> str:
    """``gpu*: 12 nodes, gpu:a100:8``; the default has a star, as sinfo writes it."""
    shown: dict[str, list[str]] = {}
    for line in lines:
        name, state, nodes, *gpus = line.split()
        what = f"{nodes} node{'' if nodes == '1' else 's'}"
        what += "" if state == "up" else f" {state}"
        what += "".join(f" with {each}" for each in gpus if each != "(null)")
        shown.setdefault(name, []).append(what)
    return "; ".join(f"{name}: {', '.join(each)}" for name, each in shown.items()) or "no partition"
