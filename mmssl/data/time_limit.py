"""A limit on the time that one sample may take to be read."""

import faulthandler
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import TextIO

from mmssl.errors import BadMedia

# Who does not come back from a library's code so long after the limit is ended with its process.
_GRACE = 10.0


@contextmanager
def time_limit(seconds: float, *, expendable: bool = False) -> Iterator[None]:
    """Raise `BadMedia` within the block when it takes longer.

    The exception comes between two steps of Python. In a thread other than the main one, and
    where there are no alarm signals (Windows), there is no limit.

    Args:
        seconds: of wall-clock time.
        expendable: the process may be ended when it is stuck within a library, where no exception
            reaches it; whoever started it goes on without the sample.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if seconds == math.inf or not main_thread or not hasattr(signal, "SIGALRM"):
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise BadMedia(f"reading it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    # Again and again: where the first exception lands in a destructor, Python drops it.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    if expendable:
        # A thread of C that needs no leave of Python's to end the process.
        faulthandler.dump_traceback_later(seconds + _GRACE, exit=True, file=_nowhere())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if expendable:
            faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@cache
def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # stays open as long as the process
