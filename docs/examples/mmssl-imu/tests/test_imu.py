"""The modality: which part of a recording a clip is, and what augmentation does to it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmssl import BadMedia, Draws, Media, MissingModality, Sample, UserError, Window
from mmssl_imu.augment import mask_span, roll, rotations
from mmssl_imu.backbone import IMUResNet
from mmssl_imu.modality import IMU


def sample(folder: Path, imu: str, **fields: float | None) -> Sample:
    return Sample("a", None, fields={"imu": imu}, root=str(folder), **fields)  # type: ignore[arg-type]


def ramp(folder: Path, first: float = 0.0, last: float = 10.0) -> str:
    """A recording at 200 Hz of time itself, and ten times it."""
    time = np.arange(first, last, 0.005)
    np.savez(folder / "ramp.npz", time=time, values=np.stack([time, 10 * time], 1))
    return "ramp.npz"


def draws(rows: int, first: int = 0) -> Draws:
    return Draws(torch.arange(first, first + rows))


def test_a_clip_is_the_windows_part_of_the_recording(tmp_path: Path) -> None:
    imu = IMU(channels=2, seconds=1, rate=20)
    row = sample(tmp_path, ramp(tmp_path), end=9.0)
    with Media(row) as media:
        found = imu.read(media, Window(4.0, 1.0), None)
        centred = imu.read(media, Window(3.0, 3.0), None)
    expected = 4 + np.arange(20) / 20
    np.testing.assert_allclose(found, np.stack([expected, 10 * expected]), rtol=1e-5)
    torch.testing.assert_close(centred, found)  # the middle of a longer window
    assert found.shape == imu.shape == imu.empty().shape
    assert found.dtype == imu.empty().dtype == torch.float32


def test_a_window_beyond_the_sample_is_moved_inside(tmp_path: Path) -> None:
    imu = IMU(channels=2, seconds=1, rate=10)
    with Media(sample(tmp_path, ramp(tmp_path), start=2.0, end=5.0)) as media:
        early = imu.read(media, Window(-5.0, 1.0), None)
        late = imu.read(media, Window(8.0, 1.0), None)
    assert early[0, 0] == pytest.approx(2.0)
    assert late[0, 0] == pytest.approx(4.0)


def test_the_offset_is_how_far_the_sensors_clock_is_behind(tmp_path: Path) -> None:
    imu = IMU(channels=2, seconds=1, rate=10, offset=0.25)
    with Media(sample(tmp_path, ramp(tmp_path), end=9.0)) as media:
        found = imu.read(media, Window(4.0, 1.0), None)
    assert found[0, 0] == pytest.approx(3.75)


def test_beyond_the_end_a_clip_is_0_once_normalised(tmp_path: Path) -> None:
    """The recording ends at 2, and its last measurement speaks for a tenth of a second more."""
    imu = IMU(channels=2, seconds=1, rate=20, max_gap=0.1, mean=[7, 8], std=[2, 3])
    with Media(sample(tmp_path, ramp(tmp_path, last=2.0), end=9.0)) as media:
        found = imu.read(media, Window(1.5, 1.0), None)
        with pytest.raises(MissingModality, match="no measurement"):
            imu.read(media, Window(4.0, 1.0), None)
    assert found[:, 12:].isnan().all()
    assert (imu.prepare(found[None], None)[0, :, 12:] == 0).all()
    assert found[0, 8] == pytest.approx(1.9)


def test_a_sample_without_recording_lacks_the_modality(tmp_path: Path) -> None:
    imu = IMU()
    for row in (Sample("a", None), sample(tmp_path, " ")):
        with Media(row) as media, pytest.raises(MissingModality):
            imu.read(media, Window(0.0, 2.0), None)


def test_another_number_of_channels_is_bad_media(tmp_path: Path) -> None:
    with (
        Media(sample(tmp_path, ramp(tmp_path))) as media,
        pytest.raises(BadMedia, match="has 2 channels, not 6"),
    ):
        IMU().read(media, Window(0.0, 2.0), None)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"channels": 4, "rotate": 10}, "three channels"),
        ({"mean": [1, 2]}, "mean has 2 numbers for 6 channels"),
        ({"seconds": 0.001}, "less than a value"),
    ],
)
def test_parameters_that_do_not_fit(fields: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        IMU(**fields)


def test_rotations_are_rotations_uniform_in_angle() -> None:
    matrices = rotations(draws(4000), 60)
    eye = torch.eye(3).expand_as(matrices)
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(4000), atol=1e-5, rtol=0)
    cosine = (matrices.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
    assert angle.max() <= 60.1
    assert angle.mean() == pytest.approx(30, abs=1.5)


def test_all_vectors_of_a_sample_turn_together() -> None:
    """Lengths, and angles between the two sensors' vectors, stay as they are."""
    values = torch.randn(8, 6, 50, generator=torch.Generator().manual_seed(0))
    turned = IMU(seconds=1, rotate=180).prepare(values, draws(8))
    assert (turned - values).abs().mean() > 0.3
    a, b = values.unflatten(1, (2, 3)), turned.unflatten(1, (2, 3))
    torch.testing.assert_close(a.norm(dim=2), b.norm(dim=2))
    torch.testing.assert_close((a[:, 0] * a[:, 1]).sum(1), (b[:, 0] * b[:, 1]).sum(1))


