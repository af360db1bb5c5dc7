"""Decoding with PyAV: seek to the keyframe before what is wanted, decode no further than needed.

All times are presentation times in seconds from `Media.origin`.
"""

import math
from collections.abc import Iterator
from itertools import chain, dropwhile
from typing import Any, TypeVar

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mmssl import BadMedia, Media, MissingModality
from mmssl.data.media import damage_is_bad_media, packets
from mmssl.data.timing import step

StreamType = TypeVar("StreamType", VideoStream, AudioStream)

#: Containers round times, Matroska to a millisecond: so much later still counts as the same time.
GRACE = 1e-3

# A transform codec's first frame after a seek lacks its overlap with the one before; Opus asks
# for 80 ms, and MP3 frames may refer to several before them.
_PREROLL = 0.1

# The formats of samples, as numpy calls them.
_SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}

# No recorder samples faster; a damaged header may say so and ask for any amount of memory.
_FASTEST = 768_000

# A seek that lands so many packets early was without an index: they are not kept to look ahead.
_LOOK_AHEAD = 2000

# After a seek so many packets of sound at most may be pieces before the first whole one.
_TORN = 2

# MPEG-PS has no index, and a seek lands within a frame. What looks like the beginning of a frame
# may be part of one: the parser finds the real ones after some pieces, within a fraction of a
# second, and may be wrong about the time of the first. So seek so many seconds further back, and
# let pieces be until what was asked for begins.
_TORN_WITHIN_FRAMES = 64
_RESYNC = 0.5

# The last frame of a video is shown for so long at least, whatever its file says.
_LAST_FRAME = 1.0

# How much further back to seek when what is found lies after the time that was asked for:
# containers index decoding times, which reordering sets before presentation times, and
# MPEG-TS, without any index, lands between keyframes.
_STEPS_BACK = (0.0, 0.5, 4.0)

# Surely before the first packet, whose decoding time may be before second 0.
_BEFORE_ALL = -1.0


def video_stream(media: Media) -> VideoStream:
    """The first video stream that is no attached picture.

    Raises:
        MissingModality: there is none.
        BadMedia: its codec is unknown.
    """
    for stream in media.container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return _decodable(stream)
    raise MissingModality("no video stream")


def audio_stream(media: Media) -> AudioStream:
    """The first audio stream.

    Raises:
        MissingModality: there is none.
        BadMedia: its codec is unknown.
    """
    for stream in media.container.streams.audio:
        return _decodable(stream)
    raise MissingModality("no audio stream")


def _decodable(stream: StreamType) -> StreamType:
    # PyAV says otherwise, but a codec that FFmpeg does not know has no context.
    context: Any = stream.codec_context
    if context is None:
        raise BadMedia(f"there is no decoder for its {stream.type}")
    if not context.is_open:
        context.thread_count = 1  # the loader's processes are the parallelism
        with damage_is_bad_media():
            # Before anything is to be skipped: dav1d would skip it for as long as it is open.
            context.open()
    return stream


def begins(media: Media, stream: Any) -> float | None:
    """Seconds at which a stream's first frame is shown; None if the container does not know."""
    if _by_place(media, stream):
        return 0.0  # FFmpeg's guess would be later by what is reordered
    if stream.start_time is None or stream.time_base is None:
        return None
    return float(stream.start_time * stream.time_base) - media.origin


def _by_place(media: Media, stream: Any) -> bool:
    """Whether times are those of decoding, and so of packets, not of frames.

    AVI has no others: a packet's place in the file is its time, and B-frames are stored after
    the frame that they are shown before.
    """
    return stream.type == "video" and media.container.format.name == "avi"


def frames_from(media: Media, start: float) -> Iterator[tuple[float, VideoFrame]]:
    """Video frames with their times, from the one that is shown at ``start`` on.

    That is the last one at or before ``start``, or the first of all if there is none.

    Raises:
        MissingModality: no video stream, or it ended before ``start``.
        BadMedia: nothing can be decoded.
    """
    frames = _decoded(media, video_stream(media), start)
    shown = next(frames, None)
    if shown is None:
        raise BadMedia("no video frame can be decoded")
    for following in frames:
        if following[0] > start + GRACE:
            yield shown
            yield following
            break
        shown = following
    else:
        time, frame = shown
        if time + max(float((frame.duration or 0) * (frame.time_base or 0)), _LAST_FRAME) < start:
            raise MissingModality(f"no video at {start:.2f} s: it ends at {time:.2f} s")
        yield shown
    yield from frames


