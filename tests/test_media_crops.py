"""Random parts of the picture: which one is shown, read off a picture of its own coordinates."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import Draws, Media, Sample, UserError, Window
from mmssl_media.framing import random_part
from mmssl_media.image import Image
from mmssl_media.video import Video

WIDE, HIGH = 320, 192


def coordinates(width: int = WIDE, height: int = HIGH) -> np.ndarray:
    """``[height, width, 3]`` uint8: red grows from left to right, green from top to bottom."""
    across = np.linspace(20, 235, width)[None, :].repeat(height, 0)
    down = np.linspace(20, 235, height)[:, None].repeat(width, 1)
    return np.stack([across, down, np.full_like(across, 128)], 2).round().astype(np.uint8)


def film(path: Path, *, frames: int = 3, rotation: int = 0, pixel: Fraction = Fraction(1)) -> Path:
    """A video whose upright picture is `coordinates`, stored turned and squeezed."""
    stored = np.ascontiguousarray(np.rot90(coordinates(), -rotation // 90))
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width = stored.shape[:2]
        stream.pix_fmt = "yuv444p"
        stream.codec_context.sample_aspect_ratio = pixel
        if rotation:
            stream.set_display_rotation(rotation)
        for _ in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        out.mux(stream.encode(None))
    return path


class Part(NamedTuple):
    """What of a picture is seen: fractions of its width and height."""

    left: float
    top: float
    across: float
    down: float

    def aspect(self, picture: float = WIDE / HIGH) -> float:
        return self.across / self.down * picture

    @property
    def area(self) -> float:
        return self.across * self.down


def part_of(picture: np.ndarray) -> Part:
    """The part that a picture ``[crop, crop, 3]`` shows, from the slopes of its colours."""
    found = []
    for channel, axis in ((0, 0), (1, 1)):
        values = (picture[..., channel].astype(float).mean(axis) - 20.0) / 215.0
        places = np.arange(len(values))
        inner = slice(2, -2)  # what is beyond the picture's edge is not interpolated
        slope, start = np.polyfit(places[inner] + 0.5, values[inner], 1)
        found.append((start, slope * len(values)))
    (left, across), (top, down) = found
    return Part(left, top, across, down)


def read(modality: Video | Image, path: Path, seed: int | None) -> np.ndarray:
    rng = None if seed is None else np.random.default_rng(seed)
    with Media(Sample("x", str(path))) as media:
        return modality.read(media, Window(0.0, 0.0), rng).numpy()


def vatt(**parameters: Any) -> Video:
    given = {"frames": 3, "short_side": 80, "crop": 64, "area": (0.08, 1.0), **parameters}
    return Video(**given)


def test_a_part_within_limits_fills_the_crop(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    seen = []
    for seed in range(40):
        clip = read(vatt(), path, seed)
        assert clip.shape == (3, 64, 64, 3)
        parts = [part_of(frame) for frame in clip]
        assert np.allclose(parts, parts[0], atol=0.01)  # every frame shows the same
        seen.append(parts[0])
    for part in seen:
        assert 0.07 < part.area < 1.02
        assert 0.47 < part.aspect() < 2.1
        assert part.left > -0.02
        assert part.top > -0.02
        assert part.left + part.across < 1.02
        assert part.top + part.down < 1.02
    areas, aspects = [p.area for p in seen], [p.aspect() for p in seen]
    assert min(areas) < 0.25
    assert max(areas) > 0.65
    assert min(aspects) < 0.8
    assert max(aspects) > 1.5
    assert np.ptp([part.left for part in seen]) > 0.3
    assert np.ptp([part.top for part in seen]) > 0.3


def test_a_part_is_a_function_of_the_generator(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    for seed in range(5):
        assert np.array_equal(read(vatt(), path, seed), read(vatt(), path, seed))
        # Where the part is comes first, then its size: area and the logarithm of its aspect.
        rng = np.random.default_rng(seed)
        place = rng.random(2)
        while True:
            area, aspect = rng.uniform(0.08, 1.0), math.exp(rng.uniform(-math.log(2), math.log(2)))
            across = math.sqrt(area * aspect * HIGH / WIDE)
            down = area / across
            if max(across, down) <= 1:
                break
        part = part_of(read(vatt(), path, seed)[0])
        expected = (place[1] * (1 - across), place[0] * (1 - down), across, down)
        assert np.allclose(part, expected, atol=0.02)


def test_evaluation_is_the_central_crop(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    central = Video(frames=3, short_side=80, crop=64)
    assert np.array_equal(read(vatt(), path, None), read(central, path, None))
    part = part_of(read(vatt(), path, None)[0])
    assert part.down == pytest.approx(64 / 80, abs=0.01)
    assert part.top == pytest.approx(0.1, abs=0.01)


def test_the_whole_picture_may_be_asked_for(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    whole = vatt(area=(1.0, 1.0), aspect=(WIDE / HIGH, WIDE / HIGH))
    assert np.allclose(part_of(read(whole, path, 0)[0]), (0, 0, 1, 1), atol=0.01)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_shapes_are_of_the_upright_picture(tmp_path: Path, rotation: int) -> None:
    path = film(tmp_path / "a.mp4", rotation=rotation)
    for seed in range(4):
        part = part_of(read(vatt(area=(0.2, 0.3), aspect=(1.7, 1.8)), path, seed)[0])
        assert 0.19 < part.area < 0.31
        assert 1.65 < part.aspect() < 1.85


def test_shapes_are_of_square_pixels(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", pixel=Fraction(3, 2))
    part = part_of(read(vatt(area=(0.2, 0.2), aspect=(1.0, 1.0)), path, 0)[0])
    assert part.aspect(1.5 * WIDE / HIGH) == pytest.approx(1.0, abs=0.03)
    assert part.area == pytest.approx(0.2, abs=0.01)


def test_pictures_have_parts_too(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with av.open(str(path), "w", format="image2") as out:
        stream: Any = out.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = WIDE, HIGH, "rgb24"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(coordinates(), format="rgb24")))
        out.mux(stream.encode(None))
    image = Image(short_side=80, crop=64, area=(0.3, 0.4), aspect=(0.9, 1.1))
    part = part_of(read(image, path, 0))
    assert 0.29 < part.area < 0.41
    assert 0.88 < part.aspect() < 1.12


@settings(deadline=None)
@given(
    st.floats(1 / 40, 40),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    st.integers(0, 2**32),
)
def test_arandom_part_is_within_limits_and_the_picture(
    shape: float, area: list[float], aspect: list[float], seed: int
) -> None:
    limits = (area[0], area[1]), (aspect[0], aspect[1])
    across, down = random_part(shape, *limits, np.random.default_rng(seed))
    assert (across, down) == random_part(shape, *limits, np.random.default_rng(seed))
    assert 0 < across <= 1
    assert 0 < down <= 1
    if across < 1 and down < 1:
        assert area[0] * 0.999 <= across * down <= area[1] * 1.001
    else:  # the largest of a permitted shape
        assert across * down <= 1
    assert aspect[0] * 0.999 <= across / down * shape <= aspect[1] * 1.001


def test_areas_are_uniform_and_aspects_in_their_logarithm() -> None:
    rng = np.random.default_rng(0)
    parts = np.array([random_part(1.0, (0.08, 0.5), (0.5, 2.0), rng) for _ in range(4000)])
    # All of these fit, so that nothing is drawn twice: 0.5 of the area at 2 to 1 is all the width.
    area, aspect = parts.prod(1), np.log2(parts[:, 0] / parts[:, 1])
    assert area.mean() == pytest.approx(0.29, abs=0.01)
    assert area.std() == pytest.approx(0.42 / math.sqrt(12), abs=0.005)
    assert aspect.mean() == pytest.approx(0.0, abs=0.04)
    assert aspect.std() == pytest.approx(2 / math.sqrt(12), abs=0.02)
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"area": (0.5, 0.2)}, "area goes from the smaller"),
        ({"aspect": (2.0, 0.5)}, "aspect goes from the smaller"),
        ({"area": None, "aspect": (1.0, 1.0)}, "set area"),
    ],
)
def test_limits_that_cannot_be(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vatt(**parameters)


def test_colours_change_with_a_probability() -> None:
    colours = {"brightness": 32 / 255, "saturation": 0.4, "contrast": 0.4, "hue": 0.2}
    plain = {"frames": 1, "short_side": 4, "crop": 4, "flip": 0.0}
    batch = torch.randint(0, 256, (400, 1, 4, 4, 3), dtype=torch.uint8)
    seeds = torch.arange(400)
    always = Video(**plain, **colours).prepare(batch, Draws(seeds))  # type: ignore[arg-type]
    some = Video(**plain, **colours, colour_probability=0.8).prepare(batch, Draws(seeds))  # type: ignore[arg-type]
    none = Video(**plain).prepare(batch, Draws(seeds))  # type: ignore[arg-type]

    def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((a - b).abs() < 1e-4).flatten(1).all(1)

    changed, kept = same(some, always), same(some, none)
    assert torch.all(changed ^ kept)
    assert 0.74 < changed.float().mean() < 0.86
    never = Video(**plain, **colours, colour_probability=0.0)  # type: ignore[arg-type]
    assert torch.all(same(never.prepare(batch, Draws(seeds)), none))
    # A clip's lot does not depend on its batch.
    alone = Video(**plain, **colours, colour_probability=0.8).prepare(batch[7:9], Draws(seeds[7:9]))  # type: ignore[arg-type]
    assert torch.allclose(alone, some[7:9], atol=1e-5)


def test_vatts_values_are_between_minus_one_and_one() -> None:
    half = (127.5, 127.5, 127.5)
    video = Video(frames=1, short_side=4, crop=4, mean=half, std=half, brightness=0.5)
    batch = torch.randint(0, 256, (50, 1, 4, 4, 3), dtype=torch.uint8)
    prepared = video.prepare(batch, Draws(torch.arange(50)))
    assert float(prepared.min()) == -1.0
    assert float(prepared.max()) == 1.0
