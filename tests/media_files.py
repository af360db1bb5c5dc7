"""Files for the tests, with frame numbers burned into their frames and clicks into their sound."""

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIDE = 64
_BITS = 16
_TICK = Fraction(1, 30_000)

# Encoders' options: as quick as they come, one thread, and silent.
_QUICKLY = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {
        "preset": "ultrafast",
        "x265-params": "log-level=none:pools=none:frame-threads=1",
    },
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "11", "svtav1-params": "lp=1"},
}
os.environ.setdefault("SVT_LOG", "1")  # errors; it is a library of its own, with a log of its own


def numbered_frame(number: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """``[height, width, 3]`` uint8: 4 by 4 blocks, black or white, spell the number in binary."""
    bits = np.array([(number >> bit) & 1 for bit in range(_BITS)], np.uint8).reshape(4, 4)
    rows = np.arange(height) * 4 // height
    columns = np.arange(width) * 4 // width
    plane = bits[rows][:, columns] * np.uint8(200) + np.uint8(25)
    return np.repeat(plane[..., None], 3, axis=2)


def number_of(frame: np.ndarray) -> int:
    """The number burned into a frame ``[height, width, 3]``."""
    height, width = frame.shape[0] // 4, frame.shape[1] // 4
    blocks = frame[: 4 * height, : 4 * width].reshape(4, height, 4, width, 3)
    middle = blocks[:, height // 4 : -height // 4, :, width // 4 : -width // 4]
    bits = middle.astype(float).mean((1, 3, 4)).reshape(-1) > 125
    return int(sum(1 << bit for bit in range(_BITS) if bits[bit]))


def clicks(times: Iterable[float], seconds: float, rate: int) -> np.ndarray:
    """``[samples]`` float32: silence with a click of 1 ms centred at each time."""
    at = np.arange(round(seconds * rate)) / rate
    sound = np.zeros(len(at), np.float32)
    for time in times:
        sound += 0.8 * np.exp(-0.5 * ((at - time) / 0.0004) ** 2).astype(np.float32)
    return sound


def click_times(sound: np.ndarray, rate: int) -> list[float]:
    """Seconds at which a sound's clicks have their peaks."""
    found: list[float] = []
    envelope = np.abs(sound)
    while (peak := int(envelope.argmax())) >= 0 and envelope[peak] > 0.3:
        found.append(peak / rate)
        envelope[max(0, peak - rate // 50) : peak + rate // 50] = 0
    return sorted(found)


def write(
    path: Path,
    *,
    frames: int = 0,
    fps: int = 30,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (SIDE, SIDE),
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 0,
    rotation: float = 0,
    pixels: str = "",
    encoder: dict[str, str] | None = None,
    video_start: float = 0.0,
    sound_start: float = 0.0,
    sound: np.ndarray | None = None,
    rate: int = 44_100,
    sound_codec: str = "aac",
    layout: str = "mono",
    options: dict[str, str] | None = None,
) -> Path:
    """Write numbered frames and a sound.

    Args:
        frames: how many frames; 0 for no video stream.
        times: seconds at which each frame is shown, for a rate that varies.
        size: width, height.
        pixels: the pixel format; by default 4:2:0 of 8 bits.
        encoder: options of the video's encoder, besides the quickest preset.
        video_start: seconds by which all frames are later.
        sound_start: seconds by which the sound is later.
        sound: ``[samples]`` or ``[channels, samples]``; None for no audio stream.
        options: of the container.
    """
    with av.open(str(path), "w", options=options or {}) as out:
        video: Any = None
        audio: Any = None
        if frames:
            more = dict(_QUICKLY.get(codec, {}))
            if codec in ("libx264", "mpeg4"):
                more["bf"] = str(b_frames)
            if codec == "libx265":
                more["x265-params"] += f":bframes={b_frames}"
            video = out.add_stream(codec, rate=fps, options={**more, **(encoder or {})})
            video.width, video.height = size
            video.pix_fmt = pixels or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
            video.codec_context.gop_size = gop
            video.codec_context.thread_count = 1
            # In AVI one tick is one frame; MPEG-2 knows no other either.
            coarse = path.suffix == ".avi" or codec == "mpeg2video"
            tick = Fraction(1, fps) if coarse and times is None else _TICK
            video.codec_context.time_base = video.time_base = tick
            if rotation:
                video.set_display_rotation(rotation)
        if sound is not None:
            audio = out.add_stream(sound_codec, rate=rate, layout=layout)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            time = number / fps if times is None else times[number]
            frame.pts, frame.time_base = round((time + video_start) / tick), tick
            out.mux(video.encode(frame))
        if video is not None:
            out.mux(video.encode(None))
        if audio is not None and sound is not None:
            planes = np.ascontiguousarray(np.atleast_2d(sound), np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(sound_start * rate)
            resampler = av.AudioResampler(format=audio.format, layout=layout, rate=rate)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(audio.encode(part))
            out.mux(audio.encode(None))
    # Run by root, SVT-AV1 leaves the thread that used it a real-time one: processes that wait for
    # each other by polling, as ranks do, would then keep each other from the cores.
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path
