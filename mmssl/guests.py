"""A stranger's import, when plugins are loaded: it ends in time, and leaves all as it was."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from mmssl.errors import UserError

#: Seconds after which loading one plugin is given up.
TIME_LIMIT = 20.0

#: Seconds after which even a library that it imports is interrupted: one that never ends.
LIBRARY_LIMIT = 300.0

#: Seconds after which a person is told what is waited for.
PATIENCE = 3.0

# They may abort the whole process where one of their functions of C meets an exception.
_FRAGILE = frozenset({"numpy", "torch"})

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
def guest(name: str, packages: Collection[str] = ()) -> Iterator[None]:
    """Load a plugin within this block.

    What it prints goes to the standard error: the standard output is the command's. The working
    directory, signal handlers and filters of warnings are put back. What it adds to ``sys.path``
    stays, behind what was there.

    The limit is an alarm, and comes between two steps of Python: a library of C that does not
    return is not interrupted. Nor is any other package that the plugin imports, up to
    `LIBRARY_LIMIT`, and torch and numpy ever: mmssl or another plugin may need it later, and half
    of one is worse than none.
    In another thread than the main one, and where an alarm is set already, there is no limit.

    Args:
        name: the plugin's.
        packages: the top-level packages that are the plugin's own.

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
                held.enter_context(_limit(name, packages))
            yield
    finally:
        if folder is not None:
            os.chdir(folder)
        added = [each for each in sys.path if isinstance(each, str) and each not in path]
        sys.path[:] = [*path, *added]
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _imports(frame: FrameType | None) -> list[str]:
    """The top-level packages whose modules are being imported, the innermost first.

    The stack tells, rather than ``sys.modules``: from the search for a module to its being set as
    an attribute of its package there is a frame of importlib, and nothing of a stranger's is
    touched.
    """
    found = []
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_find_and_load" and code.co_filename == "<frozen importlib._bootstrap>":
            found.append(frame.f_locals["name"].partition(".")[0])
        frame = frame.f_back
    return found


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
def _limit(name: str, packages: Collection[str]) -> Iterator[None]:
    """Say that it takes long, then raise."""
    begun = time.monotonic()
    around = len(_imports(sys._getframe()))  # of whoever loads plugins while being imported
    told: set[str] = set()

    def tell(what: str) -> None:
        if what not in told:
            told.add(what)
            print(f"mmssl: the plugin {name} takes long to import{what}", file=sys.stderr)

    def alarm(number: int, frame: FrameType | None) -> None:
        found = _imports(frame)
        others = [each for each in found[: len(found) - around] if each not in packages]
        waited = time.monotonic() - begun
        if waited < TIME_LIMIT:
            tell("")
        elif others and (waited < LIBRARY_LIMIT or not _FRAGILE.isdisjoint(others)):
            tell(f": it is waited for as it imports {others[-1]}")
        else:
            slow = others[-1] if others else "torch above all"
            raise UserError(
                f"its import took longer than {TIME_LIMIT:g} s and was given up: import what is "
                f"slow, {slow}, where it is used, not where the plugin is loaded"
            )

    signal.signal(signal.SIGALRM, alarm)
    # Again and again, as a plugin may catch what is raised in it.
    signal.setitimer(signal.ITIMER_REAL, min(PATIENCE, TIME_LIMIT), 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
