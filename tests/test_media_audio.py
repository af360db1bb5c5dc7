"""Log-mel spectrograms against a slow reference from the formulas; augmentations."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl import Draws, Media, Sample, UserError
from mmssl_media.audio import Audio
from mmssl_media.decode import pcm
from mmssl_media.synthetic_clips import Format, write

EVERYTHING = {
    "gain": 8.0,
    "time_shift": 0.5,
    "noise": 0.4,
    "time_mask": 0.25,
    "frequency_mask": 0.25,
}


def sounds(count: int = 3, samples: int = 32_000) -> torch.Tensor:
    rng = np.random.default_rng(0)
    at = np.arange(samples) / 16_000
    tones = np.stack([0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * at) for _ in range(count)])
    noise = rng.normal(size=(count, samples)) * rng.uniform(0, 0.1, (count, 1))
    return torch.from_numpy((tones + noise).astype(np.float32))


def reference(sound: np.ndarray) -> np.ndarray:
    """The log-mel spectrogram of 2 s at 16 kHz, ``[40, 100]``, term by term."""
    n, hop, mels = 256, 320, 40

    def mel(frequency: float) -> float:
        return 1127.0 * math.log(1.0 + frequency / 700.0)

    def hertz(value: float) -> float:
        return 700.0 * (math.exp(value / 1127.0) - 1.0)

    corners = [hertz(mel(8000.0) * i / (mels + 1)) for i in range(mels + 2)]
    filters = np.zeros((mels, n // 2 + 1))
    for m in range(mels):
        low, peak, high = corners[m : m + 3]
        for k in range(n // 2 + 1):
            frequency = k * 16_000 / n
            rise, fall = (frequency - low) / (peak - low), (high - frequency) / (high - peak)
            filters[m, k] = max(0.0, min(rise, fall))
        filters[m] /= filters[m].sum()
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / n) for i in range(n)])
    out = []
    for first in range(0, len(sound) - n + 1, hop):
        piece = sound[first : first + n].astype(np.float64) * window
        power = np.abs(np.fft.rfft(piece)) ** 2
        x = 1.08e9 * (filters @ power)
        out.append([math.log(v) if v > math.e else v / math.e for v in x])
    return np.array(out).T


def test_spectrogram_is_the_formulas() -> None:
    audio = Audio(mean=0.0, std=1.0)
    assert audio.shape == (1, 40, 100)
    batch = sounds()
    batch[2] *= 1e-4  # into the linear part
    prepared = audio.prepare(batch, None)
    assert prepared.shape == (3, 1, 40, 100)
    assert prepared.dtype == torch.float32
    for sound, found in zip(batch.numpy(), prepared.numpy(), strict=True):
        expected = reference(sound)
        assert expected.shape == (40, 100)
        assert np.allclose(found[0], expected, atol=5e-3)
    assert (reference(batch[2].numpy()) < 1.0).any()


def test_silence_is_zero_before_normalisation_and_loudness_is_monotone() -> None:
    audio = Audio(mean=0.0, std=1.0)
    assert not audio.prepare(torch.zeros(1, 32_000), None).any()
    levels = torch.logspace(-7, 0, 60)[:, None] * sounds(1)
    means = audio.prepare(levels, None).mean((1, 2, 3))
    assert (means.diff() > 0).all()


def test_default_normalisation_suits_ordinary_loudness() -> None:
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(rng.normal(size=(8, 32_000)))
    spectrum /= np.sqrt(np.maximum(np.arange(spectrum.shape[1]), 1))  # pink
    pink = np.fft.irfft(spectrum)
    level = 10 ** (rng.uniform(-35, -10, (8, 1)) / 20)  # decibels of full scale
    batch = torch.from_numpy((level * pink / pink.std(1, keepdims=True)).astype(np.float32))
    prepared = Audio().prepare(batch, None)
    assert abs(prepared.mean()) < 0.5
    assert 0.3 < prepared.std() < 1.5


@pytest.mark.parametrize(
    ("parameters", "frames"),
    [({}, 100), ({"seconds": 1.0}, 50), ({"hop_ms": 10.0}, 199), ({"rate": 44_100}, 100)],
)
def test_frames_by_the_formula_without_padding(parameters: dict[str, float], frames: int) -> None:
    audio = Audio(**parameters)  # type: ignore[arg-type]
    assert audio.shape == (1, 40, frames)
    assert audio.prepare(audio.empty()[None], None).shape == (1, 1, 40, frames)


def test_no_filter_is_empty_at_the_defaults() -> None:
    loud = Audio(mean=0.0, std=1.0).prepare(sounds(1) + 0.1 * torch.rand(1, 32_000), None)
    assert (loud.amin((0, 1, 3)) > 0).all()


@pytest.mark.parametrize("name", [*EVERYTHING, "all"])
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    audio = Audio(**(EVERYTHING if name == "all" else {name: EVERYTHING[name]}))
    batch, seeds = sounds(5), torch.tensor([5, 4, 3, 2, 1])
    whole = audio.prepare(batch, Draws(seeds, "audio"))
    for part in [slice(0, 1), slice(1, 3), slice(3, 5)]:
        alone = audio.prepare(batch[part], Draws(seeds[part], "audio"))
        assert torch.allclose(whole[part], alone, atol=1e-4)
    assert not torch.allclose(whole, audio.prepare(batch, None), atol=1e-2)
    assert torch.equal(audio.prepare(batch, None), Audio().prepare(batch, None))


def test_gain_is_decibels() -> None:
    audio = Audio(gain=6.0, mean=0.0, std=1.0)
    batch = sounds(64)
    change = audio.prepare(batch, Draws(torch.arange(64))) - audio.prepare(batch, None)
    decibels = change.flatten(1).median(1).values * 10 / math.log(10)
    assert decibels.abs().max() <= 6.01
    assert decibels.max() > 4
    assert decibels.min() < -4


def test_time_shift_rolls() -> None:
    audio = Audio(time_shift=0.1)
    batch = sounds(16)
    plain, shifted = audio.prepare(batch, None), audio.prepare(batch, Draws(torch.arange(16)))
    found = []
    for row in range(16):
        fits = [k for k in range(-50, 50) if torch.equal(plain[row].roll(k, -1), shifted[row])]
        assert len(fits) == 1
        found.append(fits[0])
    assert max(map(abs, found)) <= 10
    assert len(set(found)) > 5


@pytest.mark.parametrize(
    ("name", "axis", "length"), [("time_mask", 2, 100), ("frequency_mask", 1, 40)]
)
def test_masks_are_one_span_of_zeros(name: str, axis: int, length: int) -> None:
    audio = Audio(**{name: 0.3})
    prepared = audio.prepare(sounds(64), Draws(torch.arange(64)))[:, 0]
    widths = []
    for row in prepared:
        hidden = (row == 0).all(0 if axis == 2 else 1).numpy()
        places = np.flatnonzero(hidden)
        widths.append(len(places))
        if len(places):
            assert places[-1] - places[0] + 1 == len(places)
        assert (row == 0).sum() == hidden.sum() * (4000 // length)
    assert 0.2 * length < max(widths) <= 0.3 * length + 1
    assert min(widths) < 0.1 * length


def test_impossible_parameters() -> None:
    with pytest.raises(UserError, match="a window of 16 ms is 256 samples, the clip 160"):
        Audio(seconds=0.01)
    with pytest.raises(UserError, match="hop"):
        Audio(hop_ms=0.01)


@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
def test_sound_is_whole_from_the_first_sample_on(rate: int, tmp_path: Path) -> None:
    """A coder's first packet, which lies before the beginning, is a part of what follows it."""
    wave = (0.5 * np.sin(2 * np.pi * 300 * np.arange(2 * rate) / rate)).astype(np.float32)
    write(tmp_path / "a.mp4", Format(32, 8, 2.0, rate), np.zeros((16, 32, 32, 3), np.uint8), wave)
    with Media(Sample("a", str(tmp_path / "a.mp4"))) as media:
        found = pcm(media, 0.0, rate // 2, rate)
    np.testing.assert_allclose(found, wave[: rate // 2], atol=0.06)
