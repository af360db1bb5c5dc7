"""A stranger's import, when plugins are loaded: it ends in time, and leaves all as it was."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from mmssl.errors import UserError

#: Seconds after which loading one plugin is given up.
TIME_LIMIT = 20.0

#: Seconds after which a person is told what is waited for.
PATIENCE = 3.0

_SIGNALS = [
    getattr(signal, name)
    for name in (
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
        "SIGPIPE",
        "SIGALRM",
        "SIGUSR1",
        "SIGUSR2",
        "SIGCHLD",
    )
    if hasattr(signal, name)
]


@contextmanager
def guest(name: str) -> Iterator[None]:
    """Load a plugin within this block.

    What it prints goes to the standard error: the standard output is the command's. The working
    directory, signal handlers and filters of warnings are put back. What it adds to ``sys.path``
    stays, behind what was there.

    The limit is an alarm, and comes between two steps of Python: a library of C that does not
    return is not interrupted, and torch and numpy are imported to their end, as half of one is
    worse than none. In another thread than the main one, and where an alarm is set
    already, there is no limit.

    Raises:
        UserError: it took longer than `TIME_LIMIT`, or raised a `KeyboardInterrupt` that was not
            the user's.
    """
    path, handlers = list(sys.path), _handlers()
    folder = os.getcwd() if os.path.isdir(os.curdir) else None
    try:
        with ExitStack() as held:
            held.enter_context(warnings.catch_warnings())
            held.enter_context(contextlib.redirect_stdout(sys.stderr))
            if handlers:
                held.enter_context(_interrupts())
            if handlers and hasattr(signal, "setitimer") and not _alarm_is_set():
                held.enter_context(_limit(name))
            yield
    finally:
        if folder is not None:
            os.chdir(folder)
        added = [each for each in sys.path if isinstance(each, str) and each not in path]
        sys.path[:] = [*path, *added]
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _half_imported() -> bool:
    """Is a library that mmssl needs, too, about to be imported? Interrupted, it never would be."""
    specs = (getattr(sys.modules.get(name), "__spec__", None) for name in ("numpy", "torch"))
    return any(getattr(spec, "_initializing", False) for spec in specs)


def _alarm_is_set() -> bool:
    return any(signal.getitimer(signal.ITIMER_REAL))


def _handlers() -> dict[signal.Signals, Any]:
    """Those that can be put back: only the main thread may set them, and only Python's."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in found.items() if handler is not None}


@contextmanager
def _interrupts() -> Iterator[None]:
    """Tell a KeyboardInterrupt that a plugin raises from the user's."""
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if interrupted or (callable(before) and before is not signal.default_int_handler):
            raise  # by whoever handles Ctrl-C
        raise UserError("it raised KeyboardInterrupt, though nobody pressed Ctrl-C") from None


@contextmanager
def _limit(name: str) -> Iterator[None]:
    """Say that it takes long, then raise."""
    begun = time.monotonic()
    told = False

    def alarm(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if time.monotonic() - begun >= TIME_LIMIT and not _half_imported():
            raise UserError(
                f"its import took longer than {TIME_LIMIT:g} s and was given up: import what is "
                "slow, torch above all, where it is used, not where the plugin is loaded"
            )
        if not told:
            told = True
            print(f"mmssl: the plugin {name} takes long to import", file=sys.stderr)

    signal.signal(signal.SIGALRM, alarm)
    # Again and again, as a plugin may catch what is raised in it.
    signal.setitimer(signal.ITIMER_REAL, min(PATIENCE, TIME_LIMIT), 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
