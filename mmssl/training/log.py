"""``log.jsonl``: the record of a run, one JSON object a line, exact across kills."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from mmssl.contracts import Tracker
from mmssl.training.checkpoints import storable


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
    """

    def __init__(
        self,
        folder: Path | None,
        trackers: Mapping[str, Tracker],
        *,
        length: int = 0,
        step: int = 0,
        states: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._file: BinaryIO | None = None
        self._trackers = trackers if folder else {}
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

    def states(self) -> dict[str, Any]:
        """Of the trackers, by name: what a checkpoint keeps of them."""
        return {
            name: storable(tracker.state_dict(), f"state_dict() of the tracker {name!r}")
            for name, tracker in self._trackers.items()
        }

    def length(self) -> int:
        """Bytes written so far, safely on the disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file and the trackers."""
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers.values():
            tracker.close()


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
