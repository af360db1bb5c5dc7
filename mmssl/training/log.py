"""``log.jsonl``: the record of a run, one JSON object a line, exact across kills."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from mmssl.contracts import Tracker
from mmssl.errors import UserError
from mmssl.training.checkpoints import storable


def _unheard(text: str) -> None:
    """Nobody watches."""


class Log:
    """Writes records to ``log.jsonl`` and to the trackers.

    A checkpoint stores the log's length; a resumed run cuts off what came after it, so that the
    log of a killed run reads like that of one never killed.

    Args:
        folder: the run's; None on ranks that keep no record.
        trackers: where records go besides, by the names that their states have.
        length: bytes of the log that belong to the checkpoint; 0 to begin.
        step: global step of the checkpoint.
        states: of trackers, as the checkpoint has them, by name; a new tracker has none.
        say: hears of errors of trackers that are not raised, since another one is.
    """

    def __init__(
        self,
        folder: Path | None,
        trackers: Mapping[str, Tracker],
        *,
        length: int = 0,
        step: int = 0,
        states: Mapping[str, Any] = MappingProxyType({}),
        say: Callable[[str], None] = _unheard,
    ) -> None:
        self._file: BinaryIO | None = None
        self._trackers = trackers if folder else {}
        self._states = {name: deepcopy(states[name]) for name in self._trackers if name in states}
        self._say = say
        if folder:
            self._file = open(folder / "log.jsonl", "ab")  # noqa: SIM115 - closed in close()
            self._file.truncate(min(length, self._file.seek(0, os.SEEK_END)))
            for name, tracker in trackers.items():
                if name in states:
                    tracker.load_state_dict(states[name])
                tracker.open(folder, step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; numbers that JSON does not know become null."""
        if self._file is None:
            return
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        self._file.write(json.dumps(plain, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        for tracker in self._trackers.values():
            tracker.track(plain)

    def states(self) -> tuple[dict[str, Any], dict[str, Exception]]:
        """Of the trackers, by name: what a checkpoint keeps of them, and whose did not tell.

        Of those it is what they told last, if anything: none may cost the checkpoint.
        """
        errors = {}
        for name, tracker in self._trackers.items():
            try:
                state = storable(tracker.state_dict(), f"state_dict() of the tracker {name!r}")
                self._states[name] = deepcopy(state)  # trackers may go on filling what they gave
            except Exception as error:
                errors[name] = error
        return dict(self._states), errors

    def length(self) -> int:
        """Bytes written so far, safely on the disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def tell(self, errors: Mapping[str, Exception]) -> None:
        """Say whose errors they are, where something else ends the run."""
        for name, error in errors.items():
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._say(f"tracker {name}: {kind}{error}")

    def raise_first(self, errors: Mapping[str, Exception]) -> None:
        """Raise the first, if there is any; the others are said."""
        if errors:
            first = next(iter(errors))
            self.tell({name: error for name, error in errors.items() if name != first})
            raise errors[first]

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close all if the block fails: its error stays, and those of trackers are said."""
        try:
            yield
        except BaseException:
            self.tell(self._close())
            raise

    def close(self) -> None:
        """Close the file and the trackers, each whatever the others do.

        Raises:
            Exception: the first of a tracker's.
        """
        self.raise_first(self._close())

    def _close(self) -> dict[str, Exception]:
        if self._file is not None:
            self._file.close()
        errors = {}
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                errors[name] = error
        return errors


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log so far; a line cut by a kill is left out."""
    records = []
    path = folder / "log.jsonl"
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError):
            break
    return records
