"""DCASE: acoustic scenes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import DirectoryPath

from mmssl.errors import UserError
from mmssl_media.benchmarks.official import Official, Row, within

_FOLDERS = {"train": "scenes_stereo", "test": "scenes_stereo_testset"}

_CLASSES = [
    "bus",
    "busystreet",
    "office",
    "openairmarket",
    "park",
    "quietstreet",
    "restaurant",
    "supermarket",
    "tube",
    "tubestation",
]

_NAME = re.compile(r"([a-z]+)\d+")


class DCASE2014(Official):
    """DCASE: 10 acoustic scenes, for each of them 10 sounds of 30 seconds in training and test.

    These are the scenes of the first DCASE challenge, of 2013, that papers on sound from video
    (SoundNet, L3-Net, AVTS, XDC) call DCASE or DCASE2014. As they do, training is on the public
    development set, ``scenes_stereo/``, and the test on the evaluation set,
    ``scenes_stereo_testset/``. A sound is named by its class: ``bus01.wav``, ``tubestation10.wav``.

    Args:
        path: the folder with both folders.
        split: "train" or "test".
    """

    columns = ("label",)
    kinds = ("audio",)

    def __init__(self, *, path: DirectoryPath, split: Literal["train", "test"]) -> None:
        name = _FOLDERS[split]
        folder = within(path, name, source=f"{name}.zip contains it")
        super().__init__(folder, folder)

    def _class_names(self) -> Sequence[str]:
        return _CLASSES

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        for key in files:
            found = _NAME.fullmatch(key)
            if found is None or found[1] not in _CLASSES:
                raise UserError(
                    f"{self.root}: {files[key]} is not named by a class, as bus01.wav is"
                )
            yield key, [found[1]]
