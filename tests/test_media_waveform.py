"""Raw sound, and spectrograms normalised by clip, against slow references from the formulas."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import click_times, clicks, write

from mmssl import Draws, Media, MissingModality, Sample, UserError, Window
from mmssl_media.audio import Audio
from mmssl_media.spectrogram import Spectrogram
from mmssl_media.waveform import Waveform


def test_defaults_are_vatts() -> None:
    waveform = Waveform()
    assert waveform.kind == "waveform"
    assert waveform.shape == (153_600,)
    assert waveform.seconds == 3.2
    # Its fine-tuning on sound keeps the size: 6.4 s at 24 kHz.
    assert Waveform(seconds=6.4, rate=24_000).shape == waveform.shape
    spectrogram = Spectrogram()
    assert spectrogram.kind == "audio"
    assert spectrogram.shape == (1, 80, 150)


def test_a_waveform_is_the_middle_of_its_window(tmp_path: Path) -> None:
    sound = clicks([0.5, 1.5, 2.5], 3.0, 48_000)
    path = write(tmp_path / "a.wav", sound=sound, rate=48_000, sound_codec="pcm_s16le")
    waveform = Waveform(seconds=1.0)
    with Media(Sample("x", str(path))) as media:
        clip = waveform.read(media, Window(0.9, 1.4), None)
        audio = Audio(seconds=1.0, rate=48_000, window_ms=20.0)
        assert torch.equal(clip, audio.read(media, Window(0.9, 1.4), None))
    assert clip.shape == waveform.empty().shape
    assert clip.dtype == waveform.empty().dtype == torch.float32
    # From 1.1 s to 2.1 s.
    assert click_times(clip.numpy().copy(), 48_000) == [pytest.approx(0.4, abs=1e-3)]
    assert torch.equal(waveform.prepare(clip[None], None)[0], clip)


def test_what_is_short_ends_in_silence_and_what_is_silent_is_missing(tmp_path: Path) -> None:
    sound = 0.5 * np.ones(4800, np.float32)
    path = write(tmp_path / "a.wav", sound=sound, rate=48_000, sound_codec="pcm_s16le")
    waveform = Waveform(seconds=0.2)
    with Media(Sample("x", str(path))) as media:
        clip = waveform.read(media, Window(0.0, 0.2), None)
    assert torch.all(clip[:4800] > 0.49)
    assert torch.all(clip[4800:] == 0)
    silent = write(tmp_path / "b.mp4", frames=5)
    with Media(Sample("x", str(silent))) as media, pytest.raises(MissingModality):
        waveform.read(media, Window(0.0, 0.2), None)


def test_samples_are_between_minus_one_and_one() -> None:
    waveform = Waveform(seconds=4.0, rate=1000)
    batch = torch.linspace(-3, 3, 4000)[None]
    assert torch.equal(waveform.prepare(batch, None), batch.clamp(-1, 1))


def test_noise_is_a_fraction_of_the_loudest_sample() -> None:
    waveform = Waveform(seconds=20.0, rate=1000, noise=0.01)
    tone = torch.sin(torch.arange(20_000) / 7.0)
    batch = torch.stack([0.5 * tone, 0.05 * tone, 0.0 * tone])
    seeds = torch.tensor([3, 1, 2])
    added = waveform.prepare(batch, Draws(seeds)) - batch
    peaks = batch.abs().amax(1)
    assert torch.allclose(added.std(1), 0.01 * peaks, rtol=0.05)
    assert torch.all(added.mean(1).abs() <= 0.01 * peaks * 0.05)
    assert torch.equal(added[2], torch.zeros(20_000))
    # Evaluation adds none, and a row's noise is its own.
    assert torch.equal(waveform.prepare(batch, None), batch)
    alone = waveform.prepare(batch[1:2], Draws(seeds[1:2]))
    assert torch.allclose(alone[0], (added + batch)[1], atol=1e-7)
    assert torch.equal(Waveform(seconds=20.0, rate=1000).prepare(batch, Draws(seeds)), batch)


def reference(sound: np.ndarray) -> np.ndarray:
    """VATT's spectrogram of 3.2 s at 48 kHz, ``[80, 150]``, term by term."""
    window, hop, mels, rate = 2048, 1024, 80, 48_000

    def mel(frequency: float) -> float:
        return 1127.0 * math.log(1.0 + frequency / 700.0)

    low, high = mel(80.0), mel(7600.0)
    corners = [low + (high - low) * i / (mels + 1) for i in range(mels + 2)]
    filters = np.zeros((mels, window // 2 + 1))
    for m in range(mels):
        first, peak, last = corners[m : m + 3]
        for k in range(1, window // 2 + 1):
            place = mel(k * rate / window)
            rise, fall = (place - first) / (peak - first), (last - place) / (last - peak)
            filters[m, k] = max(0.0, min(rise, fall))
    assert np.all(filters.sum(1) > 0)  # none is empty
    hann = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / window) for i in range(window)])
    padded = np.concatenate([sound.astype(np.float64), np.zeros(window)])
    columns = []
    for first in range(0, len(sound), hop):
        spectrum = np.abs(np.fft.rfft(padded[first : first + window] * hann))
        columns.append(np.log(1.0 + 10_000.0 * (filters @ spectrum)))
    values = np.array(columns).T
    return (values - values.min()) / (values.max() - values.min())


