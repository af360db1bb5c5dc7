"""Captions of made-up videos say what is seen and heard, measured in pixels and samples."""

import colorsys
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mmssl_media.synthetic import Synthetic
from mmssl_media.synthetic_clips import CLASSES, Format, draw_frames, draw_sound
from mmssl_media.text import words_of

FORM = Format(side=48, fps=12, seconds=10.0, rate=8000)
SHORT = Format(side=48, fps=12, seconds=2.0, rate=8000)
UNIT = 23.5  # pixels from the middle to the edge: positions go from -1 to 1

LEVEL, UPRIGHT, BOARD, RINGS, PINWHEEL, DOTS, BLOCKS, FLASHES = range(8)
BEEPS = 0

HUES = {"red": 0, "yellow": 60, "green": 120, "turquoise": 180, "blue": 240, "pink": 300}


def captioned(labels: list[int], videos: int) -> Iterator[tuple[int, int, str]]:
    """Row, class and first caption of videos of some classes."""
    dataset = Synthetic(videos=videos)
    for row in range(videos):
        sample = dataset.sample(row)
        assert sample.label is not None
        if sample.label in labels:
            yield row, sample.label, sample.fields["text"]


def halves(caption: str, label: int) -> tuple[set[str], set[str]]:
    """Words of what is seen and of what is heard: both may move quickly."""
    for joint in (" while ", "! Hear how ", ", and ", ", in the background "):
        if joint in caption:
            seen, heard = caption.split(joint)
            return set(words_of(seen)), set(words_of(heard))
    for joint in (" and you see ", " as "):
        if joint in caption:
            heard, seen = caption.split(joint)
            return set(words_of(seen)), set(words_of(heard))
    raise AssertionError(caption)


def light(frames: np.ndarray) -> np.ndarray:
    """``[T, H, W]``, the brightness of a video's middle, which the ground does not reach."""
    middle = frames[:, 12:36, 12:36].astype(float).max(3)
    found: np.ndarray = middle - middle.mean()
    return found


def test_the_colour_is_that_of_the_brightest_pixels() -> None:
    right = total = 0
    named = set()
    for row, label, caption in captioned([*range(8)], 160):
        pixels = draw_frames(SHORT, 0, row, label)[:, 12:36, 12:36].reshape(-1, 3)
        brightest = pixels[pixels.max(1) >= np.quantile(pixels.max(1), 0.9)].mean(0) / 255
        hue, saturation, _ = colorsys.rgb_to_hsv(*brightest)
        far = {name: abs((360 * hue - at + 180) % 360 - 180) for name, at in HUES.items()}
        expected = "white" if saturation < 0.2 else min(far, key=lambda name: far[name])
        (said,) = (words := set(words_of(caption))) & {*HUES, "white"}
        assert words
        named.add(said)
        total += 1
        right += said == expected
    assert named == {*HUES, "white"}
    assert right / total > 0.93  # noise moves what lies between two colours


@pytest.mark.parametrize(
    ("label", "axis", "words"),
    [(LEVEL, 1, ("up", "down")), (UPRIGHT, 2, ("left", "right")), (DOTS, 2, ("left", "right"))],
    ids=["level stripes", "upright stripes", "dots"],
)
def test_patterns_move_whither_they_are_said_to(
    label: int, axis: int, words: tuple[str, str]
) -> None:
    """The next frame is like this one moved by a pixel or two."""
    met = set()
    for row, _, caption in captioned([label], 160):
        video = light(draw_frames(SHORT, 0, row, label))

        def likeness(step: int, video: np.ndarray = video) -> float:
            moved = np.roll(video[:-1], step, axis)
            inside = (slice(None), slice(4, -4), slice(4, -4))
            return float((moved[inside] * video[1:][inside]).mean())

        back, on = (max(likeness(sign * step) for step in (1, 2)) for sign in (-1, 1))
        seen, _ = halves(caption, label)
        expected = words[0] if back > on else words[1]
        assert seen & set(words) == {expected}
        met.add(expected)
    assert met == set(words)


