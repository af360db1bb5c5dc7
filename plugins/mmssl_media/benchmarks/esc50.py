"""ESC-50: environmental sounds."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import DirectoryPath, Field

from mmssl_media.benchmarks.official import Official, Row, fail, table, within

_ARCHIVE = "ESC-50-master.zip contains it"


class ESC50(Official):
    """ESC-50: 2,000 sounds of 5 seconds and 50 classes, in five folds for cross-validation.

    Read are ``meta/esc50.csv`` and the sounds, ``audio/<name>.wav``. Classes are in the order of
    their numbers (``target``).

    Args:
        path: the folder with both.
        split: "test" is the fold, "train" the four others.
        fold: from 1 to 5.
    """

    columns = ("label",)
    kinds = ("audio",)
    source = "ESC-50-master.zip contains them"

    def __init__(
        self,
        *,
        path: DirectoryPath,
        split: Literal["train", "test"],
        fold: Annotated[int, Field(ge=1, le=5)] = 1,
    ) -> None:
        self._split = split
        self._fold = fold
        self._file = within(path, "meta/esc50.csv", source=_ARCHIVE)
        super().__init__(self._file, within(path, "audio", source=_ARCHIVE))

    @cached_property
    def _annotated(self) -> list[tuple[str, int, int, str]]:
        """Name, fold, number and name of the class of each sound."""
        sounds = []
        for number, values in table(self._file, "filename", "fold", "target", "category"):
            name, fold, target, category = values
            if fold not in ("1", "2", "3", "4", "5"):
                fail(self._file, number, f"fold: {fold!r} is no number from 1 to 5")
            if not (target.isascii() and target.isdigit()):
                fail(self._file, number, f"target: {target!r} is no class's number")
            sounds.append((name, int(fold), int(target), category))
        return sounds

    def _class_names(self) -> Sequence[str]:
        names = {target: category for _, _, target, category in self._annotated}
        return [names[target] for target in sorted(names)]

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        for name, fold, _, category in self._annotated:
            if (fold == self._fold) == (self._split == "test"):
                yield self._key(name), [category]
