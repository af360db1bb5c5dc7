"""Mel spectrograms that are normalised clip by clip, as VATT takes them."""

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl import Draws, Media, Modality, UserError, Window
from mmssl_media.audio import read_sound


class Spectrogram(Modality):
    """Log-mel spectrogram of one clip, between 0 and 1.

    The defaults are VATT's: of 3.2 seconds at 48 kHz, Hann windows of 2048 samples that begin every
    1024, the last ones filled up with silence, make 150 frames. The absolute spectrum goes through
    80 filters between 80 and 7600 Hz, triangles on the mel scale 1127 ln(1 + f / 700) with a
    height of 1, and becomes ln(1 + 10000 x). Last, each clip's smallest value is moved to 0 and its
    largest to 1; a silent clip is 0. Networks for the spectrograms of `audio` take these, too.

    Args:
        seconds: length of the clip.
        rate: sampling rate in Hz to which sound is resampled; channels are averaged.
        mels: number of mel filters F.
        low: Hz, where the first filter begins.
        high: Hz, where the last filter ends.
        window: length of the analysis window in samples.
        hop: step from window to window in samples.
    """

    kind = "audio"

    def __init__(
        self,
        *,
        seconds: Annotated[float, Field(gt=0)] = 3.2,
        rate: Annotated[int, Field(ge=1000, le=384_000)] = 48_000,
        mels: Annotated[int, Field(gt=0)] = 80,
        low: Annotated[float, Field(ge=0)] = 80.0,
        high: Annotated[float, Field(gt=0)] = 7600.0,
        window: Annotated[int, Field(ge=2)] = 2048,
        hop: Annotated[int, Field(gt=0)] = 1024,
    ) -> None:
        if not low < high <= rate / 2:
            raise UserError(
                f"spectrogram: filters from {low:g} to {high:g} Hz do not lie between 0 and half "
                f"the rate, {rate / 2:g} Hz"
            )
        self.seconds = seconds
        self.rate = rate
        self.hop = hop
        self.samples = round(seconds * rate)
        if window > self.samples:
            raise UserError(
                f"spectrogram: a window of {window} samples does not fit into the clip's "
                f"{self.samples}"
            )
        self.frames = -(-self.samples // hop)
        self.shape = (1, mels, self.frames)
        self._window = torch.hann_window(window)
        self._filters = _filters(mels, window, rate, low, high)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        """``[seconds * rate]`` float32 PCM, 1.0 being full scale."""
        return read_sound(media, window, self.seconds, self.rate)

    def empty(self) -> Tensor:
        """``[seconds * rate]`` float32 zeros."""
        return torch.zeros(self.samples)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        """``[B, samples]`` PCM to ``[B, 1, F, T]`` float32 between 0 and 1."""
        if self._window.device != batch.device:
            self._window = self._window.to(batch.device)
            self._filters = self._filters.to(batch.device)
        length = len(self._window)
        # What the last window lacks; with a hop that is longer than it, what no window sees.
        lacking = (self.frames - 1) * self.hop + length - self.samples
        spectrum = torch.stft(
            F.pad(batch.float(), (0, lacking)),
            length,
            self.hop,
            window=self._window,
            center=False,
            return_complex=True,
        )
        values = torch.log1p(10_000.0 * (self._filters @ spectrum.abs()))
        low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        span = high - low
        return ((values - low) / torch.where(span > 0, span, 1.0))[:, None]


def _filters(mels: int, window: int, rate: int, low: float, high: float) -> Tensor:
    """``[F, window // 2 + 1]`` float32: what each filter takes of each frequency."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    ends = mel(torch.tensor([low, high], dtype=torch.float64))
    corners = torch.linspace(float(ends[0]), float(ends[1]), mels + 2, dtype=torch.float64)
    places = mel(torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window)
    first, peak, last = (corners[i : mels + i, None] for i in range(3))
    rise, fall = (places - first) / (peak - first), (last - places) / (last - peak)
    return torch.minimum(rise, fall).clamp(min=0.0).float()
