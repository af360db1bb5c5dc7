"""A dataset that makes its own videos, once, in a cache folder."""

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mmssl import Dataset, Sample, UserError
from mmssl.data.cache import cache_folder
from mmssl.data.cores import cores
from mmssl.training.progress import Progress
from mmssl_media.synthetic_captions import captions
from mmssl_media.synthetic_clips import (
    CLASSES,
    Format,
    draw_frames,
    draw_sound,
    label_of,
    write,
)

# Raise it when clips come to look or sound otherwise: old caches are then left alone.
_VERSION = 1


class Synthetic(Dataset):
    """Short mp4 files (H.264 and AAC) of eight classes, made from a seed.

    Sight and sound of a video share its class and nothing else, so that one can be learned from
    the other. The fields ``text`` and ``texts`` say what is seen and heard, in words that vary.
    Files are written once, to ``$MMSSL_CACHE`` or ``~/.cache/mmssl``.

    Args:
        videos: number of videos; half a second of work for about thirty.
        split: "train" and "test" have no video in common.
        seed: what all videos are drawn from.
        side: height and width in pixels, even.
        fps: frames per second.
        seconds: length of a video.
        rate: samples of sound per second.
    """

    def __init__(
        self,
        *,
        videos: Annotated[int, Field(gt=0)] = 800,
        split: Literal["train", "test"] = "train",
        seed: Annotated[int, Field(ge=0)] = 0,
        side: Annotated[int, Field(ge=16, le=1024, multiple_of=2)] = 48,
        fps: Annotated[int, Field(gt=0, le=120)] = 12,
        seconds: Annotated[float, Field(ge=0.5, le=600)] = 2.5,
        rate: Annotated[int, Field(ge=8000, le=96_000)] = 16_000,
    ) -> None:
        self.classes = [clip_class.name for clip_class in CLASSES]
        self._videos = videos
        self._format = Format(side, fps, seconds, rate)
        # Streams of random numbers of the two splits are far apart.
        self._seed = 2 * seed + (split == "test")
        drawn_from = [_VERSION, self._seed, side, fps, seconds, rate]
        self.folder = folder_of("synthetic", split, drawn_from)

    def __len__(self) -> int:
        return self._videos

    def sample(self, index: int) -> Sample:
        """The video at ``index``."""
        path = self._path(index)
        label = label_of(self._seed, index, len(CLASSES))
        texts = captions(self._seed, index, label, others=4)
        fields = {"text": texts[0], "texts": json.dumps(texts)}
        return Sample(id=path.name, media=str(path), label=label, fields=fields)

    def materialise(self, progress: Progress) -> None:
        """Write the videos that are missing, on all cores."""
        write_missing([self._path(i) for i in range(len(self))], self._write, progress)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.mp4"

    def _write(self, index: int) -> None:
        label = label_of(self._seed, index, len(CLASSES))
        frames = draw_frames(self._format, self._seed, index, label)
        sound = draw_sound(self._format, self._seed, index, label)
        write(self._path(index), self._format, frames, sound)


def folder_of(dataset: str, split: str, drawn_from: Sequence[float]) -> Path:
    """Where made-up videos are kept: another folder for each list of what they are drawn from."""
    digest = hashlib.blake2b(json.dumps(list(drawn_from)).encode(), digest_size=6).hexdigest()
    return cache_folder() / dataset / f"{split}-{digest}"


def write_missing(
    paths: Sequence[Path], write_one: Callable[[int], None], progress: Progress
) -> None:
    """Write the videos that are missing, on all cores.

    Args:
        paths: of all videos, in one folder.
        write_one: writes the video of a row; it is pickled.
        progress: who watches.

    Raises:
        UserError: the folder cannot be made, or a writer died.
    """
    folder = paths[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder} ({error.strerror}): set MMSSL_CACHE to a folder that can be "
            "written"
        ) from error
    missing = [row for row, path in enumerate(paths) if not path.is_file()]
    if not missing:
        return
    # fork: the writers need none of torch, which a fresh interpreter would import first.
    with (
        progress.task("writing videos", len(paths), len(paths) - len(missing)) as advance,
        ProcessPoolExecutor(
            min(cores(), len(missing)),
            mp_context=multiprocessing.get_context("fork"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        ) as pool,
    ):
        try:
            for _ in pool.map(write_one, missing, chunksize=8):
                advance()
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that wrote videos to {folder} died; is there memory and disk space? "
                "Run the same command to go on"
            ) from error
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
