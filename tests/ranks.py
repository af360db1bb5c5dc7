"""Functions called on several ranks, each a process of its own, joined by gloo."""

import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked import SERVER, leave_server

from mmssl.training import distributed


class RankFailed(AssertionError):
    """A rank ended with an exception.

    Attributes:
        errors: by rank, ``"UserError: its message"``; the empty text where there was none.
    """

    def __init__(self, errors: list[str], details: str) -> None:
        super().__init__(details)
        self.errors = errors


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_ranks(
    size: int, function: Callable[..., Any], *args: Any, seconds: float = 120
) -> list[Any]:
    """What ``function(*args)`` returns on each of ``size`` ranks; it must be a module's own.

    Raises:
        RankFailed: it raised on some.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            SERVER.Process(target=_run, args=(Path(folder), rank, size, port, function, args))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        stuck = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        files = [Path(folder) / str(rank) for rank in range(size)]
        results = [pickle.loads(f.read_bytes()) if f.exists() else None for f in files]  # noqa: S301
    assert not stuck, f"ranks {stuck} were still at it after {seconds} s"
    if not all(result and result[0] for result in results):
        errors = [r[1] if r and not r[0] else "" for r in results]
        details = "\n".join(r[2] for r in results if r and not r[0])
        gone = [f"rank {i} died: {p.exitcode}" for i, p in enumerate(processes) if p.exitcode]
        raise RankFailed(errors, "\n".join([details, *gone]))
    return [result[1] for result in results]


def _run(
    folder: Path, rank: int, size: int, port: int, function: Callable[..., Any], args: Any
) -> None:
    leave_server()
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        with distributed.joined("cpu"):
            result = (True, function(*args))
    except BaseException as error:
        result = (False, f"{type(error).__name__}: {error}", traceback.format_exc())
    (folder / str(rank)).write_bytes(pickle.dumps(result))
    sys.exit(not result[0])
