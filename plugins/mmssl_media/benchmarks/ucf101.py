"""UCF101: actions in short videos."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import DirectoryPath, Field

from mmssl_media.benchmarks.official import Official, Row, fail, in_folder, lines, within

_LISTS = "UCF101TrainTestSplits-RecognitionTask.zip contains it"


class UCF101(Official):
    """UCF101: 13,320 videos of 101 actions, divided three times into training and test.

    Read are ``ucfTrainTestlist/`` (``classInd.txt``, ``trainlist01.txt``, ``testlist01.txt``, ...)
    and the videos, ``UCF-101/<class>/<name>.avi``. Classes are in the order of ``classInd.txt``.

    Args:
        path: the folder with both.
        split: "train" or "test".
        fold: which of the three divisions, from 1 to 3.
    """

    columns = ("label",)
    source = "UCF101.rar contains them"

    def __init__(
        self,
        *,
        path: DirectoryPath,
        split: Literal["train", "test"],
        fold: Annotated[int, Field(ge=1, le=3)] = 1,
    ) -> None:
        folder = within(path, "ucfTrainTestlist", source=_LISTS)
        self._classes_file = within(folder, "classInd.txt", source=_LISTS)
        self._list = within(folder, f"{split}list{fold:02d}.txt", source=_LISTS)
        videos = within(path, "UCF-101", "videos", source="UCF101.rar contains it")
        super().__init__(self._list, videos)

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names of classes by their numbers."""
        names = {}
        for number, line in lines(self._classes_file):
            index, _, name = line.partition(" ")
            if not (index.isdigit() and name):
                fail(self._classes_file, number, f"{line!r} is no number and name of a class")
            names[index] = name.strip()
        return dict(sorted(names.items(), key=lambda item: int(item[0])))

    def _class_names(self) -> Sequence[str]:
        return list(self._names.values())

    def _key(self, path: str) -> str:
        return in_folder(path)

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        classes = set(self._names.values())
        for number, line in lines(self._list):
            # Lists for training give the class's number after the name.
            name, _, index = line.rpartition(" ")
            if not (name and index.isdigit()):
                name, index = line, ""
            folder = name.rpartition("/")[0]
            if folder not in classes or (index and self._names.get(index) != folder):
                fail(self._list, number, f"{line!r} names no class of {self._classes_file.name}")
            yield in_folder(name), [folder]
