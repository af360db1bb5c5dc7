"""Sound: mono PCM read in a loader process, log-mel spectrograms computed on the device."""

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from mmssl import Draws, Media, Modality, UserError, Window
from mmssl_media.decode import pcm

# VMZ's: about the square of 32768, so that what is measured is the power of 16-bit samples.
_GAIN = 1.08e9


def read_sound(media: Media, window: Window, seconds: float, rate: int) -> Tensor:
    """``[seconds * rate]`` float32 PCM, mono, 1.0 being full scale: the middle of a window.

    Moved to lie within the sample; what is longer than it ends in silence.

    Raises:
        MissingModality: there is no sound, or none there.
        BadMedia: it cannot be decoded.
    """
    start = window.centred(seconds).start
    start = max(media.start, min(start, media.end - seconds))
    return torch.from_numpy(pcm(media, start, round(seconds * rate), rate))


class Audio(Modality):
    """Log-mel spectrogram of one clip.

    The defaults are XDC's 40 filters by 100 frames of 2 seconds (section 4.1 of the paper) with
    the constants of Facebook's VMZ: power spectrum of Hann windows of 16 ms that are not padded,
    triangular filters equidistant on the mel scale 1127 ln(1 + f / 700) from 0 to half the
    sampling rate, each summing to 1, times 1.08e9; then ln x above e and x / e below, which is
    0 for digital silence and has no pole. Last, (x - mean) / std. A file shorter than the clip
    ends in silence.

    Args:
        seconds: length of the clip.
        rate: sampling rate in Hz to which sound is resampled; channels are averaged.
        mels: number of mel filters F.
        window_ms: length of the analysis window in milliseconds.
        hop_ms: step from window to window in milliseconds.
        mean: subtracted from the logarithm; the default suits sound of ordinary loudness.
        std: divided by; see `mean`.
        gain: decibels; the loudness changes by a value uniform in plus or minus this.
        time_shift: fraction of the clip; it is rolled by a value uniform in plus or minus this.
        noise: standard deviation of the noise added to the normalised spectrogram, uniform
            between 0 and this.
        time_mask: fraction of the clip; a span of time uniform between 0 and this is set to 0.
        frequency_mask: fraction of the filters; a band uniform between 0 and this is set to 0.
    """

    kind = "audio"

    def __init__(
        self,
        *,
        seconds: Annotated[float, Field(gt=0)] = 2.0,
        rate: Annotated[int, Field(ge=1000, le=384_000)] = 16_000,
        mels: Annotated[int, Field(gt=0)] = 40,
        window_ms: Annotated[float, Field(gt=0)] = 16.0,
        hop_ms: Annotated[float, Field(gt=0)] = 20.0,
        mean: float = 18.0,
        std: Annotated[float, Field(gt=0)] = 3.0,
        gain: Annotated[float, Field(ge=0)] = 0.0,
        time_shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
        noise: Annotated[float, Field(ge=0)] = 0.0,
        time_mask: Annotated[float, Field(ge=0, le=1)] = 0.0,
        frequency_mask: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        self.seconds = seconds
        self.rate = rate
        self.mean = mean
        self.std = std
        self.gain = gain
        self.time_shift = time_shift
        self.noise = noise
        self.time_mask = time_mask
        self.frequency_mask = frequency_mask
        self.samples = round(seconds * rate)
        length = round(window_ms / 1000 * rate)
        self.hop = round(hop_ms / 1000 * rate)
        if not 2 <= length <= self.samples:
            raise UserError(
                f"audio: a window of {window_ms:g} ms is {length} samples, the clip {self.samples}"
            )
        if self.hop < 1:
            raise UserError(f"audio: a hop of {hop_ms:g} ms is shorter than a sample at {rate} Hz")
        self.shape = (1, mels, (self.samples - length) // self.hop + 1)
        self._window = torch.hann_window(length)
        filters = melscale_fbanks(
            length // 2 + 1, 0.0, rate / 2, mels, rate, norm=None, mel_scale="htk"
        )
        # A filter narrower than the spectrum's resolution may be empty and stays so.
        self._filters = filters / filters.sum(0).clamp(min=1e-10)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        """``[seconds * rate]`` float32 PCM, 1.0 being full scale."""
        return read_sound(media, window, self.seconds, self.rate)

    def empty(self) -> Tensor:
        """``[seconds * rate]`` float32 zeros."""
        return torch.zeros(self.samples)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        """``[B, samples]`` PCM to ``[B, 1, F, T]`` float32."""
        power = self._mel_power(batch.float())
        if draws is not None and self.gain:
            decibels = draws.uniform(low=-self.gain, high=self.gain)
            power = power * 10.0 ** (decibels / 10.0).view(-1, 1, 1)
        # The clamp keeps the branch that is not taken finite.
        logarithm = torch.where(power > math.e, power.clamp(min=math.e).log(), power / math.e)
        spectrogram = (logarithm - self.mean) / self.std
        if draws is not None:
            spectrogram = self._augment(spectrogram, draws)
        return spectrogram[:, None]

    def _mel_power(self, batch: Tensor) -> Tensor:
        """``[B, samples]`` to ``[B, F, T]``: 1.08e9 times the filtered power spectrum."""
        if self._window.device != batch.device:
            self._window = self._window.to(batch.device)
            self._filters = self._filters.to(batch.device)
        spectrum = torch.stft(
            batch,
            len(self._window),
            self.hop,
            window=self._window,
            center=False,
            return_complex=True,
        )
        return _GAIN * (self._filters.T @ (spectrum.real**2 + spectrum.imag**2))

    def _augment(self, spectrogram: Tensor, draws: Draws) -> Tensor:
        count, mels, frames = spectrogram.shape
        if self.time_shift:
            shift = draws.uniform(low=-self.time_shift, high=self.time_shift) * frames
            places = torch.arange(frames, device=spectrogram.device)
            source = (places + shift.round().long()[:, None]) % frames
            spectrogram = spectrogram.gather(2, source[:, None].expand(count, mels, frames))
        if self.noise:
            strength = draws.uniform(1, 1, high=self.noise)
            spectrogram = spectrogram + strength * draws.normal(mels, frames)
        if self.time_mask:
            mask = _span(draws, frames, self.time_mask)
            spectrogram = spectrogram.masked_fill(mask[:, None, :], 0.0)
        if self.frequency_mask:
            mask = _span(draws, mels, self.frequency_mask)
            spectrogram = spectrogram.masked_fill(mask[:, :, None], 0.0)
        return spectrogram


def _span(draws: Draws, length: int, fraction: float) -> Tensor:
    """``[B, length]`` bool: one span of random length up to a fraction, randomly placed."""
    width = draws.uniform(1) * fraction * length
    first = draws.uniform(1) * (length - width)
    places = torch.arange(length, device=width.device)
    return (places >= first) & (places < first + width)
