"""Processes that fork from a server which has imported what they need.

Torch, and what its optimizers and meta tensors import when they are first used, takes a process
several times as long as a small run does; a fork of the test's own process would inherit its
threads' locks.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch",
        "torch._dynamo",
        "torch.fx.experimental.symbolic_shapes",
        "torch.utils.tensorboard",
        "faiss",
        "scipy.optimize",
        "rich.progress",
        "mmssl.cli",
        "mmssl.pipeline.plan",
        "mmssl.pipeline.stages",
        "mmssl.training.loop",
        "mmssl_clustering.relabel",
        "mmssl_media.audio",
        "mmssl_media.video",
        "mmssl_media.synthetic",
    ]
)

MMSSL = str(Path(sys.executable).with_name("mmssl"))


class CommandLine:
    """``mmssl`` with ``arguments``, at work in a process of its own.

    Variables that Python and libraries read as they start come too late here, but for the folders
    of ``PYTHONPATH``; tests of such start ``MMSSL`` itself.

    Args:
        arguments: of ``mmssl``.
        cwd: where.
        env: all its variables.
        out: the file for what it prints.
        err: that for its errors.
        session: is it to lead a session of its own, as a terminal or SLURM starts it?
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str],
        out: Path,
        err: Path,
        session: bool = False,
    ) -> None:
        ready, begun = SERVER.Pipe(duplex=False)
        words = [MMSSL, *arguments]
        self._process: BaseProcess = SERVER.Process(
            target=_run, args=(words, str(cwd), dict(env), str(out), str(err), session, begun)
        )
        self._process.start()
        begun.close()
        ready.recv()  # its session is there, for signals
        ready.close()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """Its exit code, if it has ended; -N after signal N."""
        return self._process.exitcode

    def wait(self, seconds: float) -> int:
        """Its exit code, within so many seconds; else ``subprocess.TimeoutExpired``."""
        self._process.join(seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(MMSSL, seconds)
        return code

    def send_signal(self, number: int) -> None:
        """To this process, and to no other, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """``kill``."""
        self.send_signal(signal.SIGTERM)


def leave_server() -> None:
    """In a process of the server: what it starts itself does not fork from the server, too."""
    multiprocessing.set_start_method(None, force=True)


def _run(
    words: list[str],
    cwd: str,
    env: dict[str, str],
    out: str,
    err: str,
    session: bool,
    begun: "multiprocessing.connection.Connection",
) -> None:
    leave_server()
    if session:
        os.setsid()
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    begun.send(None)
    begun.close()
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [
        folder
        for folder in env.get("PYTHONPATH", "").split(os.pathsep)
        if folder and folder not in sys.path
    ]
    sys.argv = words
    from mmssl.cli import main

    main()