def all_sound(media: Media) -> Iterator[tuple[float, AudioFrame]]:
    """All audio frames with their times, as they are stored.

    Raises:
        MissingModality: no audio stream.
        BadMedia: it cannot be decoded.
    """
    yield from _decoded(media, audio_stream(media), 0.0)


def pcm(media: Media, start: float, samples: int, rate: int) -> np.ndarray:
    """Sound from ``start`` on, all channels averaged, resampled to ``rate`` Hz.

    Args:
        media: the file.
        start: seconds.
        samples: how many, at ``rate``; what lies outside of the media's sample is zero.
        rate: Hz.

    Returns:
        ``[samples]`` float32, 1.0 being full scale.

    Raises:
        MissingModality: no audio stream, or it has nothing between these times.
        BadMedia: it cannot be decoded, or holds what is not a number.
    """
    stream = audio_stream(media)
    native = stream.rate or 0
    if not 0 < native <= _FASTEST:
        raise BadMedia(f"the sound's sampling rate is {native} Hz")
    # The resampler's filter reaches some samples to both sides.
    margin = 0.0 if native == rate else 0.02
    sound = _mono(media, stream, start - margin, round((samples / rate + 2 * margin) * native))
    if native != rate:
        first = round(margin * rate)
        sound = _resample(sound, native, rate)[first : first + samples]
    return np.pad(sound, (0, samples - len(sound))) if len(sound) < samples else sound


def _mono(media: Media, stream: AudioStream, start: float, samples: int) -> np.ndarray:
    """``[samples]`` float32 from ``start`` on at the stream's own rate; zero where nothing is."""
    rate = stream.rate
    sound = np.zeros(samples, np.float32)
    lower = max(0, round((media.start - start) * rate))
    upper = min(samples, round((media.end - start) * rate))
    found = False
    position: int | None = None
    # Also before the beginning: there a coder may keep what it needs to begin with.
    for time, frame in _decoded(media, stream, max(-_PREROLL, start - _PREROLL)):
        if frame.sample_rate != rate:
            raise BadMedia(f"the sampling rate changes from {rate} to {frame.sample_rate} Hz")
        due = round((time - start) * rate)
        # Times are rounded, so frames follow each other without a seam unless one is missing.
        if position is None or abs(due - position) > 0.01 * rate:
            position = due
        first, last = max(position, lower), min(position + frame.samples, upper)
        if first < last:
            sound[first:last] = _average(frame)[first - position : last - position]
            found = True
        position += frame.samples
        if position >= upper:
            break
    if not found:
        raise MissingModality(f"no sound at {start:.2f} s")
    if not np.isfinite(sound).all():
        raise BadMedia("the sound holds what is not a number")
    return sound


def _average(frame: AudioFrame) -> np.ndarray:
    """``[samples]`` float32, the mean of the channels, 1.0 being full scale."""
    kind = _SAMPLE_TYPES.get(frame.format.packed.name)
    if kind is None:
        raise BadMedia(f"its sound is stored as {frame.format.name}")
    # Straight from the planes: AudioFrame.to_ndarray would copy each frame once more.
    planes = [np.frombuffer(plane, kind) for plane in frame.planes]  # type: ignore[call-overload]
    if frame.format.is_planar:
        total = planes[0][: frame.samples].astype(np.float32)
        for plane in planes[1:]:
            total += plane[: frame.samples]
        count = len(planes)
    else:
        count = frame.layout.nb_channels
        values = planes[0][: frame.samples * count].reshape(-1, count)
        total = values.sum(1, dtype=np.float32)
    if kind == "u1":
        return (total / count - 128.0) / 128.0
    scale = 1.0 if kind[0] == "f" else 2.0 ** (8 * int(kind[1]) - 1)
    return total / np.float32(count * scale)


def _resample(sound: np.ndarray, native: int, rate: int) -> np.ndarray:
    with damage_is_bad_media():  # a damaged header's rate may be out of the resampler's reach
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        frame = AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate = native
        parts = [*resampler.resample(frame), *resampler.resample(None)]
        return np.concatenate([part.to_ndarray()[0] for part in parts])


def _decoded(media: Media, stream: Any, start: float) -> Iterator[tuple[float, Any]]:
    """Frames of a stream with their times, in order, from at or before ``start`` on if there are.

    How long before depends on the keyframes. The caller stops when it has enough.
    """
    if stream.time_base is None:
        raise BadMedia("its times have no unit")
    begin = begins(media, stream)
    further = _RESYNC if _lands_within_frames(media, stream) else 0.0
    earliest = min(0.0, start)
    targets = [max(earliest, start - further - back) for back in _STEPS_BACK]
    if _guesses_times(media, stream):
        targets = [0.0]
    for target in [*targets, _BEFORE_ALL]:
        frames = _decoded_after_seek(media, stream, target, start)
        first = next(frames, None)
        if first is not None and first[0] <= max(start, begin or max(0.0, start)) + GRACE:
            break
    return frames if first is None else chain([first], frames)