def test_a_gap_is_0_however_the_signal_is_turned() -> None:
    imu = IMU(seconds=1, mean=[0, 0, 9.81] * 2, std=2, rotate=180, scale=0.5)
    values = torch.randn(8, 6, 50, generator=torch.Generator().manual_seed(0)) + imu.mean
    values[:, :3, 10:20] = torch.nan
    for found in (imu.prepare(values, None), imu.prepare(values, draws(8))):
        assert (found[:, :3, 10:20] == 0).all()
        assert (found[:, 3:] != 0).all()
        assert (found[:, :, :10] != 0).all()


def test_of_a_vector_known_in_part_the_rest_is_the_mean_and_turned_with_it() -> None:
    imu = IMU(channels=3, seconds=1, mean=[0, 0, 9.81], rotate=180)
    values = torch.randn(8, 3, 50, generator=torch.Generator().manual_seed(0))
    filled = values.clone()
    values[:, 2], filled[:, 2] = torch.nan, 9.81
    assert (imu.prepare(values, None)[:, 2] == 0).all()
    torch.testing.assert_close(imu.prepare(values, draws(8)), imu.prepare(filled, draws(8)))


@given(st.floats(-1, 1, width=32))
def test_roll_is_torchs(fraction: float) -> None:
    values = torch.arange(2 * 3 * 10).float().view(2, 3, 10)
    steps = round(np.float32(fraction) * np.float32(10))
    expected = torch.roll(values, steps, 2)
    torch.testing.assert_close(roll(values, torch.full((2,), fraction)), expected)


def test_a_mask_is_one_span_up_to_the_fraction() -> None:
    masks = mask_span(draws(500), 40, 0.25)
    assert masks.sum(1).max() <= 10
    assert (masks.int().diff(dim=1).abs().sum(1) <= 2).all()
    assert 0.09 < masks.float().mean() < 0.16  # half of the fraction


def test_scale_noise_and_channel_mask_are_as_strong_as_asked() -> None:
    ones = torch.ones(400, 6, 50)
    scaled = IMU(seconds=1, scale=0.5).prepare(ones, draws(400))
    assert 0.5 <= scaled.min() < 0.52
    assert 1.48 < scaled.max() < 1.5
    assert (scaled == scaled[:, :1, :1]).all()
    noisy = IMU(seconds=1, noise=0.4).prepare(0 * ones, draws(400))
    assert noisy.flatten(1).std(1).max() == pytest.approx(0.4, abs=0.05)
    assert noisy.flatten(1).std(1).mean() == pytest.approx(0.2, abs=0.02)
    masked = IMU(seconds=1, channel_mask=0.3).prepare(ones, draws(400))
    assert (masked == 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert (masked == masked[:, :, :1]).all()


def test_without_draws_values_are_normalised_and_nothing_more() -> None:
    values = torch.randn(3, 6, 100)
    imu = IMU(mean=[1, 2, 3, 4, 5, 6], std=2, rotate=90, noise=1, time_shift=0.5, time_mask=0.5)
    expected = (values - torch.arange(1.0, 7.0)[:, None]) / 2
    torch.testing.assert_close(imu.prepare(values, None), expected)


def test_the_backbone_learns_from_every_parameter_and_says_what_does_not_fit() -> None:
    network = IMUResNet(width=4)
    features = network(torch.randn(2, 6, 100))
    assert features.pooled.shape == (2, network.dim) == (2, 32)
    assert features.tokens is not None
    assert features.tokens.shape == (2, 7, 32)
    features.pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert sum(p.numel() for p in IMUResNet().parameters()) == 3_846_144
    with pytest.raises(UserError, match="channels: 3"):
        network(torch.randn(2, 3, 100))
