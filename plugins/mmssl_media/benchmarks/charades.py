"""Charades: what people do at home."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

from pydantic import DirectoryPath

from mmssl.errors import UserError
from mmssl_media.benchmarks.official import Official, Row, fail, lines, seconds, table, within

_ANNOTATIONS = "Charades.zip contains it"
_VIDEOS = ("Charades_v1_480", "Charades_v1", "videos")
_CLASS = re.compile(r"(c\d+)\s+(\S.*)")


class Interval(NamedTuple):
    """Something that is done in a video, and when: in seconds."""

    action: str
    start: float
    end: float


def intervals(text: str) -> list[Interval]:
    """What the column ``actions`` lists: ``c092 11.90 21.20;c147 0.00 12.60``.

    Raises:
        ValueError: a part is no class and two times.
    """
    found = []
    for part in filter(None, map(str.strip, text.split(";"))):
        values = part.split()
        start, end = map(seconds, values[1:]) if len(values) == 3 else (None, None)
        if start is None or end is None:
            raise ValueError(f"{part!r} is no class and two times in seconds")
        found.append(Interval(values[0], start, end))
    return found


class Charades(Official):
    """Charades: 9,848 videos of 30 seconds on average, 157 actions, several to a video.

    Read are ``Charades_v1_classes.txt``, ``Charades_v1_train.csv`` and ``Charades_v1_test.csv``,
    and the videos, ``Charades_v1_480/<id>.mp4`` (or ``Charades_v1``, or ``videos``). Classes are
    in the official order, c000 to c156. When in a video its actions happen is in the field
    ``actions``, as in the official table: see `intervals`. A video without actions counts as not
    labelled, as it does in the official evaluation.

    Args:
        path: the folder with lists and videos.
        split: "train" or "test".
    """

    columns = ("labels", "id", "actions")
    source = "Charades_v1_480.zip contains them"

    def __init__(self, *, path: DirectoryPath, split: Literal["train", "test"]) -> None:
        self._classes_file = within(path, "Charades_v1_classes.txt", source=_ANNOTATIONS)
        self._list = within(path, f"Charades_v1_{split}.csv", source=_ANNOTATIONS)
        videos = within(path, *_VIDEOS, source="Charades_v1_480.zip contains it")
        super().__init__(self._list, videos)

    @cached_property
    def _names(self) -> dict[str, str]:
        """The classes' names by their numbers, ``c000``."""
        names = {}
        for number, line in lines(self._classes_file):
            found = _CLASS.fullmatch(line)
            if found is None:
                fail(self._classes_file, number, f"{line!r} is no number (c000) and name")
            names[found[1]] = found[2].replace(";", ",")
        if not names:
            raise UserError(f"{self._classes_file}: names no classes")
        return dict(sorted(names.items()))

    def _class_names(self) -> Sequence[str]:
        return list(self._names.values())

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        for number, (video, actions) in table(self._list, "id", "actions"):
            try:
                found = intervals(actions)
            except ValueError as error:
                fail(self._list, number, f"actions: {error}")
            unknown = [one.action for one in found if one.action not in self._names]
            if unknown:
                fail(self._list, number, f"{unknown[0]!r} is not in {self._classes_file.name}")
            names = dict.fromkeys(self._names[one.action] for one in found)
            yield video, [";".join(names), video, actions]
