"""Motion sensors as a modality: the part of a recording that a clip covers."""

import os
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmssl import BadMedia, Draws, Media, MissingModality, Modality, UserError, Window
from mmssl_imu.augment import mask_span, roll, rotations
from mmssl_imu.recording import read_recording, resample


class IMU(Modality):
    """Accelerometers, gyroscopes and the like, recorded beside a video.

    A sample's field ``imu`` names the recording, relative to the dataset's folder: an ``.npz`` with
    the arrays ``time [N]`` and ``values [N, channels]``, or a ``.csv`` with a header whose first
    column is the time. Times are seconds on the video's clock, plus `offset`; they may be
    irregular and of any rate. A sample whose field is absent or empty lacks the modality, and so
    does a clip during which no channel was measured.

    Values at `rate` lie on straight lines between measurements at most `max_gap` away. What is
    farther from any, in a gap or beyond the recording's ends, reads as NaN, which is 0 once
    normalised; where `rotate` turns a vector of which some channels are known, the others are
    `mean`. Nothing is filtered: a recording of a much higher rate is better reduced before.

    The whole file is read for every clip: cut long recordings as videos are cut.

    Args:
        channels: of every recording, beside time.
        seconds: length of the clip.
        rate: Hz to which measurements are resampled.
        offset: seconds that the sensor's clock is behind: what it measured at its second 1 belongs
            to second 1 + offset of the video.
        max_gap: seconds that a measurement speaks for.
        mean: of each channel, or of all; subtracted.
        std: of each channel, or of all; divided by.
        rotate: degrees; each three channels are vectors in space, all turned around one random
            axis by an angle uniform in plus or minus this. 180 is any way to wear the sensor.
        scale: values are multiplied by a factor uniform in 1 plus or minus this.
        noise: standard deviation of noise added to normalised values, uniform between 0 and this.
        time_shift: fraction of the clip; it is rolled by a value uniform in plus or minus this.
        time_mask: fraction of the clip; a span of time uniform between 0 and this is set to 0.
        channel_mask: probability of each channel to be set to 0.
    """

    kind = "imu"

    def __init__(
        self,
        *,
        channels: Annotated[int, Field(gt=0)] = 6,
        seconds: Annotated[float, Field(gt=0)] = 2.0,
        rate: Annotated[float, Field(gt=0)] = 50.0,
        offset: float = 0.0,
        max_gap: Annotated[float, Field(gt=0)] = 0.1,
        mean: float | list[float] = 0.0,
        std: Annotated[float, Field(gt=0)] | list[Annotated[float, Field(gt=0)]] = 1.0,
        rotate: Annotated[float, Field(ge=0, le=180)] = 0.0,
        scale: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        noise: Annotated[float, Field(ge=0)] = 0.0,
        time_shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
        time_mask: Annotated[float, Field(ge=0, le=1)] = 0.0,
        channel_mask: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        self.seconds = seconds
        self.rate = rate
        self.offset = offset
        self.max_gap = max_gap
        self.rotate = rotate
        self.scale = scale
        self.noise = noise
        self.time_shift = time_shift
        self.time_mask = time_mask
        self.channel_mask = channel_mask
        self.shape = (channels, round(seconds * rate))
        if self.shape[1] < 1:
            raise UserError(f"imu: {seconds:g} s at {rate:g} Hz are less than a value")
        if rotate and channels % 3:
            raise UserError(
                f"imu: rotate turns vectors of three channels, and there are {channels}"
            )
        self.mean = _column("mean", mean, channels)
        self.std = _column("std", std, channels)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        """``[channels, seconds * rate]`` float32, in the recording's units; NaN is not known.

        The middle of the window, moved to lie within the sample where that is long enough.

        Raises:
            MissingModality: the sample has no recording, or nothing was measured during the clip.
            BadMedia: the recording is damaged, or has another number of channels.
        """
        name = media.sample.fields.get("imu", "").strip()
        if not name:
            raise MissingModality("its field imu names no recording")
        time, values = read_recording(os.path.join(media.sample.root, name))
        channels, length = self.shape
        if values.shape[1] != channels:
            raise BadMedia(f"{name} has {values.shape[1]} channels, not {channels}")
        start = window.centred(self.seconds).start
        start = max(media.start, min(start, media.end - self.seconds))
        at = start + np.arange(length) / self.rate - self.offset
        found, known = resample(time, values, at, self.max_gap)
        if not known.any():
            raise MissingModality(f"{name} has no measurement from {at[0]:g} s to {at[-1]:g} s")
        return torch.from_numpy(np.where(known, found, np.float32(np.nan)))

    def empty(self) -> Tensor:
        """``[channels, seconds * rate]`` float32 zeros."""
        return torch.zeros(self.shape)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        """``[B, channels, seconds * rate]`` float32, augmented and normalised."""
        values = batch.float()
        mean, std = self.mean.to(values.device), self.std.to(values.device)
        gaps = values.isnan()
        values = torch.where(gaps, mean, values)
        if draws is not None and self.rotate:
            vectors = values.unflatten(1, (-1, 3))
            turned = torch.einsum("bij,bvjt->bvit", rotations(draws, self.rotate), vectors)
            values = turned.flatten(1, 2)
            # Known channels are in all three now; of a vector without any, mean was turned.
            gaps = gaps.unflatten(1, (-1, 3)).all(2).repeat_interleave(3, 1)
        values = ((values - mean) / std).masked_fill(gaps, 0.0)
        return values if draws is None else self._augment(values, draws)

    def _augment(self, values: Tensor, draws: Draws) -> Tensor:
        channels, length = self.shape
        if self.scale:
            values = values * draws.uniform(1, 1, low=1 - self.scale, high=1 + self.scale)
        if self.noise:
            strength = draws.uniform(1, 1, high=self.noise)
            values = values + strength * draws.normal(channels, length)
        if self.time_shift:
            values = roll(values, draws.uniform(low=-self.time_shift, high=self.time_shift))
        if self.time_mask:
            values = values.masked_fill(mask_span(draws, length, self.time_mask)[:, None], 0.0)
        if self.channel_mask:
            values = values.masked_fill(draws.chance(self.channel_mask, channels, 1), 0.0)
        return values


def _column(name: str, given: float | list[float], channels: int) -> Tensor:
    """``[channels, 1]``."""
    numbers = given if isinstance(given, list) else [given] * channels
    if len(numbers) != channels:
        raise UserError(f"imu: {name} has {len(numbers)} numbers for {channels} channels")
    return torch.tensor(numbers, dtype=torch.float32)[:, None]
