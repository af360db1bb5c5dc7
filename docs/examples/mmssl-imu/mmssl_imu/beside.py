"""A dataset that puts made-up recordings beside another one's videos, once, in a cache folder."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from mmssl import Dataset, Modality, Sample, Storage, UserError
from mmssl.data.cache import cache_folder
from mmssl.data.draws import derive_seed
from mmssl.training.checkpoints import write_atomically
from mmssl.training.progress import Progress
from mmssl_imu.motions import MOTIONS, draw_motion

# Raise it when recordings come to be others: old caches are then left alone.
_VERSION = 1


class Beside(Dataset):
    """The videos of another dataset, each with a made-up recording of motion sensors.

    A recording tells its video's class and nothing else of it: there are eight kinds of motion.
    To try what learns from motion; for your own recordings, give a manifest the column ``imu``.
    Files are written once, to ``$MMSSL_CACHE`` or ``~/.cache/mmssl``.

    Args:
        videos: the other dataset, with at most eight classes.
        seconds: length of a recording.
        rate: measurements a second.
        seed: what all recordings are drawn from.
    """

    def __init__(
        self,
        *,
        videos: Dataset,
        seconds: Annotated[float, Field(gt=0, le=600)] = 2.5,
        rate: Annotated[float, Field(ge=1, le=1000)] = 100.0,
        seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self._videos = videos
        self._seconds = seconds
        self._rate = rate
        self._seed = seed

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        """Those of the videos."""
        return self._videos.classes

    @property
    def readers(self) -> Sequence[Mapping[str, Modality]]:  # type: ignore[override]
        """Those of the videos."""
        return self._videos.readers

    def __len__(self) -> int:
        return len(self._videos)

    def sample(self, index: int) -> Sample:
        """The video of a row, with the field ``imu``."""
        own = self._videos.sample(index)
        return replace(own, fields={**own.fields, "imu": str(self._path(index))})

    def digest(self) -> str:
        """Of the videos, their classes, and what else recordings are drawn from."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        drawn_from = [_VERSION, self._videos.digest(), self._seconds, self._rate, self._seed]
        digest = hashlib.blake2b(repr(drawn_from).encode(), digest_size=16)
        digest.update(self.labels().tobytes())
        return digest.hexdigest()

    def storage(self) -> Storage | None:
        """As the videos lie."""
        return self._videos.storage()

    def labels(self) -> np.ndarray:
        """``[len(self)]`` int32, those of the videos."""
        return self._videos.labels()

    def materialise(self, progress: Progress) -> None:
        """Write videos and recordings that are missing.

        Raises:
            UserError: the videos have no class, or more than there are motions.
        """
        self._videos.materialise(progress)
        if not 1 <= len(self.classes) <= len(MOTIONS):
            raise UserError(
                f"beside: videos have {len(self.classes)} classes, and there are {len(MOTIONS)} "
                "motions to tell them; use a dataset with few classes"
            )
        missing = [row for row in range(len(self)) if not self._path(row).is_file()]
        done = len(self) - len(missing)
        with progress.task("writing recordings", len(self), done) as advance:
            for row in missing:
                self._write(row)
                advance()

    def _path(self, row: int) -> Path:
        return cache_folder() / "imu" / self._digest[:12] / f"{row:06d}.npz"

    def _write(self, row: int) -> None:
        video = self._videos.sample(row)
        if video.label is None:
            raise UserError(f"beside: {video.id} has no class, and recordings are to tell one")
        rng = np.random.default_rng(derive_seed(self._digest, row))
        time, values = draw_motion(video.label, self._seconds, self._rate, rng)

        def write(path: Path) -> None:
            with open(path, "wb") as file:  # a name without .npz would be given one
                np.savez(file, time=time, values=values)

        write_atomically(self._path(row), write)
