"""The disks of runs and of the cache: writable, with room, how fast, and do locks work there."""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmssl.data.cache import cache_folder
from mmssl.doctor import Doing, Finding

_GB = 1 << 30
_MB = 1 << 20
_SIZE = 32 * _MB
_is_ours = re.compile(r"\.doctor-[0-9a-f]{16}").fullmatch


def look() -> Iterator[Finding | Doing]:
    """The folder ``runs`` here and the cache, or the folders that they would be made in."""
    runs, cache = _there(Path("runs")), _there(cache_folder())
    yield from _folder("runs", runs, "runs=/a/folder in the recipe, or work in another folder")
    yield from _folder("cache", cache, "export MMSSL_CACHE=/a/folder")
    yield Doing(f"locking a file in {runs}")
    yield _locks(runs)


def _there(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _folder(name: str, folder: Path, elsewhere: str) -> Iterator[Finding | Doing]:
    what = f"disk of {name}"
    try:
        there = os.statvfs(folder)
    except OSError as error:
        yield Finding(what, "problem", f"{folder}: {error.strerror}", elsewhere)
        return
    free = there.f_bavail * there.f_frsize
    room = f"{free / _GB:,.1f} GB free"
    if free < 2 * _SIZE:
        advice = f"make room, or {elsewhere}"
        yield Finding(what, "problem", f"{folder}: {free / _MB:.0f} MB free", advice)
        return
    _sweep(folder)
    yield Doing(f"writing {_SIZE // _MB} MB to {folder}")
    try:
        write, read = _speed(folder)
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror}"
        yield Finding(what, "problem", found, elsewhere)
        return
    found = f"{folder}: writes {write:,.0f} MB/s, reads {read:,.0f} MB/s, {room}"
    if free < 5 * _GB:
        advice = "checkpoints and made-up videos need some GB: make room, or " + elsewhere
        yield Finding(what, "warning", found, advice)
    elif write < 20 or read < 20:
        advice = f"slow, as over a network: training waits for it; {elsewhere}"
        yield Finding(what, "warning", found, advice)
    else:
        yield Finding(what, "ok", found)


def _sweep(folder: Path) -> None:
    """Remove what examinations that were killed have left, where files keep their name."""
    with suppress(OSError):
        for path in folder.glob(".doctor-*"):
            if _is_ours(path.name) and time.time() - path.lstat().st_mtime > 3600:
                path.unlink()


@contextmanager
def _file(folder: Path) -> Iterator[int]:
    """A new file without a name: nothing of it stays, even if this process is killed."""
    path = folder / f".doctor-{secrets.token_hex(8)}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with suppress(OSError):  # some shares keep the name of what is open
            path.unlink()
        yield file
    finally:
        os.close(file)
        path.unlink(missing_ok=True)


def _speed(folder: Path) -> tuple[float, float]:
    """Writing through to the disk, and reading back without the system's copy, in MB/s."""
    data = os.urandom(_SIZE)
    with _file(folder) as file:
        begun = time.perf_counter()
        written = 0
        while written < _SIZE:
            written += os.write(file, data[written:])
        os.fsync(file)
        middle = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(file, 0, os.SEEK_SET)
        again = bytearray()
        while part := os.read(file, 1 << 20):
            again += part
        end = time.perf_counter()
        if again != data:
            raise OSError(5, "what was read is not what was written")
    return _SIZE / _MB / (middle - begun), _SIZE / _MB / (end - middle)


def _locks(folder: Path) -> Finding:
    """Does a second process see that a range of a file is locked, as runs are?"""
    try:
        with _file(folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            child = os.fork()
            if child == 0:  # a lock is its process's, though both have the file open
                os._exit(0 if _is_locked(file) else 1)
            _, status = os.waitpid(child, 0)
    except OSError as error:
        found, kept = f"{folder}: {error.strerror}", False
    else:
        found = f"of files in {folder} hold" if status == 0 else f"of files in {folder} do not hold"
        kept = status == 0
    advice = "" if kept else "mount it with locks, or never start a run twice at the same time"
    return Finding("locks", "ok" if kept else "warning", found, advice)


def _is_locked(file: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except OSError:
        return True
    return False
