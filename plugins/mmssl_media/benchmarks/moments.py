"""Moments in Time: events of three seconds."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

from pydantic import DirectoryPath

from mmssl_media.benchmarks.official import (
    Official,
    Row,
    fail,
    in_folder,
    lines,
    records,
    within,
)

_FILES = {
    "train": ("trainingSet.csv", "training"),
    "val": ("validationSet.csv", "validation"),
}
_ARCHIVE = "Moments_in_Time_Raw.zip contains it"


class MomentsInTime(Official):
    """Moments in Time: 800,000 videos of 3 seconds, 339 classes (305 in the second version).

    Read are ``moments_categories.txt`` (``name,number``), ``trainingSet.csv`` and
    ``validationSet.csv`` (``class/name.mp4,class,...``, without a header) and the videos,
    ``training/<class>/<name>.mp4`` and ``validation/<class>/<name>.mp4``. Classes are in the
    order of their numbers.

    Args:
        path: the folder with lists and videos.
        split: "train" or "val".
    """

    columns = ("label",)
    source = "Moments_in_Time_Raw.zip contains them"

    def __init__(self, *, path: DirectoryPath, split: Literal["train", "val"]) -> None:
        name, folder = _FILES[split]
        self._categories = within(path, "moments_categories.txt", source=_ARCHIVE)
        self._list = within(path, name, source=_ARCHIVE)
        super().__init__(self._list, within(path, folder, source=_ARCHIVE))

    @cached_property
    def _names(self) -> dict[str, int]:
        """Numbers of the classes by name."""
        names = {}
        for number, line in lines(self._categories):
            name, _, index = line.rpartition(",")
            if not (name and index.strip().isdigit()):
                fail(self._categories, number, f"{line!r} is no name and number of a class")
            names[name] = int(index)
        return names

    def _class_names(self) -> Sequence[str]:
        return sorted(self._names, key=self._names.__getitem__)

    def _key(self, path: str) -> str:
        return in_folder(path)

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        for number, values in records(self._list):
            if len(values) < 2:
                fail(self._list, number, "is no path and class")
            if values[1] not in self._names:
                fail(self._list, number, f"{values[1]!r} is not in {self._categories.name}")
            yield in_folder(values[0]), [values[1]]