def test_spectrogram_is_the_formulas() -> None:
    rng = np.random.default_rng(0)
    at = np.arange(153_600) / 48_000
    tone = 0.3 * np.sin(2 * np.pi * (300.0 + 400.0 * at) * at)
    loud = (tone + 0.05 * rng.normal(size=len(at))).astype(np.float32)
    quiet = (0.001 * tone).astype(np.float32)
    batch = torch.from_numpy(np.stack([loud, quiet]))
    found = Spectrogram().prepare(batch, None)
    assert found.shape == (2, 1, 80, 150)
    assert found.dtype == torch.float32
    assert np.allclose(found[0, 0].numpy(), reference(loud), atol=1e-4)
    assert np.allclose(found[1, 0].numpy(), reference(quiet), atol=1e-3)
    assert float(found.min()) == 0.0
    assert float(found.amax()) == pytest.approx(1.0)


def test_a_tone_is_where_its_filter_is() -> None:
    spectrogram = Spectrogram(seconds=0.5)
    at = np.arange(24_000) / 48_000
    for hertz in (200.0, 1000.0, 5000.0):
        sound = torch.from_numpy(np.sin(2 * np.pi * hertz * at).astype(np.float32))
        brightest = int(spectrogram.prepare(sound[None], None)[0, 0, :, 5].argmax())
        ends = [1127.0 * math.log(1.0 + f / 700.0) for f in (80.0, hertz, 7600.0)]
        expected = (ends[1] - ends[0]) / (ends[2] - ends[0]) * 81 - 1
        assert abs(brightest - expected) <= 1


def test_a_silent_clip_is_zero() -> None:
    spectrogram = Spectrogram(seconds=0.5)
    prepared = spectrogram.prepare(spectrogram.empty()[None], None)
    assert torch.equal(prepared, torch.zeros(1, *spectrogram.shape))


def test_spectrograms_are_read_from_files(tmp_path: Path) -> None:
    sound = clicks([0.1], 1.0, 48_000)
    path = write(tmp_path / "a.wav", sound=sound, rate=48_000, sound_codec="pcm_s16le")
    spectrogram = Spectrogram(seconds=0.5)
    with Media(Sample("x", str(path))) as media:
        clip = spectrogram.read(media, Window(0.0, 0.5), None)
    assert clip.shape == spectrogram.empty().shape
    prepared = spectrogram.prepare(clip[None], None)
    assert tuple(prepared.shape[1:]) == spectrogram.shape
    # The click at 0.1 s is sample 4800: in the windows from 3072 and from 4096.
    assert set(prepared[0, 0].sum(0).topk(2).indices.tolist()) == {3, 4}


def test_hops_may_leave_gaps() -> None:
    spectrogram = Spectrogram(seconds=0.1, rate=10_000, window=64, hop=300, high=4000.0, mels=8)
    assert spectrogram.shape == (1, 8, 4)
    batch = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    assert spectrogram.prepare(batch, None).shape == (2, 1, 8, 4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"high": 50.0}, "filters from 80 to 50 Hz"),
        ({"rate": 8000}, "half the rate, 4000 Hz"),
        ({"seconds": 0.01}, "does not fit"),
    ],
)
def test_what_fits_no_spectrogram(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Spectrogram(**parameters)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_no_waveform_without_a_sample() -> None:
    with pytest.raises(UserError, match="less than a sample"):
        Waveform(seconds=0.0001, rate=1000)
