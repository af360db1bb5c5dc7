"""YouCook2: recipes, step by step, each with a sentence."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import DirectoryPath

from mmssl.errors import UserError
from mmssl_media.benchmarks.official import Official, Row, read_json, seconds, within

_SUBSETS = {"train": "training", "val": "validation"}
_NAMES = ("youcookii_annotations_trainval.json", "annotations/youcookii_annotations_trainval.json")


class YouCook2(Official):
    """YouCook2: 2,000 videos of recipes, cut into steps that a sentence each describes.

    Read are ``youcookii_annotations_trainval.json`` (in `path` or in its folder ``annotations``)
    and the videos, ``<id>`` with any ending anywhere below ``raw_videos`` or ``videos``, or else
    below `path`. A sample is a step: a span of time of its video, with its sentence as the field
    ``text``. Its id is ``<video>/<number of the step>``. There are no classes.

    Videos that are no longer on the web are normal: steps of which the video is not there are left
    out, and how many these are is said when a run begins.

    Args:
        path: the folder with annotation and videos.
        split: "train" or "val"; retrieval is measured on the latter.
    """

    columns = ("start", "end", "id", "text")
    source = "are they named by the videos' ids?"
    partial = True

    def __init__(self, *, path: DirectoryPath, split: Literal["train", "val"]) -> None:
        source = "youcookii_annotations_trainval.tar.gz contains it"
        self._subset = _SUBSETS[split]
        self._file = within(path, *_NAMES, source=source)
        super().__init__(self._file, within(path, "raw_videos", "videos", ".", source=source))

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        (videos,) = read_json(self._file, "database")
        if not isinstance(videos, dict):
            raise UserError(f"{self._file}: 'database' holds no videos by their ids")
        for video, entry in sorted(videos.items()):
            try:
                if entry["subset"] != self._subset:
                    continue
                steps = [_step(step) for step in entry["annotations"]]
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{self._file}: {video!r} has no subset and annotations, each with a segment "
                    "and a sentence"
                ) from None
            for number, step in enumerate(steps):
                start, end, text = step
                yield video, [start, end, f"{video}/{number}", text]


def _step(step: Any) -> tuple[str, str, str]:
    """Beginning and end in seconds, and what is done."""
    start, end = step["segment"]
    first, last = seconds(start), seconds(end)
    if first is None or last is None or last <= first:
        raise ValueError("segment")
    return str(start), str(end), str(step["sentence"])