def test_a_pinwheel_turns_as_it_is_said_to() -> None:
    met = set()
    for row, label, caption in captioned([PINWHEEL], 160):
        video = draw_frames(SHORT, 0, row, label).astype(float).max(3)
        # Along a circle around its centre, wherever that is: clockwise, as y goes down.
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        y, x = (np.round(UNIT + 15 * f(angles)).astype(int) for f in (np.sin, np.cos))
        around = video[:, y, x] - video[:, y, x].mean()
        on = (np.roll(around[:-1], 2, 1) * around[1:]).mean()
        back = (np.roll(around[:-1], -2, 1) * around[1:]).mean()
        expected = "clockwise" if on > back else "anticlockwise"
        assert halves(caption, label)[0] & {"clockwise", "anticlockwise"} == {expected}
        met.add(expected)
    assert len(met) == 2


def told(
    labels: list[int],
    words: tuple[str, str],
    half: int,
    measure: Callable[[int, int], float],
    limits: tuple[float, float],
    slack: float,
) -> None:
    """The lower third of a range has one word, the upper third the other, the middle none."""
    low, high = limits
    first, second = low + (high - low) / 3, high - (high - low) / 3
    met = []
    for row, label, caption in captioned(labels, 160):
        value = measure(row, label)
        assert low - slack < value < high + slack
        (said, *more) = [*(halves(caption, label)[half] & set(words)), ""]
        assert more in ([], [""])
        met.append(said)
        if said == words[0]:
            assert value < first + slack, caption
        elif said == words[1]:
            assert value > second - slack, caption
        else:
            assert first - slack < value < second + slack, caption
    assert all(met.count(said) >= 3 for said in (*words, ""))


def test_fine_and_coarse() -> None:
    def periods(row: int, label: int) -> float:
        """Across the picture, by the wave that fits best."""
        video = light(draw_frames(SHORT, 0, row, label)).mean(2 if label == LEVEL else 1)
        place = np.arange(12, 36) / UNIT
        tried = np.arange(2.0, 5.0, 0.02)
        waves = np.exp(-1j * np.pi * tried[:, None] * place)
        return float(tried[(np.abs(video @ waves.T) ** 2).sum(0).argmax()])

    told([LEVEL, UPRIGHT], ("coarse", "fine"), 0, periods, (2.6, 4.2), 0.3)


def test_slowly_and_quickly_seen() -> None:
    def turns(row: int, label: int) -> float:
        on = light(draw_frames(FORM, 0, row, label)).mean((1, 2)) > 0
        at = np.flatnonzero(np.diff(on))
        return float((len(at) - 1) / 2 / (at[-1] - at[0]) * FORM.fps)

    told([FLASHES], ("slowly", "quickly"), 0, turns, (0.8, 1.5), 0.03)


def loudest(values: np.ndarray, rate: float, low: float, high: float) -> float:
    """The strongest frequency between two."""
    power = np.abs(np.fft.rfft(values))
    frequencies = np.fft.rfftfreq(len(values), 1 / rate)
    inside = (low < frequencies) & (frequencies < high)
    return float(frequencies[inside][power[inside].argmax()])


def test_low_and_high() -> None:
    def octave(row: int, label: int) -> float:
        sound = draw_sound(FORM, 0, row, label)
        return float(np.log2(loudest(sound, FORM.rate, 300, 1500) / 1.5 / 500))

    told([BEEPS], ("low", "high"), 1, octave, (-0.6, 0.6), 0.03)


def test_slowly_and_quickly_heard() -> None:
    def tempo(row: int, label: int) -> float:
        sound = draw_sound(FORM, 0, row, label)
        return loudest(sound**2 - (sound**2).mean(), FORM.rate, 1.5, 4.5)

    told([BEEPS], ("slowly", "quickly"), 1, tempo, (2.2, 4.0), 0.1)


def test_what_is_middling_leaves_no_gap() -> None:
    dataset = Synthetic(videos=400)
    for row in range(400):
        for text in json.loads(dataset.sample(row).fields["texts"]):
            assert text == " ".join(text.split())
            assert "{" not in text
            assert " ," not in text
            assert " a alarm" not in text
    assert len(CLASSES) == 8
