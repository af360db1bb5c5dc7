"""Loader processes, and what is known of each: which row it reads, and how it died.

Before a row is read, its number is written where the main process sees it, so that a row whose
reading ends its process can be named.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmssl.data import timing

#: In a loader process: ``[2]`` int64 that the main process sees, this process's number and the
#: row that it is reading, or -1.
_desk: Tensor | None = None


@contextmanager
def reading(row: int) -> Iterator[None]:
    """Say that this process reads a row, while it does."""
    if _desk is None:
        yield
        return
    _desk[1] = row
    try:
        yield
    finally:
        _desk[1] = -1


def expendable() -> bool:
    """Is this a loader process, which may be ended and replaced?"""
    return _desk is not None


def _begin_worker(desks: Tensor, timed: bool, worker: int) -> None:
    """Sit down at a desk and leave signals to the main process, which decides what they mean.

    A cluster sends SIGTERM to every process of a job; a worker that died of it would take down
    the main process before it could save. So the first one is let pass, and a second one, by
    which the main process ends what is left at its exit, is not.
    """
    global _desk
    _desk = desks[worker]
    _desk[0] = os.getpid()
    timing.measure(timed)
    for ignored in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)

    def pass_once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, pass_once)


@dataclass(frozen=True)
class Death:
    """A loader process that ended before its work was done.

    Attributes:
        code: of its exit; negative for a signal.
        row: what it was reading.
    """

    code: int
    row: int | None

    @property
    def how(self) -> str:
        """``SIGSEGV``, or ``exit code 3``."""
        return signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"

    def reason(self, limit: float) -> str:
        """Why the row cannot be read, given the seconds that it may take."""
        if self.code == 1:  # as `time_limit` ends what is stuck, but others may leave it, too
            return f"ended the process that read it (exit code 1), or was stuck for {limit:g} s"
        return f"ended the process that read it ({self.how})"


class Crew:
    """Some loader processes.

    Args:
        size: their number; 0 loads in this process.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._desks = torch.full((size, 2), -1).share_memory_()
        self._processes: list[BaseProcess] = []

    def work(
        self,
        items: Any,
        batches: Sequence[list[int]],
        collate: Callable[[list[Any]], Any],
        *,
        prefetch: int,
        pin: bool,
        timed: bool,
    ) -> Generator[Any]:
        """Batches as they arrive.

        Args:
            items: ``items[i]`` is called in the processes.
            batches: the items of each batch.
            collate: from a batch's items to the batch, called in the processes.
            prefetch: batches that each process keeps ready.
            pin: copy batches to page-locked memory.
            timed: measure steps (`mmssl.data.timing`).

        Raises:
            RuntimeError, EOFError, OSError: a process died.
        """
        extra: dict[str, Any] = {}
        if not self._size:
            timing.measure(timed)
        else:
            extra = {
                "prefetch_factor": prefetch,
                "worker_init_fn": partial(_begin_worker, self._desks, timed),
            }
        loader: DataLoader[Any] = DataLoader(
            items,
            batch_sampler=batches,
            num_workers=self._size,
            collate_fn=collate,
            pin_memory=pin,
            **extra,
        )
        before = multiprocessing.active_children()
        with _own_child_handler():
            arriving = iter(loader)
        self._processes = [p for p in multiprocessing.active_children() if p not in before]
        yield from arriving

    def deaths(self) -> list[Death]:
        """The processes that died of something in their work, not because they were told to end."""
        wait([process.sentinel for process in self._processes], _DYING)
        multiprocessing.active_children()  # learns of those that ended
        found = []
        rows = {int(process): int(row) for process, row in self._desks}
        for process in self._processes:
            code = process.exitcode
            row = rows.get(process.pid or 0, -1)
            # Whoever leaves in the middle of a row died of it, whatever code it left.
            if code is not None and (code != 0 or row >= 0):
                blamed = row if row >= 0 and code not in _TOLD else None
                found.append(Death(code, blamed))
        return found

    def kill(self) -> None:
        """End those that are left, at once."""
        for process in self._processes:
            process.kill()
            process.join()


# Seconds that a process may take to end after its pipes have.
_DYING = 1.0

_TOLD = (-signal.SIGTERM, -signal.SIGINT)


@contextmanager
def _own_child_handler() -> Iterator[None]:
    """Undo torch's handler of SIGCHLD, which would raise in whatever the main process is doing.

    The loader itself looks after its processes every few seconds that it waits for a batch.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)
