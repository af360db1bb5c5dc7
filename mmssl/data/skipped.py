"""The ledger of samples that could not be read, and word of modalities that are not there."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from mmssl.contracts import Split
from mmssl.data.loading import Loaded, Unreadable
from mmssl.errors import UserError


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ledger, ``split``, ``row``, ``id`` and ``reason``; none without a file."""
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            with suppress(ValueError):  # a process was killed while writing the line
                yield json.loads(line)


class Skipped:
    """Counts unreadable samples, names each once, and stops the run when they are too many.

    Of several ranks each finds others; `pending` and `learn` are how they tell each other.

    Args:
        path: ``skipped.jsonl`` of the run: one line for each sample, with its reason. What an
            earlier process of the same run found is read back.
        sizes: the number of samples by split.
        max_bad: the largest tolerated share of a split's samples.
        writes: is this the rank that writes the file?
    """

    def __init__(
        self, path: Path, sizes: Mapping[Split, int], max_bad: float, *, writes: bool = True
    ) -> None:
        #: What this rank found since it was last emptied.
        self.pending: list[tuple[Split, Unreadable]] = []
        self._path = path
        self._writes = writes
        self._sizes = dict(sizes)
        self._max_bad = max_bad
        self._rows: dict[Split, set[int]] = {split: set() for split in sizes}
        for record in read_ledger(path):
            self._rows.setdefault(record["split"], set()).add(record["row"])

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def __call__(self, split: Split, found: Unreadable) -> None:
        """Note an unreadable sample.

        Raises:
            UserError: more than ``max_bad`` of the split's samples are unreadable.
        """
        if found.row not in self._rows[split]:
            self.pending.append((split, found))
        self.learn(split, found)

    def learn(self, split: Split, found: Unreadable) -> None:
        """Note what another rank found, as if this one had."""
        rows = self._rows[split]
        if found.row not in rows:
            rows.add(found.row)
            if self._writes:
                self._write(split, found)
        size = self._sizes[split]
        if len(rows) > self._max_bad * size:
            raise UserError(
                f"{len(rows)} of {size} {split} samples cannot be read, more than data.max_bad "
                f"({self._max_bad:.1%}) allows; the last was {found.id}: {found.reason}. All are "
                f"listed in {self._path}"
            )

    def _write(self, split: Split, found: Unreadable) -> None:
        record = {"split": split, "row": found.row, "id": found.id, "reason": found.reason}
        with open(self._path, "ab+") as file:
            torn = file.tell() > 0 and not self._ends_whole(file)
            line = json.dumps(record).encode() + b"\n"
            file.write(b"\n" * torn + line)

    @staticmethod
    def _ends_whole(file: BinaryIO) -> bool:
        """Does the file end with a line's end, or was a process killed while writing one?"""
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


class Lacking:
    """Says, once of each modality, that a whole batch lacks it: a column may have another name.

    Args:
        say: shows a line to whoever watches.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told: set[str] = set()

    def __call__(self, loaded: Loaded) -> None:
        """Look at a batch."""
        for name, why in loaded.lacking.items():
            if name not in self._told:
                self._told.add(name)
                count = len(loaded.batch)
                self._say(f"none of {count} samples in a batch has {name}: the first is {why}")
