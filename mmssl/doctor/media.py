"""Decoding: a small file of H.264 and AAC is written, read again and compared."""

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from mmssl.doctor import Doing, Finding

if TYPE_CHECKING:
    import numpy as np

# One second.
_FRAMES, _SIDE, _RATE = 24, 64, 16_000
_PITCH = 440.0


def look() -> Iterator[Finding | Doing]:
    """What this FFmpeg can read of the two most common codecs."""
    yield Doing("import av")
    try:
        import av
        import numpy as np
    except Exception as error:  # whatever a library of C fails with
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "pip install --force-reinstall av"
        yield Finding("decoder", "problem", f"PyAV does not load: {reason}", advice)
        return
    seconds = np.arange(_RATE) / _RATE
    sound = (0.5 * np.sin(2 * np.pi * _PITCH * seconds)).astype(np.float32)
    steps = np.arange(_FRAMES, dtype=np.uint8)[:, None, None, None] * 8
    frames = np.broadcast_to(steps, (_FRAMES, _SIDE, _SIDE, 3))
    yield Doing("writing and decoding H.264 and AAC")
    try:
        seen, heard = _decode(_encode(frames, sound))
    except (av.FFmpegError, ValueError) as error:
        advice = "install PyAV's own wheel, which has both: pip install --force-reinstall av"
        yield Finding("decoder", "problem", f"{type(error).__name__}: {error}", advice)
        return
    wrong = []
    if seen.shape != frames.shape or np.abs(seen - frames.astype(int)).mean() > 4:
        wrong.append("pictures")
    spectrum = np.abs(np.fft.rfft(heard[: _RATE // 2]))
    pitch = spectrum.argmax() * _RATE / (_RATE // 2)
    if abs(pitch - _PITCH) > 4 or not 0.25 < np.sqrt((heard**2).mean()) < 0.45:
        wrong.append("sound")
    if wrong:
        found = f"{' and '.join(wrong)} come out otherwise than they were written"
        yield Finding("decoder", "problem", found, "pip install --force-reinstall av")
        return
    libraries = ", ".join(f"{n} {v[0]}" for n, v in av.library_versions.items() if "codec" in n)
    found = f"wrote {_FRAMES} frames of H.264 and AAC, and decoded the same ({libraries})"
    yield Finding("decoder", "ok", found)


def _encode(frames: "np.ndarray", sound: "np.ndarray") -> bytes:
    """An mp4 in memory, of ``[T, H, W, 3]`` uint8 and mono ``[N]`` float32."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        video = out.add_stream(
            "libx264", rate=_FRAMES, options={"preset": "ultrafast", "crf": "10"}
        )
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("aac", rate=_RATE, layout="mono")
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, _FRAMES)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        wave = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        wave.sample_rate = _RATE
        wave.pts, wave.time_base = 0, Fraction(1, _RATE)
        out.mux(audio.encode(wave))
        out.mux(audio.encode(None))
    return file.getvalue()


def _decode(data: bytes) -> "tuple[np.ndarray, np.ndarray]":
    """What comes out again: ``[T, H, W, 3]`` uint8, and ``[N]`` float32."""
    import av
    import numpy as np

    with av.open(io.BytesIO(data), "r") as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av.open(io.BytesIO(data), "r") as file:
        waves = [frame.to_ndarray() for frame in file.decode(audio=0)]
    if not pictures or not waves:
        raise ValueError("nothing comes out")
    return np.stack(pictures), np.concatenate(waves, axis=1)[0]
