"""Checkpoints that survive a kill at any moment.

::

    checkpoints/
      step-00001200.pt          a whole training state; the last K are kept
      step-00001400.pt
      encoders.safetensors      the finished encoders, once pretraining is done
      objective.safetensors     its heads and whatever else it has learned

A file appears under its name only when it is complete: it is written under a temporary name,
flushed to the disk and renamed.
"""

import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import UserError
from mmssl.formats import CHECKPOINT

_UMASK = os.umask(0)  # the only way to read it is to set it
os.umask(_UMASK)
# Exactly these: a checkpoint with any other class, be it one of theirs, is never read again.
_PLAIN = (type(None), bool, int, float, str, bytes, Tensor, nn.Parameter)
_NAME = re.compile(r"step-(\d{8,})\.pt")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``path``, flush it to disk, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_UMASK)  # some libraries write for the owner only
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = ((match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
    return sorted((int(match[1]), path) for match, path in found)


def save(folder: Path, state: dict[str, Any], *, step: int, keep: int) -> Path:
    """Write a training state and drop all but the newest ``keep`` of them.

    Args:
        folder: the run's ``checkpoints/``.
        state: tensors, numbers, strings, and lists and dicts of them.
        step: global step, which names the file.
        keep: how many to keep, at least 1.
    """
    path = path_of(folder, step)
    whole = {"format": CHECKPOINT.current, **state}
    write_atomically(path, lambda temporary: torch.save(whole, temporary))
    for leftover in folder.glob(".step-*.tmp"):
        leftover.unlink(missing_ok=True)
    for _, old in _numbered(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def storable(state: Any, where: str = "state_dict()") -> Any:
    """A component's own state, if a checkpoint that holds it can be read again.

    Raises:
        TypeError: some of it is neither plain nor a tensor: NumPy's numbers, for instance, or a
            ``defaultdict``.
    """
    if type(state) in (dict, OrderedDict):
        for key, value in state.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where} has the key {key!r}: neither a string nor an int")
            storable(value, f"{where}[{key!r}]")
    elif type(state) in (list, tuple):
        for number, value in enumerate(state):
            storable(value, f"{where}[{number}]")
    elif type(state) not in _PLAIN:
        kind = f"{type(state).__module__}.{type(state).__qualname__}"
        raise TypeError(
            f"{where} is a {kind}: only None, bool, int, float, str, tensors, and lists and dicts "
            "of them can be read from a checkpoint again"
        )
    return state


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint of a global step."""
    return folder / f"step-{step:08d}.pt"


def load(path: Path) -> dict[str, Any]:
    """A state, on the CPU.

    Raises:
        UserError: a newer mmssl wrote it, or one that is too old; or memory is short.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, RuntimeError) as error:
        if not _memory_is_short(error):
            raise
        raise UserError(
            f"{path}: not enough memory to read its {path.stat().st_size / 1e6:,.0f} MB: ask for "
            "more, or end what else takes it, and start again; nothing is lost"
        ) from error
    return CHECKPOINT.migrated(state, state.get("format"), str(path))


def _memory_is_short(error: Exception) -> bool:
    """Of torch's allocators, most say so in words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("DefaultCPUAllocator", "Cannot allocate memory", "not enough memory", "bad_alloc")
    return any(word in str(error) for word in words)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest state that can be read, on the CPU, or None if none was ever written.

    A file that the disk has damaged is renamed to ``*.damaged``, with a warning, and the one
    before it is taken.

    Raises:
        UserError: the checkpoint is of a format that is not read, or memory is short; or there
            are some and all are damaged.
    """
    found = _numbered(folder)
    for _, path in reversed(found):
        try:
            return load(path)
        except (OSError, UserError):
            raise  # the disk does not answer, or memory is short, which says nothing of the file
        except Exception as error:  # what torch raises depends on which byte is damaged
            # Out of the way of those that are written from now on, or it would outlive them.
            path.rename(path.with_name(f"{path.name}.damaged"))
            reason = str(error).partition("\n")[0]
            warnings.warn(f"{path} cannot be read and is passed over: {reason}", stacklevel=2)
    if found:
        raise UserError(
            f"{folder}: no checkpoint can be read; restore one, or delete the run's folder to "
            "start from the beginning"
        )
    return None
