"""Made-up motions of eight kinds: what a sensor on a moving body would measure.

A motion's kind is how acceleration and turning go on in time. Its tempo, strength, direction,
phase, the way in which the sensor is worn and its noise say nothing of it.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray

GRAVITY = 9.81

# Of a motion with phase ``[N]`` in radians: acceleration along an axis, along a second one, and
# turning around the third, each ``[N]`` in m/s² and rad/s. A generator for what comes at random.
_Motion = Callable[[Array, np.random.Generator], tuple[Array, Array, Array]]


def _swing(p: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    return 2 * np.sin(p), np.cos(2 * p), 2 * np.cos(p)


def _steps(p: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    since = p % np.pi
    return 8 * np.exp(-4 * since), 0.5 * np.sin(p), 0.2 * np.sin(p)


def _shaking(p: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    return 4 * np.sin(5 * p), 0 * p, 0.3 * np.sin(5 * p)


def _turning(p: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    return 0 * p + 2.0, 0 * p, 2 + 0.3 * np.sin(p)


def _knocks(p: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    at = rng.uniform(p[0], p[-1], 5)[:, None]
    rings = np.where(p > at, np.exp(-3 * (p - at).clip(0)) * np.cos(12 * (p - at)), 0)
    return 8 * rings.sum(0), 0 * p, 0 * p


def _circling(p: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    return 3 * np.sin(p), 3 * np.cos(p), 0 * p


def _tremor(p: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    fast = np.sin(7 * p) * (0.5 + 0.5 * np.sin(p))
    return 0.5 * fast, 0.5 * fast, 2.5 * fast


def _jerks(p: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    square = np.tanh(6 * np.sin(p))
    return 3 * square, 0 * p, -0.5 * square


MOTIONS: tuple[_Motion, ...] = (
    _swing,
    _steps,
    _shaking,
    _turning,
    _knocks,
    _circling,
    _tremor,
    _jerks,
)


def draw_motion(
    kind: int, seconds: float, rate: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """A recording: an accelerometer that feels gravity, and a gyroscope.

    Args:
        kind: index into `MOTIONS`.
        seconds: length; it begins and ends a little earlier and later.
        rate: measurements a second on average; their times are irregular.
        rng: what all else is drawn from.

    Returns:
        ``[N]`` ascending seconds and ``[N, 6]`` float32, m/s² and rad/s.
    """
    time = np.arange(-0.1, seconds + 0.1, 1 / rate)
    time = time + rng.uniform(-0.3, 0.3, len(time)) / rate
    phase = 2 * np.pi * (rng.uniform(1.0, 1.7) * time + rng.random())
    along, across, turning = MOTIONS[kind](phase, rng)
    still = np.zeros(len(time))
    strength = rng.uniform(0.7, 1.3)
    acceleration = strength * np.stack([along, across, still], 1) + [0, 0, GRAVITY]
    gyroscope = strength * np.stack([still, still, rng.choice([-1, 1]) * turning], 1)
    worn = _orientation(rng)
    values = np.concatenate([acceleration @ worn, gyroscope @ worn], 1)
    values += rng.normal(size=values.shape) * ([0.5] * 3 + [0.1] * 3)
    return time, values.astype(np.float32)


def _orientation(rng: np.random.Generator) -> Array:
    """``[3, 3]``: a tilt of a few dozen degrees after any turn around the vertical."""
    turn, tilt = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.4)
    c, s = np.cos(turn), np.sin(turn)
    flat = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    c, s = np.cos(tilt), np.sin(tilt)
    return flat @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
