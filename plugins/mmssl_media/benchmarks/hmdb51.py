"""HMDB51: actions in videos from films and from the web."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import DirectoryPath, Field

from mmssl.errors import UserError
from mmssl_media.benchmarks.official import Official, Row, fail, in_folder, lines, within

_FOLDER = "testTrainMulti_7030_splits"
_SPLITS = "test_train_splits.rar contains it"
_VIDEOS = "hmdb51_org.rar contains them, as a .rar for each class"

# The numbers after the names in the lists; videos with 0 are not used in a division.
_USES = {"0": None, "1": "train", "2": "test"}


class HMDB51(Official):
    """HMDB51: 6,766 videos of 51 actions; three times 70 for training and 30 for test a class.

    Read are ``testTrainMulti_7030_splits/<class>_test_split<fold>.txt`` and the videos,
    ``<class>/<name>.avi`` in the folder ``videos`` or ``hmdb51_org``, or in `path` itself.
    Classes are in alphabetical order.

    Args:
        path: the folder with both.
        split: "train" or "test".
        fold: which of the three divisions, from 1 to 3.
    """

    columns = ("label",)
    source = _VIDEOS

    def __init__(
        self,
        *,
        path: DirectoryPath,
        split: Literal["train", "test"],
        fold: Annotated[int, Field(ge=1, le=3)] = 1,
    ) -> None:
        self._split = split
        folder = within(path, _FOLDER, source=_SPLITS)
        ending = f"_test_split{fold}.txt"
        self._lists = {
            file.name.removesuffix(ending): file for file in sorted(folder.glob(f"*{ending}"))
        }
        if not self._lists:
            raise UserError(f"{folder}: has no <class>{ending}; {_SPLITS}")
        super().__init__(folder, within(path, "videos", "hmdb51_org", ".", source=_VIDEOS))

    def _class_names(self) -> Sequence[str]:
        return sorted(self._lists)

    def _key(self, path: str) -> str:
        return in_folder(path)

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        for label, file in sorted(self._lists.items()):
            for number, line in lines(file):
                name, _, use = line.rpartition(" ")
                if not name or use not in _USES:
                    fail(file, number, f"{line!r} is no video's name and 0, 1 or 2")
                if _USES[use] == self._split:
                    yield in_folder(f"{label}/{name.strip()}"), [label]
