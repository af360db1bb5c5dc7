"""Frames on the device: normalisation, flips, moves and colours against slow references."""

import colorsys
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_files import write

from mmssl import Draws, Media, Sample, UserError, Window
from mmssl_media.video import Video

EVERYTHING = {
    "flip": 0.5,
    "rotate": 20.0,
    "scale": 0.25,
    "shift": 0.1,
    "brightness": 0.125,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.2,
}
# What is normalised by these is left as it was.
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def clips(count: int = 3, frames: int = 2, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (count, frames, side, side, 3), dtype=torch.uint8, generator=generator
    )


def draws(count: int = 3) -> Draws:
    return Draws(torch.arange(count) + 100)


def video(**parameters: object) -> Video:
    return Video(**{"frames": 2, "short_side": 16, "crop": 16, **parameters})  # type: ignore[arg-type]


def test_defaults_are_xdcs() -> None:
    default = Video()
    assert default.shape == (3, 8, 224, 224)
    assert default.short_side == 256
    assert default.seconds == 0.0
    assert Video(frames=32, fps=10).seconds == pytest.approx(3.2)


def test_evaluation_only_normalises() -> None:
    batch = clips()
    modality = video(**EVERYTHING)
    prepared = modality.prepare(batch, None)
    expected = batch.numpy().astype(np.float64)
    expected = (expected - np.array(modality.mean)) / np.array(modality.std)
    assert prepared.shape == (3, *modality.shape)
    assert prepared.dtype == torch.float32
    assert np.allclose(prepared.numpy(), expected.transpose(0, 4, 1, 2, 3), atol=1e-5)


def test_empty_is_what_read_returns_in_shape(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=5)
    modality = video(frames=4)
    with Media(Sample("x", str(path))) as media:
        clip = modality.read(media, Window(0.0, 0.0), None)
    assert clip.shape == modality.empty().shape
    assert clip.dtype == modality.empty().dtype
    assert modality.prepare(clip[None], None).shape[1:] == modality.shape


def test_flip_is_drawn_for_each_clip() -> None:
    batch = clips(200, side=4)
    modality = video(flip=0.3, short_side=4, crop=4, **PLAIN)
    prepared = modality.prepare(batch, draws(200)).permute(0, 2, 3, 4, 1)
    straight = (prepared == batch).flatten(1).all(1)
    mirrored = (prepared == batch.flip(3)).flatten(1).all(1)
    assert torch.all(straight ^ mirrored)
    assert 0.2 < mirrored.float().mean() < 0.4


@pytest.mark.parametrize("name", ["none", *EVERYTHING, "all"])
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    chosen = EVERYTHING if name == "all" else {k: EVERYTHING[k] for k in [name] if k != "none"}
    modality = video(**{"flip": 0.0, **chosen})
    batch, seeds = clips(5), torch.tensor([5, 4, 3, 2, 1])
    whole = modality.prepare(batch, Draws(seeds, "video"))
    for part in [slice(0, 1), slice(1, 3), slice(3, 5)]:
        alone = modality.prepare(batch[part], Draws(seeds[part], "video"))
        assert torch.allclose(whole[part], alone, atol=1e-4)
    if name != "none":
        assert not torch.allclose(whole, modality.prepare(batch, None), atol=1e-2)


def test_a_full_turn_and_a_whole_shift_have_known_results() -> None:
    class Fixed(Draws):
        """Draws whose every number is the upper limit."""

        def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
            return torch.full((len(self), *shape), high)

    batch = clips(1)
    image = batch.permute(0, 4, 1, 2, 3).float()
    fixed = Fixed(torch.tensor([1]))
    turned = video(flip=0.0, rotate=180.0, **PLAIN).prepare(batch, fixed)
    assert torch.allclose(turned, image.flip(-1, -2), atol=0.1)
    shifted = video(flip=0.0, shift=0.25, **PLAIN).prepare(batch, fixed)
    assert torch.allclose(shifted[..., :12, :12], image[..., 4:, 4:], atol=0.1)
    # exp(ln 2) magnifies the middle half to the whole.
    magnified = video(flip=0.0, scale=float(np.log(2)), **PLAIN).prepare(batch, fixed)
    middle = torch.nn.functional.interpolate(image[0], scale_factor=2.0, mode="bilinear")
    assert torch.allclose(magnified[0][..., 1:-1, 1:-1], middle[..., 9:23, 9:23], atol=0.1)


