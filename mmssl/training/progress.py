"""What long work tells whoever watches it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class Advance(Protocol):
    """Moves a task forward."""

    def __call__(self, count: int = 1, **figures: str) -> None:
        """``count`` more units are done; ``figures`` are shown beside the bar."""


class Progress(Protocol):
    """A terminal, a log, or nobody."""

    def task(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Long work of ``total`` units, of which ``done`` were done by an earlier process."""

    def say(self, text: str) -> None:
        """A line worth reading."""

    def round(self, number: int, total: int, figures: Mapping[str, Any]) -> None:
        """A round has begun with these figures."""


def _ignore(count: int = 1, **figures: str) -> None:
    """Nobody watches."""


class Silent:
    """Nobody watches: for tests and library use."""

    def task(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Say nothing."""
        return nullcontext(_ignore)

    def say(self, text: str) -> None:
        """Say nothing."""

    def round(self, number: int, total: int, figures: Mapping[str, Any]) -> None:
        """Say nothing."""
