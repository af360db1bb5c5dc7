"""Made-up clips whose sight and sound share nothing but their class.

Sight: the class is which pattern moves, and how. Sound: the class is what is heard, and how it
is modulated. Everything else, position, size, colours, background, speed, direction, phase and
pixel noise here, pitch, tempo, phase, loudness, timbre and background noise there, is drawn from
two random streams that know nothing of each other.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

Array = np.ndarray

# Frames of a drawing's blobs of background, and partials of a buzz.
_BLOBS = 5
_PARTIALS = 8

# Limits of what is drawn: turns and events a second, spatial frequencies in half turns per unit,
# octaves around a pitch in Hz.
TURNS = (0.8, 1.5)
SIZES = (2.6, 4.2)
TEMPI = (2.2, 4.0)
OCTAVES = (-0.6, 0.6)
PITCH = 500.0


@dataclass(frozen=True)
class Format:
    """Size of the clips.

    Attributes:
        side: height and width in pixels, even.
        fps: frames per second.
        seconds: length.
        rate: samples of sound per second, mono.
    """

    side: int = 48
    fps: int = 12
    seconds: float = 2.5
    rate: int = 16_000


@dataclass(frozen=True)
class _Scene:
    """What a pattern is drawn from.

    Attributes:
        u, v: ``[1, H, W]`` coordinates, about -1 to 1, moved and tilted.
        cycle: ``[T, 1, 1]`` phase of the motion in radians.
        turn: the same in the clip's direction.
        k: spatial frequency in radians per unit.
        rng: for what a pattern draws itself.
    """

    u: Array
    v: Array
    cycle: Array
    turn: Array
    k: float
    rng: np.random.Generator


def _level_stripes(s: _Scene) -> Array:
    return cast(Array, np.sin(s.k * s.v + s.turn))


def _upright_stripes(s: _Scene) -> Array:
    return cast(Array, np.sin(s.k * s.u + s.turn))


def _checkerboard(s: _Scene) -> Array:
    across = np.sin(s.k * (s.u + 0.15 * np.sin(s.cycle)))
    down = np.sin(s.k * (s.v + 0.15 * np.cos(s.cycle)))
    return cast(Array, 2.0 * across * down)


def _rings(s: _Scene) -> Array:
    return cast(Array, np.sin(1.2 * s.k * np.hypot(s.u, s.v) - s.cycle))


def _pinwheel(s: _Scene) -> Array:
    arms = int(s.rng.integers(2, 4))
    return cast(Array, np.sin(arms * np.arctan2(s.v, s.u) + s.turn))


def _dots(s: _Scene) -> Array:
    step = 0.75 * s.k / np.pi
    across = (step * s.u + s.turn / np.pi) % 2.0 - 1.0
    down = (step * s.v) % 2.0 - 1.0
    return cast(Array, (0.5 - np.hypot(across, down)) * 3.0)


def _blocks(s: _Scene) -> Array:
    frames, side = len(s.cycle), s.u.shape[-1]
    cells = s.rng.choice([-1.0, 1.0], (frames // 2 + 1, 6, 6)).astype(np.float32)
    at = np.arange(side) * 6 // side
    return cells[np.arange(frames) // 2][:, at][:, :, at]


def _flashes(s: _Scene) -> Array:
    return cast(Array, np.sign(np.sin(s.cycle)) * np.ones_like(s.u))


@dataclass(frozen=True)
class _Score:
    """What a sound is made from.

    Attributes:
        time: ``[samples]`` seconds.
        cycle: ``[samples]`` place within an event, 0 to 1.
        half: the same at half the tempo.
        pitch: Hz.
        bright: strength of the second partial.
        start: phase in radians.
        rng: for what a sound draws itself.
    """

    time: Array
    cycle: Array
    half: Array
    pitch: float
    bright: float
    start: float
    rng: np.random.Generator

    def tone(self, frequency: Any, *partials: float) -> Array:
        """A tone of constant or varying frequency."""
        step = self.time[1] - self.time[0]
        turns = np.cumsum(np.broadcast_to(frequency, self.time.shape)) * step
        phase = self.start + 2 * np.pi * turns
        tone = np.zeros_like(self.time)
        for i, strength in enumerate(partials, start=1):
            tone += strength * np.sin(i * phase)
        return tone

    def gate(self, share: float) -> Array:
        """Open for the first share of each event, with soft edges."""
        return np.clip(np.minimum(self.cycle, share - self.cycle) * 30.0, 0.0, 1.0)


def _beeps(s: _Score) -> Array:
    return s.tone(1.5 * s.pitch, 1.0) * s.gate(0.45)


def _rising_chirps(s: _Score) -> Array:
    return s.tone(s.pitch * 4.0**s.cycle, 1.0, s.bright) * s.gate(0.95)


def _falling_chirps(s: _Score) -> Array:
    return s.tone(s.pitch * 4.0 ** (1.0 - s.cycle), 1.0, s.bright) * s.gate(0.95)


def _siren(s: _Score) -> Array:
    wobble = 2.0 ** (0.6 * np.sin(2 * np.pi * s.cycle))
    return s.tone(1.6 * s.pitch * wobble, 1.0, s.bright)


def _bursts(s: _Score) -> Array:
    white = s.rng.standard_normal(len(s.time))
    return (white + s.bright * np.roll(white, 1)) * s.gate(0.35)


def _buzz(s: _Score) -> Array:
    partials = [1.0 / i**0.7 for i in range(1, _PARTIALS + 1)]
    return s.tone(0.5 * s.pitch, *partials) * (0.55 + 0.45 * np.sin(4 * np.pi * s.cycle))


def _two_notes(s: _Score) -> Array:
    return s.tone(s.pitch * np.where(s.half < 0.5, 1.0, 1.9), 1.0, s.bright, s.bright)


def _bells(s: _Score) -> Array:
    envelope = np.exp(-4.5 * s.cycle) * np.clip(s.cycle * 60.0, 0.0, 1.0)
    partials = ((1.0, 1.0), (0.8, 2.76), (0.6, 5.4))
    return sum((a * s.tone(m * s.pitch, 1.0) for a, m in partials), np.zeros(1)) * envelope


@dataclass(frozen=True)
class ClipClass:
    """What is seen and what is heard in a class."""

    name: str
    pattern: Callable[[_Scene], Array]
    sound: Callable[[_Score], Array]


CLASSES = (
    ClipClass("level stripes, beeps", _level_stripes, _beeps),
    ClipClass("upright stripes, rising chirps", _upright_stripes, _rising_chirps),
    ClipClass("circling checkerboard, falling chirps", _checkerboard, _falling_chirps),
    ClipClass("growing rings, siren", _rings, _siren),
    ClipClass("turning pinwheel, bursts of noise", _pinwheel, _bursts),
    ClipClass("drifting dots, buzz", _dots, _buzz),
    ClipClass("changing blocks, two notes", _blocks, _two_notes),
    ClipClass("flashes, bells", _flashes, _bells),
)


def label_of(seed: int, index: int, classes: int) -> int:
    """Each run of ``classes`` indices holds every class once, in an order of its own."""
    block, within = divmod(index, classes)
    return int(np.random.default_rng([seed, block, 2]).permutation(classes)[within])


@dataclass(frozen=True)
class Sight:
    """What a picture is drawn from, whichever its class.

    Attributes:
        centre: ``[2]`` float32 of the window, across and down, in units of half a side.
        radius: of the window, in the same units.
        turns: of the motion, in a second.
        phase: of the motion, in radians.
        direction: 1.0 or -1.0.
        tilt: in radians.
        k: spatial frequency in radians per unit.
        light, dark: ``[3]`` float32 RGB; either may be the brighter one.
        ground: ``[3]`` float32 RGB.
        rng: for what comes after these.
    """

    centre: Array
    radius: float
    turns: float
    phase: float
    direction: float
    tilt: float
    k: float
    light: Array
    dark: Array
    ground: Array
    rng: np.random.Generator


def draw_sight(seed: int, index: int) -> Sight:
    """What the picture of a video is drawn from."""
    rng = np.random.default_rng([seed, index, 0])
    centre = rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    radius = rng.uniform(1.1, 1.5)
    turns = rng.uniform(*TURNS)
    phase = rng.uniform(0.0, 2 * np.pi)
    direction = rng.choice([-1.0, 1.0])
    tilt = rng.uniform(-0.2, 0.2)
    k = np.pi * rng.uniform(*SIZES)
    middle = rng.uniform(0.48, 0.52)
    half = rng.uniform(0.6, 0.9) / 2 * rng.choice([-1.0, 1.0])
    light = _colour(rng, 0.7, float(np.clip(middle + half, 0.05, 1.0)))
    dark = _colour(rng, 0.7, float(np.clip(middle - half, 0.05, 1.0)))
    ground = _colour(rng, 0.6, rng.uniform(0.2, 0.8))
    return Sight(centre, radius, turns, phase, direction, tilt, k, light, dark, ground, rng)


def draw_frames(form: Format, seed: int, index: int, label: int) -> Array:
    """``[T, H, W, 3]`` uint8: a large round window onto a moving pattern, on a blurred ground."""
    s = draw_sight(seed, index)
    frames, side, rng = round(form.seconds * form.fps), form.side, s.rng
    grid = np.linspace(-1.0, 1.0, side, dtype=np.float32)
    x, y = grid[None, None, :], grid[None, :, None]
    ground = s.ground + _blobs(rng, side)
    px, py = x - s.centre[0], y - s.centre[1]
    time = np.arange(frames, dtype=np.float32)[:, None, None] / form.fps
    cycle = (2 * np.pi * s.turns * time + s.phase).astype(np.float32)
    scene = _Scene(
        u=(np.cos(s.tilt) * px + np.sin(s.tilt) * py).astype(np.float32),
        v=(-np.sin(s.tilt) * px + np.cos(s.tilt) * py).astype(np.float32),
        cycle=cycle,
        turn=(s.direction * cycle).astype(np.float32),
        k=float(s.k),
        rng=rng,
    )
    share = np.clip(1.5 * CLASSES[label].pattern(scene), -1.0, 1.0)[..., None] * 0.5 + 0.5
    window = np.clip(0.5 - (np.hypot(px, py) - s.radius) * (side / 6), 0.0, 1.0)[..., None]
    video = ground + window * (s.dark + share * (s.light - s.dark) - ground)
    # One plane of noise, moved about from frame to frame: as good as fresh noise, and cheap.
    noise = 0.02 * rng.standard_normal((2 * side, 2 * side, 1), dtype=np.float32)
    for frame, (i, j) in zip(video, rng.integers(0, side, (frames, 2)), strict=True):
        frame += noise[i : i + side, j : j + side]
    return (np.clip(video, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _colour(rng: np.random.Generator, most_saturated: float, value: float) -> Array:
    """``[3]`` float32 RGB of a random hue and saturation."""
    hue, saturation = rng.uniform(), rng.uniform(0.0, most_saturated)
    k = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue) % 6.0
    return (value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)).astype(
        np.float32
    )


def _blobs(rng: np.random.Generator, side: int) -> Array:
    """``[side, side, 3]`` float32: coloured blobs, smooth, of contrast 0.3."""
    coarse = rng.uniform(-0.15, 0.15, (_BLOBS, _BLOBS, 3)).astype(np.float32)
    place = np.linspace(0.0, _BLOBS - 1.0, side)
    weights = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(_BLOBS))).astype(np.float32)
    return np.tensordot(weights, np.tensordot(weights, coarse, (1, 0)), (1, 1))


@dataclass(frozen=True)
class Hearing:
    """What a sound is drawn from, whichever its class.

    Attributes:
        tempo: events in a second.
        begun: ``[2]`` places within an event and within two where it begins, 0 to 1.
        pitch: Hz.
        bright: strength of the second partial.
        start: phase in radians.
        rng: for what comes after these.
    """

    tempo: float
    begun: tuple[float, float]
    pitch: float
    bright: float
    start: float
    rng: np.random.Generator


def draw_hearing(seed: int, index: int) -> Hearing:
    """What the sound of a video is drawn from."""
    rng = np.random.default_rng([seed, index, 1])
    return Hearing(
        tempo=rng.uniform(*TEMPI),
        begun=(rng.uniform(), rng.uniform()),
        pitch=PITCH * 2.0 ** rng.uniform(*OCTAVES),
        bright=rng.uniform(0.15, 0.4),
        start=rng.uniform(0.0, 2 * np.pi),
        rng=rng,
    )


def draw_sound(form: Format, seed: int, index: int, label: int) -> Array:
    """``[samples]`` float32 within -1 to 1: the class's sound over background noise."""
    h = draw_hearing(seed, index)
    samples, rng = round(form.seconds * form.rate), h.rng
    time = np.arange(samples) / form.rate
    score = _Score(
        time=time,
        cycle=(h.tempo * time + h.begun[0]) % 1.0,
        half=(h.tempo / 2 * time + h.begun[1]) % 1.0,
        pitch=h.pitch,
        bright=h.bright,
        start=h.start,
        rng=rng,
    )
    sound = CLASSES[label].sound(score)
    noise = rng.standard_normal(samples)
    noise[1:] += rng.uniform(0.0, 0.9) * noise[:-1]
    decibels = rng.uniform(6.0, 20.0)  # of the sound over the noise
    mixed = sound / np.sqrt(np.mean(sound**2)) + noise / noise.std() * 10.0 ** (-decibels / 20.0)
    loudness = 10.0 ** (rng.uniform(-16.0, 0.0) / 20.0)
    return (0.9 * loudness * mixed / np.abs(mixed).max()).astype(np.float32)


def write(path: Path, form: Format, frames: Array, sound: Array) -> None:
    """Write an mp4 of H.264 and AAC, which appears under its name when it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(part), "w", format="mp4", options={"fflags": "+bitexact"}) as out:
            fast = {"preset": "ultrafast", "crf": "24", "threads": "1"}
            video = out.add_stream("libx264", rate=form.fps, options=fast)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.codec_context.gop_size = form.fps
            coder = {"flags": "+bitexact", "aac_coder": "fast"}
            audio = out.add_stream("aac", rate=form.rate, layout="mono", options=coder)
            audio.bit_rate = 64_000
            for i, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, form.fps)
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
            wave = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            wave.sample_rate = form.rate
            wave.pts, wave.time_base = 0, Fraction(1, form.rate)
            out.mux(audio.encode(wave))
            out.mux(audio.encode(None))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