def test_colours_are_the_four_steps_in_order() -> None:
    batch = torch.randint(
        60, 196, (4, 2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    modality = video(
        flip=0.0,
        short_side=8,
        crop=8,
        brightness=0.1,
        contrast=0.3,
        saturation=0.4,
        hue=0.1,
        **PLAIN,
    )
    prepared = modality.prepare(batch, draws(4)).permute(0, 2, 3, 4, 1).double().numpy()
    # The same numbers, in the order in which they are drawn.
    again = draws(4)
    again.chance(0.0)
    unit = again.uniform(4, low=-1, high=1).double().numpy()
    luma = np.array([0.299, 0.587, 0.114])
    yiq = np.array([luma, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    for clip, numbers, found in zip(batch.double().numpy(), unit, prepared, strict=True):
        x = clip + 255 * 0.1 * numbers[0]
        grey = (x @ luma)[..., None]
        x = grey + (1 + 0.4 * numbers[2]) * (x - grey)
        mean = x.mean((0, 1, 2))
        x = mean + (1 + 0.3 * numbers[1]) * (x - mean)
        turn = 2 * np.pi * 0.1 * numbers[3]
        y, i, q = np.moveaxis(x @ yiq.T, -1, 0)
        i, q = np.cos(turn) * i - np.sin(turn) * q, np.sin(turn) * i + np.cos(turn) * q
        x = np.stack([y, i, q], -1) @ np.linalg.inv(yiq).T
        # The luma row of YIQ is exact; so is grey under a turn of the hue.
        assert np.allclose(found, x.clip(0, 255), atol=0.05)


def test_hue_turns_colours_and_leaves_grey() -> None:
    grey = torch.full((1, 1, 4, 4, 3), 120, dtype=torch.uint8)
    red = torch.zeros((1, 1, 4, 4, 3), dtype=torch.uint8)
    red[..., 0] = 200
    modality = video(frames=1, flip=0.0, short_side=4, crop=4, hue=0.5, **PLAIN)
    assert torch.allclose(
        modality.prepare(grey, draws(1)), torch.full((1, 3, 1, 4, 4), 120.0), atol=0.1
    )
    hues = set()
    for seed in range(12):
        pixel = modality.prepare(red, Draws(torch.tensor([seed])))[0, :, 0, 0, 0] / 255
        hues.add(round(colorsys.rgb_to_hsv(*pixel.tolist())[0] * 6))
    assert len(hues) >= 4


def test_crop_is_drawn_in_training_and_central_in_evaluation(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=60, size=(96, 64))
    modality = Video(frames=3, short_side=64, crop=32)
    whole = Video(frames=3, short_side=64, crop=64)
    with Media(Sample("x", str(path))) as media:
        window = Window(1.8, 0.0)
        centre = modality.read(media, window, None)
        # The largest central square holds the smaller one in its middle.
        assert torch.equal(centre, whole.read(media, window, None)[:, 16:48, 16:48])
        drawn = [modality.read(media, window, np.random.default_rng(seed)) for seed in range(8)]
        again = modality.read(media, window, np.random.default_rng(0))
    assert torch.equal(drawn[0], again)
    assert len({clip.numpy().tobytes() for clip in drawn}) > 4


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (66, 50)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_crops_go_along_the_longer_side(tmp_path: Path, size: tuple[int, int], turns: int) -> None:
    path = tmp_path / "a.mp4"
    columns, rows = np.meshgrid(*(np.linspace(0, 255, n) for n in size))
    ramp = np.stack([columns, rows, np.full_like(rows, 128)], axis=2).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height = size
        stream.set_display_rotation(90 * turns)
        for _ in range(4):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="rgb24")))
        out.mux(stream.encode())
    side = min(size)
    modality = Video(frames=1, short_side=side, crop=side)
    with Media(Sample("x", str(path))) as media:
        first, middle, last = (
            modality.read(media, Window(0.0, 0.0, place), None)[0] for place in (0.0, 0.5, 1.0)
        )
        assert media.container.seek(0) is None
        frame = next(media.container.decode(video=0))
    picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    if picture.shape[0] > picture.shape[1]:  # a tall one, lying on its side
        picture, first, middle, last = (
            np.swapaxes(x, 0, 1) for x in (picture, first, middle, last)
        )
    rest = picture.shape[1] - side
    assert rest == max(size) - side
    for start, crop in ((0, first), (rest // 2, middle), (rest, last)):
        difference = np.asarray(crop).astype(int) - picture[:, start : start + side].astype(int)
        assert np.abs(difference).mean() < 4  # a pixel off along the ramp; ends are 60 apart


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (66, 50), (160, 32)])
def test_short_side_is_scaled(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mp4", frames=4, size=size)
    modality = Video(frames=2, short_side=48, crop=48)
    with Media(Sample("x", str(path))) as media:
        clip = modality.read(media, Window(0.0, 0.0), None)
        frame = next(media.container.decode(video=0)) if media.container.seek(0) is None else None
    assert frame is not None
    # Block averages agree with a plain scaling by another library.
    image = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None].float()
    factor = 48 / min(size)
    scaled = torch.nn.functional.interpolate(
        image,
        size=(max(48, round(size[1] * factor)), max(48, round(size[0] * factor))),
        mode="bilinear",
        antialias=True,
    )[0]
    top, left = (scaled.shape[1] - 48) // 2, (scaled.shape[2] - 48) // 2
    expected = scaled[:, top : top + 48, left : left + 48].permute(1, 2, 0)
    assert (clip[0].float() - expected).abs().mean() < 6


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"short_side": 100, "crop": 112}, "crop 112 is larger than short_side 100"),
        ({"fps": 10.0, "stride": 2}, "fps or stride"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
    ],
)
def test_impossible_parameters(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Video(**parameters)  # type: ignore[arg-type]


def test_a_process_forked_after_reading_reads_too(tmp_path: Path) -> None:
    """Loader processes are forked: nothing that reads may depend on threads of the parent."""
    path = write(tmp_path / "a.mp4", frames=20)
    code = (
        "import multiprocessing, sys, torch\n"
        "from mmssl import Media, Sample, Window\n"
        "from mmssl_media.video import Video\n"
        "def read(_=None):\n"
        "    with Media(Sample('a', sys.argv[1])) as media:\n"
        "        video = Video(frames=4, short_side=32, crop=32)\n"
        "        return int(video.read(media, Window(0.2, 0.0), None).sum())\n"
        "here = read()\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    assert pool.map_async(read, [0]).get(timeout=60) == [here]\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
