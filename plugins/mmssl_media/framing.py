"""Which part of a frame is seen, and how large it is scaled."""

import math

import numpy as np

from mmssl import BadMedia

# So often a random part of the picture is drawn until one fits into it.
_DRAWN = 10


def scaled_size(width: int, height: int, pixel: float, short_side: int) -> tuple[int, int]:
    """Width and height of square pixels whose smaller one is ``short_side``.

    ``pixel`` is the proportion of the stored pixels, width to height.
    """
    shown = shown_width(width, height, pixel)
    if shown < height:
        return short_side, max(short_side, round(height * short_side / shown))
    return max(short_side, round(shown * short_side / height)), short_side


def shown_width(width: int, height: int, pixel: float) -> float:
    """The width of a frame in pixels as high as they are wide.

    Raises:
        BadMedia: no frame has this size.
    """
    # What is narrower is a damaged header, and would be scaled to gigabytes.
    if not 0 < max(width, height) <= 32 * min(width, height):
        raise BadMedia(f"its frames are {width} by {height} pixels")
    # No camera's or disc's pixels are farther from square: the header is damaged.
    return width * pixel if 0.25 <= pixel <= 4 else width


def random_part(
    shape: float, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float]:
    """Which fractions of a picture's width and height a random part of it has.

    Args:
        shape: width to height of the picture.
        area: limits of the part's area, as a fraction of the picture's.
        aspect: limits of the part's width to height.
        rng: what is drawn from.
    """
    for _ in range(_DRAWN):
        share = rng.uniform(*area)
        wanted = math.exp(rng.uniform(*np.log(aspect)))
        across, down = math.sqrt(share * wanted / shape), math.sqrt(share * shape / wanted)
        if max(across, down) <= 1:
            return across, down
    wanted = min(max(shape, aspect[0]), aspect[1])
    return min(1.0, wanted / shape), min(1.0, shape / wanted)


def central_corner(place: float, size: tuple[int, int], turns: int) -> np.ndarray:
    """Where a frame is cut that is still to be turned upright: the middle, but for its longer side.

    Args:
        place: along the longer side of the upright picture, from its left or upper end.
        size: width and height before it is turned.
        turns: quarters, counter-clockwise.
    """
    wide = size[0] >= size[1]
    reversed_by = (1, 2) if wide else (2, 3)
    along = 1 - place if turns in reversed_by else place
    return np.array([0.5, along] if wide else [along, 0.5])
