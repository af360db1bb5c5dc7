"""Two processes that are neither this one nor forked from it, joined as ranks.

They are started when a check first needs them, import torch once, and serve all later checks of
this process; they end with it.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any
from unittest import mock

from mmssl.testing.check import fail

#: Ranks that train together in a check.
SIZE = 2

# Seconds that a call may take, and that a rank may go on for after the other one has failed.
_PATIENCE, _GRACE = 300.0, 5.0

_crew: "_Crew | None" = None


def on_ranks(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(*args)`` returns on each of two ranks; all of it must pickle.

    Raises:
        Nonconforming: it raised there, or they waited for each other for ever.
    """
    global _crew
    if _crew is None:
        _crew = _Crew()
    try:
        return _crew.call(function, *args)
    except BaseException:
        dismiss()  # they may be anywhere in a collective call
        raise


def dismiss() -> None:
    """End them; the next call starts others, which see what was installed meanwhile."""
    global _crew
    if _crew is not None:
        _crew.end()
        _crew = None


class _Crew:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self._lines: list[Connection] = []
        self._processes = []
        with mock.patch.dict(os.environ, {"TORCH_CPP_LOG_LEVEL": "ERROR"}):  # no advice on DDP
            for rank in range(SIZE):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, rank, port), daemon=True)
                process.start()
                theirs.close()
                self._lines.append(ours)
                self._processes.append(process)

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for line in self._lines:
            line.send((function, args))
        answers: dict[int, Any] = {}
        deadline = monotonic() + _PATIENCE
        while len(answers) < SIZE:
            waiting = {line: rank for rank, line in enumerate(self._lines) if rank not in answers}
            ready = wait(list(waiting), max(0.0, deadline - monotonic()))
            if not ready:
                break
            for line, rank in waiting.items():
                if line not in ready:
                    continue
                try:
                    answers[rank] = line.recv()
                except EOFError:
                    answers[rank] = (False, "the process died", "")
                if not answers[rank][0]:
                    deadline = min(deadline, monotonic() + _GRACE)
        failed = {rank: answer for rank, answer in answers.items() if not answer[0]}
        if failed:
            rank, (_, error, where) = next(iter(failed.items()))
            fail(f"on rank {rank} of {SIZE}: {error}{where}")
        if len(answers) < SIZE:
            fail(
                f"after {_PATIENCE:.0f} s one of {SIZE} ranks still waited for the other: every "
                "rank must make the same collective calls, whatever is in its part of the batch"
            )
        return [answers[rank][1] for rank in range(SIZE)]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(line: Connection, rank: int, port: int) -> None:
    """What a rank does until nobody asks any more."""
    import torch

    from mmssl.training import distributed

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(SIZE),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with distributed.joined("cpu"):
        while True:
            try:
                function, args = line.recv()
            except EOFError:  # the other end has gone
                os._exit(0)
            except Exception as error:  # what was sent does not unpickle here
                line.send((False, f"{type(error).__name__}: {error}", ""))
                continue
            line.send(_answer(function, args))


def _answer(function: Callable[..., Any], args: Any) -> tuple[bool, Any, str]:
    try:
        return True, function(*args), ""
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({place.filename}:{place.lineno})"
        return False, f"{type(error).__name__}: {error}", where
