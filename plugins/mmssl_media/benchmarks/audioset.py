"""AudioSet: sounds of videos, with all that is heard in them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

from pydantic import DirectoryPath

from mmssl_media.benchmarks.official import (
    Official,
    Row,
    fail,
    one_line,
    records,
    seconds,
    table,
    within,
)

_CLASSES = "class_labels_indices.csv"

_SPLITS = {
    "balanced_train": ["balanced_train"],
    "unbalanced_train": ["unbalanced_train"],
    "train": ["balanced_train", "unbalanced_train"],
    "eval": ["eval"],
}

# An id has eleven characters. Before it some tools write a Y, behind it the seconds.
_NAMED = re.compile(r"(?:(.{11})|Y(.{11}))(?:_[\d_.]*)?", re.DOTALL)


class AudioSet(Official):
    """AudioSet: clips of 10 seconds from videos on the web, 527 classes, several to a clip.

    Read are ``class_labels_indices.csv``, ``balanced_train_segments.csv``,
    ``unbalanced_train_segments.csv`` and ``eval_segments.csv`` in `path`, and the clips anywhere
    below it: video or sound files that are cut to the segments, ``<id>``, ``Y<id>`` or
    ``<id>_<start>_<end>`` with any ending. Where the folder of a split's name exists, only that
    is looked through. Of a video and a sound of one name, the video is taken. A sample's id is
    the video's. Classes are in the official order, by their display names.

    Videos that are no longer on the web are normal: what is listed and not there is left out, and
    how much that is is said when a run begins.

    Args:
        path: the folder with lists and clips.
        split: "train" is balanced_train and unbalanced_train together.
    """

    columns = ("labels", "id")
    kinds = ("video", "audio")
    source = "is `path` the folder of the clips, and are they named by the videos' ids?"
    partial = True

    def __init__(
        self,
        *,
        path: DirectoryPath,
        split: Literal["balanced_train", "unbalanced_train", "train", "eval"],
    ) -> None:
        source = "it is published by itself, beside the other lists"
        self._classes_file = within(path, _CLASSES, source=source)
        self._lists = [
            within(path, f"{name}_segments.csv", source=source) for name in _SPLITS[split]
        ]
        clips = within(path, split, f"{split}_segments", ".", source=source)
        super().__init__(self._lists[-1], clips)

    def _key(self, path: str) -> str:
        stem = super()._key(path)
        found = _NAMED.fullmatch(stem)
        return (found[1] or found[2]) if found else stem

    @cached_property
    def _names(self) -> dict[str, str]:
        """The classes' names by their machine ids, in the order of their numbers."""
        found = {}
        rows = table(self._classes_file, "index", "mid", "display_name")
        for number, (index, mid, name) in rows:
            if not index.isdigit():
                fail(self._classes_file, number, f"index: {index!r} is no class's number")
            # What would separate classes in a list is no part of a name.
            found[mid] = int(index), one_line(name).replace(";", ",")
        return {mid: name for mid, (_, name) in sorted(found.items(), key=lambda item: item[1])}

    def _class_names(self) -> Sequence[str]:
        return list(self._names.values())

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        return self._once(self._segments())

    def _segments(self) -> Iterator[Row]:
        for file in self._lists:
            for number, values in records(file, comment="#"):
                if len(values) != 4:
                    fail(file, number, f"{len(values)} values instead of 4: id, start, end, labels")
                video, start, end, mids = values
                if seconds(start) is None or seconds(end) is None:
                    fail(file, number, f"{start!r} to {end!r} are no seconds of a video")
                try:
                    names = [self._names[mid.strip()] for mid in mids.split(",")]
                except KeyError as error:
                    message = f"{error.args[0]!r} is not in {self._classes_file.name}"
                    fail(file, number, message)
                yield video, [";".join(names), video]
