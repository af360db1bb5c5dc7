"""Cores, memory, shared memory, open files: what loader processes live on."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from mmssl.data.cores import cores
from mmssl.doctor import Doing, Finding

_GB = 1 << 30
_MB = 1 << 20


def look() -> Iterator[Finding | Doing]:
    """What there is of each, where Linux tells."""
    yield _cores()
    yield from _memory()
    yield from _shared_memory()
    yield _open_files()


def _cores() -> Finding:
    mine, all_ = cores(), os.cpu_count() or 1
    found = f"{mine}" if mine == all_ else f"{mine} of {all_} are this process's"
    if mine < 2:
        advice = "ask for more (launch.cpus_per_task=8), or set data.workers=1"
        return Finding("cores", "warning", found, advice)
    return Finding("cores", "ok", found)


def _memory() -> Iterator[Finding]:
    """Available memory, of a container or job its own."""
    fields = _fields(Path("/proc/meminfo"))
    if "MemAvailable" not in fields:
        return
    free, whole = fields["MemAvailable"] * 1024, fields["MemTotal"] * 1024
    found = f"{free / _GB:.1f} GB available of {whole / _GB:.1f} GB"
    limit, left = _of_this_job(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    if limit is not None and limit < whole:
        free = min(free, left)
        found = f"{free / _GB:.1f} GB available of {limit / _GB:.1f} GB that this job may use"
    if free < 2 * _GB:
        advice = "a run needs some 2 GB and more: fewer data.workers, a smaller training.batch_size"
        yield Finding("memory", "warning", found, advice)
    else:
        yield Finding("memory", "ok", found)


def _of_this_job(root: Path, mine: Path) -> tuple[int | None, int]:
    """The least limit of the control groups (v2) that this process is in, and what is left of all.

    A job's limit is its own group's, or that of one around it: SLURM sets it some levels down.

    Args:
        root: where the groups are mounted.
        mine: the file that names this process's group.
    """
    limits, left = [], []
    for group in _groups(root, mine):
        limit = _number(group / "memory.max")
        if limit is not None:
            # Copies of files are given up when memory is needed.
            copies = _fields(group / "memory.stat").get("inactive_file", 0)
            limits.append(limit)
            left.append(max(0, limit - (_number(group / "memory.current") or 0) + copies))
    return min(limits, default=None), min(left, default=0)


def _groups(root: Path, mine: Path) -> list[Path]:
    """Those around this process's group, and it; the root alone where no other is seen."""
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        lines = []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    groups = [root]
    # From outside of a container, a path leads above what is mounted: /../../job.
    for part in () if ".." in Path(path).parts else Path(path).parts:
        groups.append(groups[-1] / part)
    return groups


def _shared_memory() -> Iterator[Finding]:
    """Loader processes hand batches over in /dev/shm; a container often has 64 MB of it."""
    try:
        there = os.statvfs("/dev/shm")
    except OSError as error:
        advice = "set data.workers=0, or mount it"
        yield Finding("shared memory", "problem", f"no /dev/shm: {error.strerror}", advice)
        return
    free = there.f_bavail * there.f_frsize
    found = f"{free / _MB:,.0f} MB free in /dev/shm"
    advice = "in a container: docker run --shm-size=8g (or --ipc=host); else fewer data.workers"
    if free < 16 * _MB:
        yield Finding("shared memory", "problem", found, f"{advice}; data.workers=0 needs none")
    elif free < 512 * _MB:
        yield Finding("shared memory", "warning", found, advice)
    else:
        yield Finding("shared memory", "ok", found)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft:,} at once" if soft != resource.RLIM_INFINITY else "without limit"
    if 0 <= soft < 1024:
        advice = f"ulimit -n {min(hard, 4096) if hard >= 0 else 4096}"
        return Finding("open files", "warning", found, advice)
    return Finding("open files", "ok", found)


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file with lines of ``name: number kB``; empty if it is not there.

    The colon and the unit may be missing.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {w[0].removesuffix(":"): int(w[1]) for w in words if len(w) > 1 and w[1].isdecimal()}


def _number(path: Path) -> int | None:
    """The number in a file; None if it holds another word, "max", or is not there."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
