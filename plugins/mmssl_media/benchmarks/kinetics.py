"""Kinetics, and the part of it that can be heard."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import DirectoryPath

from mmssl_media.benchmarks.official import Official, Row, fail, seconds, table, within

# What some lists say of a clip whose place in its video is not known.
_UNKNOWN = ("-1", "-1")

_NAMES = {"train": ["train"], "val": ["val", "validate", "validation"], "test": ["test"]}

#: The classes of Kinetics-Sounds, in alphabetical order.
SOUNDS = [
    "blowing nose",
    "blowing out candles",
    "bowling",
    "chopping wood",
    "dribbling basketball",
    "laughing",
    "mowing lawn",
    "playing accordion",
    "playing bagpipes",
    "playing bass guitar",
    "playing clarinet",
    "playing drums",
    "playing guitar",
    "playing harmonica",
    "playing keyboard",
    "playing organ",
    "playing piano",
    "playing saxophone",
    "playing trombone",
    "playing trumpet",
    "playing violin",
    "playing xylophone",
    "ripping paper",
    "shoveling snow",
    "shuffling cards",
    "singing",
    "stomping grapes",
    "strumming guitar",
    "tap dancing",
    "tapping guitar",
    "tapping pen",
    "tickling",
]


class Kinetics(Official):
    """Kinetics-400, -600 or -700: clips of 10 seconds, cut from videos on the web.

    Read are the official lists, ``train.csv``, ``val.csv`` (or ``validate.csv``) and ``test.csv``
    with the columns label, youtube_id, time_start, time_end and split, in `path` or in its folder
    ``annotations``; and the clips, ``<youtube_id>_<start>_<end>.mp4`` with six digits for either
    second, anywhere below the folder ``train``, ``val`` (``validate``, ``validation``) or
    ``test``, or else below ``videos``, or else below `path`. A sample's id is that name.

    Videos that are no longer on the web are normal: what is listed and not there is left out, and
    how much that is is said when a run begins. Classes are those of all lists, in alphabetical
    order, so that it is the lists that make it 400, 600 or 700. Clips that a list gives no class
    (those of some test sets) have none.

    Args:
        path: the folder with lists and clips.
        split: "train", "val" or "test".
    """

    columns = ("label", "id")
    source = "is `path` the folder of the clips, and are they named so?"
    partial = True

    def __init__(self, *, path: DirectoryPath, split: Literal["train", "val", "test"]) -> None:
        source = "the official archive, such as kinetics700.tar.gz, contains it"
        self._lists = path / "annotations" if (path / "annotations").is_dir() else path
        self._list = within(self._lists, *(f"{name}.csv" for name in _NAMES[split]), source=source)
        super().__init__(self._list, within(path, *_NAMES[split], "videos", ".", source=source))

    @cached_property
    def _labels(self) -> set[str]:
        """The classes of all lists that are there."""
        names = [name for several in _NAMES.values() for name in several]
        files = (self._lists / f"{name}.csv" for name in names)
        return {label for file in files if file.is_file() for _, label in _labels_in(file)} - {""}

    def _class_names(self) -> Sequence[str]:
        return sorted(self._labels)

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        return self._once(self._clips())

    def _clips(self) -> Iterator[Row]:
        unknown = 0
        clips = table(self._list, "youtube_id", "time_start", "time_end", optional="label")
        for number, (video, start, end, label) in clips:
            if (start.strip(), end.strip()) == _UNKNOWN:
                unknown += 1
                continue
            first, last = seconds(start), seconds(end)
            if first is None or last is None or last <= first:
                fail(self._list, number, f"{start!r} to {end!r} are no seconds of a video")
            name = f"{video}_{int(first):06d}_{int(last):06d}"
            yield name, [label, name]
        if unknown:
            self._said.append(
                f"{self._list}: {unknown:,} rows have no time but -1, and are left out"
            )


class KineticsSounds(Kinetics):
    """Kinetics-Sounds: the actions of Kinetics that are seen as well as heard, 32 classes.

    The paper that made it (Arandjelovic and Zisserman, 2017) chose 34 classes of Kinetics before
    that was published; as in later work, these are the 32 that the published Kinetics-400, and
    -700, have: playing accordion, bagpipes, bass guitar, clarinet, drums, guitar, harmonica,
    keyboard, organ, piano, saxophone, trombone, trumpet, violin and xylophone; blowing nose,
    blowing out candles, bowling, chopping wood, dribbling basketball, laughing, mowing lawn,
    ripping paper, shoveling snow, shuffling cards, singing, stomping grapes, strumming guitar,
    tap dancing, tapping guitar, tapping pen and tickling.

    Lists and clips are those of Kinetics: see the dataset ``kinetics``.

    Args:
        path: the folder with lists and clips.
        split: "train", "val" or "test".
    """

    def _class_names(self) -> Sequence[str]:
        return SOUNDS

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        return (row for row in super()._rows(files) if row[1][0] in SOUNDS)


def _labels_in(file: Path) -> Iterator[tuple[int, str]]:
    """Every row's class."""
    return ((number, values[-1]) for number, values in table(file, optional="label"))
