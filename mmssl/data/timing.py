"""Where the time of reading and of training goes.

Whoever reads or computes names what it is doing: ``with step("seek"): ...``. Unless somebody
measures (`mmssl profile`), that costs a fraction of a microsecond.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

_NOTHING: AbstractContextManager[None] = nullcontext()


class _Stopwatch:
    """Seconds by step. Where steps are nested, each moment counts for the innermost alone."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = wait
        self._open: list[str] = []
        self._since = 0.0

    def _lap(self) -> None:
        self._wait()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def begin(self, name: str) -> None:
        self._lap()
        self._open.append(name)

    def end(self) -> None:
        self._lap()
        self._open.pop()


class _Step(AbstractContextManager[None]):
    def __init__(self, stopwatch: _Stopwatch, name: str) -> None:
        self._stopwatch = stopwatch
        self._name = name

    def __enter__(self) -> None:
        self._stopwatch.begin(self._name)

    def __exit__(self, *_: object) -> None:
        self._stopwatch.end()


_stopwatch: _Stopwatch | None = None


def measure(wanted: bool = True, *, wait: Callable[[], object] = lambda: None) -> None:
    """Begin to measure in this process, from zero, or stop.

    Args:
        wanted: false to stop.
        wait: called at the beginning and the end of every step, to wait for a device that works
            on while the program goes on.
    """
    global _stopwatch
    _stopwatch = _Stopwatch(wait) if wanted else None


def step(name: str) -> AbstractContextManager[None]:
    """Count the block's wall-clock time under a name. Not around a ``yield``."""
    return _NOTHING if _stopwatch is None else _Step(_stopwatch, name)


def take() -> dict[str, float]:
    """Seconds by step since the last time, or since measuring began; empty where nobody does."""
    if _stopwatch is None:
        return {}
    seconds = dict(_stopwatch.seconds)
    _stopwatch.seconds.clear()
    return seconds
