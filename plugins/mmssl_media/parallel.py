"""A function over many files in many processes, whatever a codec does to its process.

A file may end the process that reads it (a defect of a codec, the kernel's memory killer), or
hold it for ever. Then that process is replaced, and the file is the one thing that failed.
"""

import faulthandler
import math
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, TypeVar

from mmssl.errors import BadMedia, MissingModality

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """Why there is no result for an item.

    Attributes:
        reason: in words.
        cause: the media (the function raised `BadMedia` or `MissingModality`), an error of any
            other kind, the time that it took, or the death of the process that read it.
    """

    reason: str
    cause: Literal["media", "error", "time", "death"]


def in_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    seconds: float = math.inf,
) -> Generator[tuple[Item, Result | Failed], None, None]:
    """Call ``work`` on every item in forked processes.

    At most ``workers`` items are taken ahead of what has been yielded, so there may be any number.
    Closing the iterator ends all processes at once; whoever may leave it early closes it, with
    `contextlib.closing`. When this process is killed they end after
    their item, at the latest when its time is over.

    Args:
        work: of one item; what it returns is pickled. The process has no other alarm signals.
        items: what is pickled to the processes, one at a time.
        workers: number of processes, at least 1.
        seconds: of wall-clock time that one item may take.

    Yields:
        Each item with its result, or with the reason why there is none, in the order in which
        they are done.
    """
    waiting = iter(items)
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, Item]] = {}

    def hand_out() -> None:
        for item in islice(waiting, workers - len(busy)):
            worker = idle.pop() if idle else None
            if worker is None or not worker.begin(item):
                others = [*busy, *(other.pipe for other in idle)]
                worker = _Worker(work, seconds, others)
                worker.begin(item)
            busy[worker.pipe] = worker, item

    try:
        hand_out()
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker, item = busy[pipe]
                result = worker.result()
                del busy[pipe]
                if worker.alive:
                    idle.append(worker)
                hand_out()  # before the caller looks at the result, so that nobody stands still
                yield item, result
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.kill()


class _Worker:
    """One process and the pipe to it."""

    def __init__(
        self, work: Callable[[Any], Any], seconds: float, others: list[Connection]
    ) -> None:
        self._seconds = seconds
        self.alive = True
        context = get_context("fork")
        self.pipe, end = context.Pipe()
        # A daemon: should the iterator never be closed, it ends with the interpreter.
        self._process = context.Process(
            target=_serve, args=(work, end, seconds, [self.pipe, *others]), daemon=True
        )
        self._process.start()
        end.close()  # so that the pipe ends with the process

    def begin(self, item: Any) -> bool:
        """Send an item; false if the process has died since its last one."""
        try:
            self.pipe.send(item)
        except OSError:
            self.kill()
        return self.alive

    def result(self) -> Any:
        """What became of the item; blocks until it is there, or the process is gone."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return self._failure()

    def _failure(self) -> Failed:
        self._process.join()
        code = self._process.exitcode or 0
        self.kill()
        if code == -signal.SIGALRM:
            return Failed(f"took longer than {self._seconds:g} s", "time")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Failed(f"ended the process that read it ({how})", "death")

    def kill(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()


def _serve(
    work: Callable[[Any], Any], pipe: Connection, seconds: float, inherited: list[Connection]
) -> None:
    """In the process: item after item, until the pipe ends because the main process did."""
    # Of the pipes forked along nobody but the main process may hold an end, or they never end.
    for other in inherited:
        other.close()
    faulthandler.disable()  # a death is told in one line
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, wherever it is stuck
    try:
        while True:
            item = pipe.recv()
            signal.setitimer(signal.ITIMER_REAL, 0 if seconds == math.inf else seconds)
            result = _attempt(work, item)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(result)
    except (EOFError, OSError):
        # Nothing more: what the main process registered for its own end is none of this one's.
        os._exit(0)


def _attempt(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except (BadMedia, MissingModality) as error:
        return Failed(str(error), "media")
    except Exception as error:  # one file of a million must not end the work on all others
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        return Failed(f"raised {type(error).__name__} in {where}: {error}", "error")
