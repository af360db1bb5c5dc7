"""Captions of made-up videos: what is seen and heard, in words that vary.

A caption tells the class, and its video from others of the class: the brighter colour, whether the
pattern is fine or coarse, whither it moves and how fast; how high and how fast is what is heard.
What is middling, and what a pattern does not have, is not mentioned. The words for it come from a
random stream that no picture and no sound is drawn from.
"""

import colorsys
import math

import numpy as np

from mmssl.data.draws import derive_seed
from mmssl_media.synthetic_clips import (
    OCTAVES,
    PITCH,
    SIZES,
    TEMPI,
    TURNS,
    Hearing,
    Sight,
    draw_hearing,
    draw_sight,
)

# Ways to say what is seen in each class, in the order of the classes; `_seen` has the words that
# stand in the braces.
_SEEN = (
    (
        "{fine} {colour} level stripes roll {up} {fast}",
        "{fine} {colour} horizontal bars move {up} {fast}",
        "{fast} {fine} {colour} flat lines slide {up}",
    ),
    (
        "{fine} {colour} upright stripes wander {left} {fast}",
        "{fine} {colour} vertical bars march {left} {fast}",
        "{fast} {fine} {colour} standing lines pass {left}",
    ),
    (
        "a {fine} {colour} checkerboard circles {fast}",
        "{fine} {colour} squares swing around {fast}",
        "{fast} a {fine} {colour} chequered board sways",
    ),
    (
        "{fine} {colour} rings grow {fast}",
        "{fine} {colour} circles spread outwards {fast}",
        "{fast} {fine} {colour} ripples widen from the middle",
    ),
    (
        "a {colour} pinwheel turns {clockwise} {fast}",
        "a {colour} fan spins {clockwise} {fast}",
        "{fast} the {colour} propeller's blades rotate {clockwise}",
    ),
    (
        "{fine} {colour} dots drift {left} {fast}",
        "{fine} {colour} spots float {left} {fast}",
        "{fast} {fine} {colour} round specks travel {left}",
    ),
    (
        "{colour} blocks change at random",
        "a {colour} mosaic flickers",
        "big {colour} pixels switch on and off",
    ),
    (
        "the {colour} picture flashes {fast}",
        "a {colour} light blinks {fast}",
        "{fast} a {colour} lamp goes on and off",
    ),
)

# Ways to say what is heard in each; `_heard` has the words.
_HEARD = (
    (
        "a {low} tone beeps {fast}",
        "{low} beeps repeat {fast}",
        "{fast} the {low} alarm clock beeps",
    ),
    (
        "{low} chirps go up {fast}",
        "{low} whistles rise {fast}",
        "{fast} a {low} slide whistle climbs",
    ),
    (
        "{low} chirps go down {fast}",
        "{low} whistles fall {fast}",
        "{fast} a {low} slide whistle drops",
    ),
    (
        "a {low} siren howls {fast}",
        "a {low} siren wails {fast}",
        "{fast} the {low} ambulance howls",
    ),
    ("noise bursts out {fast}", "something hisses in bursts {fast}", "{fast} a steam engine puffs"),
    (
        "something {low} buzzes {fast}",
        "a {low} wasp hums {fast}",
        "{fast} a {low} rough drone throbs",
    ),
    (
        "two {low} notes take turns {fast}",
        "a {low} horn plays two notes {fast}",
        "{fast} a {low} two-tone call repeats",
    ),
    ("{low} bells ring {fast}", "a {low} bell is struck {fast}", "{fast} {low} chimes toll"),
)

# How the two are put together.
_BOTH = (
    "{seen} while {heard}",
    "{seen}, and {heard}",
    "Look how {seen}! Hear how {heard}.",
    "here {seen}, in the background {heard}",
    "{heard} as {seen}",
    "so {heard} and you see {seen}",
)

# Narrations about one of them, which say half of it.
_HALF = ("now {half}", "and you will notice that {half}", "again {half}", "{half}, like before")

# Narrations that say nothing of the video.
_ASIDE = (
    "don't forget to subscribe to the channel",
    "welcome back everybody",
    "let me show you one more thing",
    "okay so where were we",
    "I did this a hundred times last summer",
    "the link is in the description below",
)

# Hues of 0, 60, ... 300 degrees.
_HUES = ("red", "yellow", "green", "turquoise", "blue", "pink")


def captions(seed: int, index: int, label: int, others: int) -> list[str]:
    """What is said of a video: a caption of its sight and sound, then narrations around it.

    Args:
        seed: of all videos.
        index: the video's number.
        label: its class.
        others: further narrations: each tells half of what the first one does, or nothing of it.
    """
    rng = np.random.default_rng(derive_seed("captions", seed, index))
    sight, hearing = draw_sight(seed, index), draw_hearing(seed, index)

    def one_of(choices: tuple[str, ...]) -> str:
        return choices[rng.integers(len(choices))]

    def seen() -> str:
        return _said(one_of(_SEEN[label]), _seen(sight))

    def heard() -> str:
        return _said(one_of(_HEARD[label]), _heard(hearing))

    texts = [one_of(_BOTH).format(seen=seen(), heard=heard())]
    for _ in range(others):
        half = seen() if rng.random() < 0.5 else heard()
        texts.append(one_of(_HALF).format(half=half) if rng.random() < 0.5 else one_of(_ASIDE))
    return texts


def _seen(sight: Sight) -> dict[str, str]:
    """What may be said of a picture; ``""`` where it is nothing to speak of."""
    ahead = sight.direction > 0
    return {
        "colour": colour_of(max(sight.light, sight.dark, key=max)),
        "fine": _third(sight.k / math.pi, SIZES, "coarse", "fine"),
        "fast": _third(sight.turns, TURNS, "slowly", "quickly"),
        "up": "up" if ahead else "down",
        "left": "to the left" if ahead else "to the right",
        "clockwise": "anticlockwise" if ahead else "clockwise",
    }


def _heard(hearing: Hearing) -> dict[str, str]:
    """What may be said of a sound."""
    return {
        "low": _third(math.log2(hearing.pitch / PITCH), OCTAVES, "low", "high"),
        "fast": _third(hearing.tempo, TEMPI, "slowly", "quickly"),
    }


def colour_of(rgb: np.ndarray) -> str:
    """The name of a bright colour, ``[3]`` between 0 and 1."""
    hue, saturation, _ = colorsys.rgb_to_hsv(*(float(x) for x in rgb))
    return "white" if saturation < 0.2 else _HUES[round(6 * hue) % 6]


def _third(value: float, limits: tuple[float, float], below: str, above: str) -> str:
    """A word for the lower third between two limits and one for the upper, none for the middle."""
    share = (value - limits[0]) / (limits[1] - limits[0])
    return below if share < 1 / 3 else above if share > 2 / 3 else ""


def _said(sentence: str, words: dict[str, str]) -> str:
    """A sentence with its words, and without the gaps of those that are left out."""
    return " ".join(sentence.format(**words).split())
