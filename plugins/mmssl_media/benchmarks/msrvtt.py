"""MSR-VTT: videos with sentences, for retrieval."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Literal

from pydantic import DirectoryPath

from mmssl.errors import UserError
from mmssl_media.benchmarks.official import Official, Row, read_json, table, within

_TEST = "MSRVTT_JSFUSION_test.csv"
_TRAIN = ("MSRVTT_data.json", "train_val_videodatainfo.json")


class MSRVTT(Official):
    """MSR-VTT in the division 1k-A: 1,000 videos with a sentence each are the test.

    Read are ``MSRVTT_JSFUSION_test.csv`` (columns video_id and sentence, among others), for
    training also ``MSRVTT_data.json`` or ``train_val_videodatainfo.json``, and the videos,
    ``video<number>`` with any ending anywhere below ``videos``, or else below `path`. Training is
    on every sentence, 20 to a video, of the videos that are not in the test: 9,000 of the former
    file, 7,010 less the test's of the latter. The sentence is the field ``text``; there are no
    classes. A sample's id is the video's in the test, ``<video>/<sen_id>`` in training.

    Args:
        path: the folder with annotation and videos.
        split: "train" or "test".
    """

    columns = ("id", "text")
    source = "MSRVTT.zip, or train_val_videos.zip and test_videos.zip, contain them"

    def __init__(self, *, path: DirectoryPath, split: Literal["train", "test"]) -> None:
        folders = [path / name for name in (".", "annotation", "csv")]
        self._test = within(
            next((folder for folder in folders if (folder / _TEST).is_file()), path),
            _TEST,
            source="it is the list of the division 1k-A, which many authors publish",
        )
        self._file = self._test
        if split == "train":
            self._file = within(
                next((f for f in folders if any((f / name).is_file() for name in _TRAIN)), path),
                *_TRAIN,
                source="MSRVTT.zip, or train_val_annotation.zip, contains it",
            )
        super().__init__(self._file, within(path, "videos", ".", source=self.source))

    @cached_property
    def _tests(self) -> dict[str, str]:
        """The sentences of the test by video."""
        return {video: text for _, (video, text) in table(self._test, "video_id", "sentence")}

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        if self._file == self._test:
            for video, text in self._tests.items():
                yield video, [video, text]
            return
        (sentences,) = read_json(self._file, "sentences")
        for number, sentence in enumerate(sentences):
            try:
                video, text = str(sentence["video_id"]), str(sentence["caption"])
                name = f"{video}/{sentence['sen_id']}"
            except (KeyError, TypeError):
                raise UserError(
                    f"{self._file}: sentence {number} has no video_id, sen_id and caption"
                ) from None
            if video not in self._tests:
                yield video, [name, text]
