"""Stopping on a signal without losing anything."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What schedulers are told to send some time before they end a job.
AGAIN = signal.SIGUSR2


class Interrupted(Exception):
    """A signal asked the run to stop; its state is in a checkpoint.

    Args:
        again: did it ask to be started again, as before a time limit or when preempted?
    """

    def __init__(self, *, again: bool) -> None:
        super().__init__("stopped to be started again" if again else "stopped")
        self.again = again


class StopRequests:
    """What signals have asked of this process.

    Attributes:
        level: 0 for nothing, 1 to stop, 2 to stop and be started again.
    """

    level: int = 0

    def is_set(self) -> bool:
        """Has any?"""
        return self.level > 0

    def interrupted(self) -> Interrupted:
        """What is raised once the state is safe."""
        return Interrupted(again=self.level > 1)


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Note SIGINT, SIGTERM and SIGUSR2 instead of dying of them; a second Ctrl-C stops at once.

    Outside the main thread, where no signals arrive, none is ever noted.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return

    def request(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and requests.is_set():
            raise KeyboardInterrupt
        # A cluster that preempts may send SIGTERM, too, before or after the other.
        requests.level = max(requests.level, 2 if number == AGAIN else 1)

    noted = (signal.SIGINT, signal.SIGTERM, AGAIN)
    before = {number: signal.signal(number, request) for number in noted}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
