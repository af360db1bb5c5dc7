"""Short pieces of samples to look at and listen to, small enough to stand within the page."""

import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from mmssl.contracts import Sample
from mmssl.data.media import Media, damage_is_bad_media
from mmssl.data.time_limit import time_limit
from mmssl.errors import BadMedia, MissingModality
from mmssl.report.contents import Excerpt

if TYPE_CHECKING:
    from PIL.Image import Image

SECONDS = 2.0
_HEIGHT, _FPS = 160, 12
_WIDEST = 400
_RATE = 24_000

# A strip: so many frames of the clip, so high.
_FRAMES, _STRIP = 4, 80

# A spectrogram: samples in a window, bands of pitch, columns, decibels from its loudest down.
_WINDOW, _BANDS, _COLUMNS, _RANGE = 1024, 40, 240, 70.0


def excerpt(sample: Sample, *, limit: float) -> Excerpt:
    """The middle of a sample, as a clip, a strip of frames and a spectrogram.

    What cannot be read is an excerpt that says why.

    Args:
        sample: a row of a dataset.
        limit: seconds that reading it may take.
    """
    try:
        with time_limit(limit), Media(sample) as media:
            return _excerpt(media)
    except MissingModality:
        return Excerpt(trouble="has no file to show")
    except BadMedia as error:
        return Excerpt(trouble=str(error))


def _excerpt(media: Media) -> Excerpt:
    container = media.container
    if _known(container.streams.video) and _is_picture(media):
        picture = _picture(media)
        return Excerpt(strip=_strip([picture]), width=picture.shape[1], height=picture.shape[0])
    middle = (media.start + media.end) / 2
    start = max(media.start, middle - SECONDS / 2)
    end = min(media.end, start + SECONDS)
    frames = _frames(media, start, end) if _known(container.streams.video) else []
    sound = (
        _sound(media, start, end) if _known(container.streams.audio) else np.empty(0, np.float32)
    )
    if not frames and not len(sound):
        raise BadMedia("has neither pictures nor sound where its clip should be")
    height, width = frames[0].shape[:2] if frames else (0, 0)
    return Excerpt(
        clip=_encode(frames, sound),
        has_video=bool(frames),
        strip=_strip(_spread(frames)) if frames else None,
        sound=_spectrogram(sound) if len(sound) > _WINDOW else None,
        width=width,
        height=height,
    )


def _known(streams: Sequence[Any]) -> list[Any]:
    """The streams that this FFmpeg has a decoder for."""
    return [stream for stream in streams if stream.codec_context is not None]


def _is_picture(media: Media) -> bool:
    name = media.container.format.name
    return name.endswith("_pipe") or name in ("image2", "png", "gif_pipe")


@damage_is_bad_media()
def _picture(media: Media) -> np.ndarray:
    """``[h, w, 3]`` uint8: the first frame."""
    stream = _known(media.container.streams.video)[0]
    for frame in media.container.decode(stream):
        return _small(frame, stream.sample_aspect_ratio)
    raise BadMedia("there is no picture in it")


@damage_is_bad_media()
def _frames(media: Media, start: float, end: float) -> list[np.ndarray]:
    """``[h, w, 3]`` uint8 pictures of a window, `_FPS` a second, small and upright."""
    stream = _known(media.container.streams.video)[0]
    stream.thread_type = "NONE"
    _seek(media, stream, start)
    wanted = [start + i / _FPS for i in range(max(1, round((end - start) * _FPS)))]
    found: list[np.ndarray] = []
    last: np.ndarray | None = None
    for frame in media.container.decode(stream):
        at = 0.0 if frame.time is None else frame.time - media.origin
        # A frame is seen until the next one comes, the first one also before its time.
        while last is not None and len(found) < len(wanted) and wanted[len(found)] < at - 1e-3:
            found.append(last)
        if len(found) == len(wanted):
            break
        # Those long before the window are decoded on the way to it only.
        if last is None or at > start - 1.0:
            last = _small(frame, stream.sample_aspect_ratio)
    if last is not None:
        found += [last] * (len(wanted) - len(found))
    return found


def _seek(media: Media, stream: Any, start: float) -> None:
    target = int((media.origin + start) / stream.time_base)
    media.container.seek(max(target, 0), stream=stream, backward=True)


def _small(frame: av.VideoFrame, aspect: Fraction | None) -> np.ndarray:
    width, height = frame.width * float(aspect or 1), float(frame.height)
    turns = round(frame.rotation / 90)
    seen = (height, width) if turns % 2 else (width, height)
    scale = min(_WIDEST / seen[0], _HEIGHT / seen[1])
    even = [max(16, 2 * round(side * scale / 2)) for side in (width, height)]
    picture = frame.reformat(width=even[0], height=even[1], format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(picture, turns))


