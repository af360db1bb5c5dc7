"""Sound as it is: samples of a waveform."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mmssl import Draws, Media, Modality, UserError, Window
from mmssl_media.audio import read_sound


class Waveform(Modality):
    """Samples of sound between -1 and 1, for networks that take it raw.

    The defaults are VATT's: 3.2 seconds at 48 kHz, which are 153,600 samples; 6.4 seconds at
    24 kHz are as many. Channels are averaged, and a file shorter than the clip ends in silence.

    Args:
        seconds: length of the clip.
        rate: sampling rate in Hz to which sound is resampled.
        noise: standard deviation of Gaussian noise that is added in training, as a fraction of the
            clip's largest absolute sample; 0.01 in VATT's code, which its paper does not mention.
    """

    kind = "waveform"

    def __init__(
        self,
        *,
        seconds: Annotated[float, Field(gt=0)] = 3.2,
        rate: Annotated[int, Field(ge=1000, le=384_000)] = 48_000,
        noise: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        self.seconds = seconds
        self.rate = rate
        self.noise = noise
        self.samples = round(seconds * rate)
        if self.samples < 1:
            raise UserError(f"waveform: {seconds:g} s at {rate} Hz are less than a sample")
        self.shape = (self.samples,)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        """``[seconds * rate]`` float32, 1.0 being full scale."""
        return read_sound(media, window, self.seconds, self.rate)

    def empty(self) -> Tensor:
        """``[seconds * rate]`` float32 zeros."""
        return torch.zeros(self.samples)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        """``[B, samples]`` float32, at most 1 in absolute value."""
        sound = batch.float()
        if draws is not None and self.noise:
            loudest = sound.abs().amax(1, keepdim=True)
            sound = sound + self.noise * loudest * draws.normal(self.samples)
        return sound.clamp(-1.0, 1.0)
