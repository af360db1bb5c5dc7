"""Captions of made-up videos: what is seen and heard, in words that vary.

Which words are drawn from a random stream that no picture and no sound is drawn from, so that a
caption shares nothing with its video but the class.
"""

import numpy as np

from mmssl.data.draws import derive_seed

# Ways to say what is seen in each class, in the order of the classes.
_SEEN = (
    ("level stripes roll by", "horizontal bars move up and down", "flat lines slide past"),
    ("upright stripes wander", "vertical bars march sideways", "standing lines pass by"),
    ("a checkerboard circles", "black and white squares swing around", "a chequered board sways"),
    ("rings grow", "circles spread outwards", "ripples widen from the middle"),
    ("a pinwheel turns", "a fan spins", "the blades of a propeller rotate"),
    ("dots drift along", "spots float across", "round specks travel over the screen"),
    ("blocks change at random", "a mosaic flickers", "coarse pixels switch on and off"),
    ("the picture flashes", "a light blinks", "a lamp goes on and off"),
)

# Ways to say what is heard in each.
_HEARD = (
    ("a tone beeps", "short beeps repeat", "an alarm clock beeps"),
    ("chirps go up", "whistles rise", "a slide whistle climbs again and again"),
    ("chirps go down", "whistles fall", "a slide whistle drops again and again"),
    ("a siren howls", "a siren wails", "an ambulance howls far away"),
    ("noise bursts out", "something hisses in bursts", "a steam engine puffs"),
    ("something buzzes", "a wasp hums", "a rough drone throbs"),
    ("two notes take turns", "a horn plays high and low", "a two-tone call repeats"),
    ("bells ring", "a bell is struck over and over", "chimes toll"),
)

# How the two are put together.
_BOTH = (
    "{seen} while {heard}",
    "{heard} as {seen}",
    "{seen}, and {heard}",
    "Look how {seen}! You can hear that {heard}.",
    "here {seen} and in the background {heard}",
    "so {heard} and what you see is that {seen}",
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


def captions(seed: int, index: int, label: int, others: int) -> list[str]:
    """What is said of a video: a caption of its sight and sound, then narrations around it.

    Args:
        seed: of all videos.
        index: the video's number.
        label: its class.
        others: further narrations: each tells half of what the first one does, or nothing of it.
    """
    rng = np.random.default_rng(derive_seed("captions", seed, index))

    def one_of(choices: tuple[str, ...]) -> str:
        return choices[rng.integers(len(choices))]

    texts = [one_of(_BOTH).format(seen=one_of(_SEEN[label]), heard=one_of(_HEARD[label]))]
    for _ in range(others):
        half = one_of(_SEEN[label] + _HEARD[label])
        texts.append(one_of(_HALF).format(half=half) if rng.random() < 0.5 else one_of(_ASIDE))
    return texts