@damage_is_bad_media()
def _sound(media: Media, start: float, end: float) -> np.ndarray:
    """``[n]`` float32 at `_RATE`, one channel; silence where the stream has gaps or ends."""
    container, stream = media.container, _known(media.container.streams.audio)[0]
    _seek(media, stream, max(0.0, start - 0.1))
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=_RATE)
    whole = np.zeros(round((end - start) * _RATE), np.float32)
    heard, at = False, None
    for frame in container.decode(stream):
        if frame.time is None:
            continue
        if at is None:  # what follows is continuous, as far as a listener is concerned
            at = round((frame.time - media.origin - start) * _RATE)
        for part in resampler.resample(frame):
            values = part.to_ndarray()[0]
            low, high = max(0, -at), min(len(values), len(whole) - at)
            if low < high:
                whole[at + low : at + high] = values[low:high]
                heard = True
            at += len(values)
        if at >= len(whole):
            break
    return np.clip(whole, -1, 1) if heard else whole[:0]


def _encode(frames: list[np.ndarray], sound: np.ndarray) -> bytes:
    """An MP4 file: H.264 and AAC, which every browser plays."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as out:
        video = audio = None
        if frames:
            height, width = frames[0].shape[:2]
            video = out.add_stream("libx264", rate=_FPS)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.options = {
                "preset": "veryfast",
                "crf": "31",
                "maxrate": "200k",
                "bufsize": "200k",
                "threads": "1",
                # With it the same frames are not the same bytes every time.
                "x264-params": "mbtree=0",
            }
        if len(sound):
            audio = out.add_stream("aac", rate=_RATE, layout="mono")
            audio.bit_rate = 40_000
        if video is not None:
            for i, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, _FPS)
                out.mux(video.encode(frame))
            out.mux(video.encode())
        if audio is not None:
            for first in range(0, len(sound), 1024):
                chunk = av.AudioFrame.from_ndarray(
                    sound[None, first : first + 1024], format="fltp", layout="mono"
                )
                chunk.sample_rate, chunk.pts, chunk.time_base = _RATE, first, Fraction(1, _RATE)
                out.mux(audio.encode(chunk))
            out.mux(audio.encode())
    return memory.getvalue()


def _spread(frames: list[np.ndarray]) -> list[np.ndarray]:
    count = min(_FRAMES, len(frames))
    return [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]


def _strip(frames: list[np.ndarray]) -> bytes:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    pictures = [p.resize((max(1, round(p.width * _STRIP / p.height)), _STRIP)) for p in pictures]
    whole = Image.new("RGB", (sum(p.width for p in pictures), _STRIP))
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    return _webp(whole)


def _spectrogram(sound: np.ndarray) -> bytes:
    """Loudness by time and pitch, bands as broad as they are high: the ear's way to hear."""
    from PIL import Image

    hop = max(1, (len(sound) - _WINDOW) // (_COLUMNS - 1))
    starts = np.arange(0, len(sound) - _WINDOW + 1, hop)[:_COLUMNS]
    windows = sound[starts[:, None] + np.arange(_WINDOW)] * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(windows)) ** 2
    edges = np.geomspace(80, _RATE / 2, _BANDS + 1) * _WINDOW / _RATE
    bins = np.arange(power.shape[1])
    bands = []
    for low, high in pairwise(edges):
        inside = (bins >= np.floor(low)) & (bins < max(np.ceil(high), np.floor(low) + 1))
        bands.append(power[:, inside].mean(axis=1))
    loudness = 10 * np.log10(np.maximum(np.stack(bands[::-1]), 1e-10))
    scaled = np.clip((loudness - max(loudness.max(), -60.0)) / _RANGE + 1, 0, 1)
    return _webp(Image.fromarray(_colours(scaled)).resize((_COLUMNS, _BANDS)))


def _colours(values: np.ndarray) -> np.ndarray:
    """From 0, nearly black, over blue and teal to 1, a pale yellow."""
    stops = np.array([[18, 22, 34], [32, 58, 92], [33, 125, 128], [126, 190, 140], [250, 240, 190]])
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, places, stops[:, c]) for c in range(3)], -1).astype(np.uint8)


def _webp(picture: "Image") -> bytes:
    memory = io.BytesIO()
    picture.save(memory, "WEBP", quality=62, method=4)
    return memory.getvalue()
