"""What was found out about files, kept on disk as it is found, so that a kill loses nothing."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from mmssl.errors import UserError

# The disk, the user's share of it, or what one file may take.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Journal:
    """Values by key, appended to a file line by line.

    In memory there are some 200 bytes a key, whatever the length of keys and values.
    """

    def __init__(self, path: Path, file: int, places: dict[bytes, int], end: int) -> None:
        self._path = path
        self._file = file
        self._places = places
        self._end = end

    def __contains__(self, key: str) -> bool:
        return _digest(key) in self._places

    def get(self, key: str, default: Any) -> Any:
        """The newest value of a key, or ``default``."""
        position = self._places.get(_digest(key))
        if position is None:
            return default
        line = b""
        while not line.endswith(b"\n"):
            part = os.pread(self._file, 1024, position + len(line))
            line += part[: part.find(b"\n") + 1] or part
        return json.loads(line)[1]

    def add(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        line = json.dumps([key, value]).encode() + b"\n"
        # A line that a kill cut off is dropped when the journal is opened again.
        written = os.pwrite(self._file, line, self._end)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._places[_digest(key)] = self._end
        self._end += written


@contextmanager
def open_journal(path: Path, kind: str) -> Iterator[Journal]:
    """Open a journal, or begin it; one in which nothing was kept is removed at the end.

    Args:
        path: of the file.
        kind: what its values mean; a journal of another kind is begun anew.

    Raises:
        UserError: another process has it open, it cannot be written, or the disk is full, be it
            with this file or with another that is written meanwhile.
    """
    file = _locked(path)
    places: dict[bytes, int] | None = None
    try:
        first = json.dumps({"journal": kind}).encode() + b"\n"
        places, end = _read(file, first)
        os.ftruncate(file, end)
        if end == 0:
            end = os.pwrite(file, first, 0)
        yield Journal(path, file, places, end)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"{os.path.abspath(path.parent)} cannot be written any more ({error.strerror}): make "
            "room, then run the same command again to go on"
        ) from None
    finally:
        if places == {}:
            path.unlink(missing_ok=True)
        os.close(file)


def _locked(path: Path) -> int:
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"{path.parent} cannot be written ({error.strerror}): choose another place"
            ) from None
        try:
            # Not flock, whose lock forked processes inherit: they may outlive a killed parent.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(file)
            raise UserError(
                f"{path} is in use by another process: wait for it, or choose another output"
            ) from None
        if os.fstat(file).st_nlink:
            return file
        os.close(file)  # its last owner removed it after it was opened here


def clear_halves(*outputs: Path) -> None:
    """Remove what a killed process left under temporary names, while holding its journal."""
    for output in outputs:
        for half in output.parent.glob(f".{escape(output.name)}.*.tmp"):
            half.unlink(missing_ok=True)


def _read(file: int, first: bytes) -> tuple[dict[bytes, int], int]:
    """Where each key's newest line begins, and where the last whole line ends."""
    places: dict[bytes, int] = {}
    # Not opened a second time: closing that would give up the lock.
    with open(file, "rb", closefd=False) as lines:
        position = len(first) if next(lines, b"") == first else 0
        for line in lines if position else ():
            if not line.endswith(b"\n"):  # cut off by a kill
                break
            try:
                key = json.loads(line)[0]
            except ValueError:  # the machine's end may leave blocks of zeros
                break
            places[_digest(key)] = position
            position += len(line)
    return places, position


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