def _lands_within_frames(media: Media, stream: Any) -> bool:
    """Whether a seek leads into the middle of a frame."""
    return stream.type == "audio" and media.container.format.name == "mpeg"


def _guesses_times(media: Media, stream: Any) -> bool:
    """Whether times after a seek are off: WAV reckons them from bytes, for ADPCM amiss."""
    return media.container.format.name in ("wav", "w64") and stream.codec_context.name.startswith(
        "adpcm_"
    )


def _decoded_after_seek(
    media: Media, stream: Any, target: float, start: float
) -> Iterator[tuple[float, Any]]:
    container = media.container
    unit, origin = float(stream.time_base), media.origin
    try:
        with step("seek"):
            try:
                container.seek(math.floor((target + origin) / unit), stream=stream)
            except av.FFmpegError:
                if target > max(0.0, begins(media, stream) or 0.0):
                    raise
                # Where there is an index, as in AVI and FLV, nothing is before the first packet.
                first = max(math.floor(origin / unit), stream.start_time or 0)
                container.seek(first, stream=stream)
    except (av.FFmpegError, OverflowError) as error:
        raise BadMedia(f"cannot seek to {max(0.0, target):.2f} s") from error
    arriving = packets(container, stream)
    by_place = _by_place(media, stream)
    if stream.type == "video":
        if target != _BEFORE_ALL:
            # Some decoders make pictures, of a kind, from what depends on frames not seen.
            arriving = dropwhile(lambda packet: packet.size and not packet.is_keyframe, arriving)
        stream.codec_context.skip_frame = "DEFAULT"
        if not (by_place and stream.codec_context.has_b_frames):
            arriving = _sparing(arriving, stream.codec_context, (start + GRACE + origin) / unit)
    places: list[int] = []
    within = _lands_within_frames(media, stream)
    torn = _TORN_WITHIN_FRAMES if within else _TORN if stream.type == "audio" else 0
    whole_from = start if within else -math.inf
    rate = stream.rate if within else None
    follows: float | None = None
    while True:
        # Not around the yield: what the caller raises is not the file's fault.
        with step(f"decode {stream.type}"), damage_is_bad_media():
            packet = next(arriving, None)
            try:
                frames = [] if packet is None else packet.decode()
            except av.FFmpegError:
                if not torn:
                    raise
                torn, frames = torn - 1, []
        if packet is None:
            return
        if by_place and packet.dts is not None:
            places = [*places[-16:], packet.dts]  # no codec reorders more
        for count, frame in enumerate(frames):
            ticks = frame.pts if frame.pts is not None else frame.dts
            if places:
                # The decoder lags behind by so many packets; after the last one come, one after
                # the other, the frames that are left.
                late = stream.codec_context.reorder_depth
                back = 1 + late if packet.size else late - count
                ticks = places[-min(max(back, 1), len(places))]
            time = follows if ticks is None else ticks * unit - origin
            if time is None:
                raise BadMedia("its frames carry no times")
            if stream.type == "audio" and frame.sample_rate:
                # A packet's second frame, and what a decoder kept until the end, carry no time.
                follows = time + frame.samples / frame.sample_rate
            if rate and time < whole_from and frame.sample_rate != rate:
                continue  # pieces may even look like a frame
            torn = 0 if time >= whole_from else torn
            yield time, frame


def _sparing(packets: Iterator[Any], context: Any, start: float) -> Iterator[Any]:
    """The same packets; the decoder skips frames before ``start`` that nothing depends on.

    A frame is skipped only where a later one is known to be at or before ``start`` (in the
    stream's unit of time). In decoding order, that one comes before the first packet whose
    decoding time is after ``start``.
    """
    ahead = []
    for packet in packets:
        ahead.append(packet)
        if (packet.dts is not None and packet.dts > start) or len(ahead) == _LOOK_AHEAD:
            break
    # The packet that flushes the decoder at the end has no size and no time.
    times = [packet.pts for packet in ahead if packet.size]
    shown = None
    if None not in times and len(ahead) < _LOOK_AHEAD:
        shown = max((time for time in times if time <= start), default=None)
    for packet in chain(ahead, packets):
        needless = shown is not None and packet.pts is not None and packet.pts < shown
        context.skip_frame = "NONREF" if needless else "DEFAULT"
        yield packet
