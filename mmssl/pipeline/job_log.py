"""What a job prints, as it grows."""

from collections.abc import Iterator
from pathlib import Path

# What submitit says of its own steps at the start and the end of every job.
_OF_SUBMITIT = ("submitit INFO ", "submitit WARNING ")


class Tail:
    """The lines of a log that were not yet seen.

    Args:
        path: of the log; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""

    def lines(self, *, whole: bool = True) -> Iterator[str]:
        """New lines, without those of submitit.

        Args:
            whole: keep a last line without end until it has one.
        """
        try:
            with open(self._path, "rb") as file:
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return
        self._position += len(new)
        *found, self._rest = (self._rest + new).split(b"\n")
        if not whole and self._rest:
            found.append(self._rest)
            self._rest = b""
        for line in found:
            text = line.decode(errors="replace")
            if not text.startswith(_OF_SUBMITIT):
                yield text
