"""What works on this machine, and what to do about what does not: ``mmssl doctor``.

Each area is looked at in a process of its own with a time limit, as what is broken may also hang,
or take its process with it: an ``sinfo`` whose controller is down, a GPU library of another driver.
A module of this package looks at one area, and its function ``look`` yields what it finds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

Status = Literal["ok", "warning", "problem"]

#: The areas, in the order in which they are shown; each is a module of this package.
AREAS = ("packages", "plugins", "machine", "disk", "cuda", "ranks", "media", "clustering", "slurm")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: "torch", "disk of runs".
        status: ok; a warning: runs work, but worse or not everywhere; a problem: runs fail.
        found: versions, sizes, reasons.
        advice: what to do; empty where all is well.
    """

    what: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Doing:
    """Said before something that may hang or crash, for the message if it does."""

    what: str


class Area(Protocol):
    """What every module of `AREAS` is."""

    def look(self) -> Iterator[Finding | Doing]:
        """Look, and say what is found as soon as it is."""
