"""A smaller copy of a video file: quick to seek in, quick to decode, with the same times."""

import heapq
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from mmssl import BadMedia, Media, MissingModality, Sample
from mmssl.data.media import damage_is_bad_media
from mmssl.data.remote import open_bytes
from mmssl.training.checkpoints import write_atomically
from mmssl_media.decode import all_sound, audio_stream, frames_from, video_stream
from mmssl_media.probe import is_image
from mmssl_media.structure import cut_short

#: So many ticks a second: a whole number for the usual rates, and for Matroska's milliseconds.
TICKS = 90_000

# What MP4 holds, with the same times when read from there.
_COPIED = {"aac", "mp3", "alac", "opus"}

# Sampling rates of AAC.
_AAC = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)

# Before any frame.
_BEGINNING = -1.0


@dataclass(frozen=True)
class Settings:
    """How copies are made.

    Attributes:
        short_side: pixels of the frames' short side, even; smaller frames stay as they are.
        gop: frames from keyframe to keyframe, at most.
        crf: x264's constant rate factor: smaller is better and larger.
    """

    short_side: int
    gop: int
    crf: float


def transcode(sample: Sample, folder: Path, name: str, settings: Settings) -> str:
    """Write a copy of a media file, whatever part of it the sample is.

    A video becomes H.264 (4:2:0, 8 bits, closed groups of pictures) in MP4, upright and with
    square pixels; all frames are kept, each with its time. Fields of interlaced video stay
    together in their frame, as they are when it is read. Sound is not encoded again where MP4
    can hold it, and else becomes AAC. Other streams are left out. A file without video is copied
    byte for byte.

    Args:
        sample: of which the media file is copied.
        folder: where.
        name: of the copy, without ending; it appears when it is whole.
        settings: size and quality.

    Returns:
        The copy's file name.

    Raises:
        BadMedia: it cannot be decoded to its end.
        OSError: the copy cannot be written.
    """
    assert sample.media is not None
    if reason := cut_short(sample):  # the copy would hide it
        raise BadMedia(reason)
    with ExitStack() as opened:
        # One for each stream: they are read side by side, as they lie beside each other in the
        # copy.
        pictures, sounds = (opened.enter_context(Media(sample)) for _ in range(2))
        name = f"{name}.mp4"
        has_sound = bool(sounds.container.streams.audio)
        if is_image(pictures.container.format.name) or not _has_video(pictures):
            if not has_sound and not pictures.container.streams.video:
                raise BadMedia("neither video nor sound in it")
            ending = Path(sample.media).suffix
            short = len(ending) <= 10 and ending[1:].isascii() and ending[1:].isalnum()
            name = name.removesuffix(".mp4") + (ending if short and not sample.span else "")
            write_atomically(folder / name, lambda path: _copy_bytes(sample, path))
        else:
            write_atomically(
                folder / name,
                lambda path: _write(pictures, sounds if has_sound else None, path, settings),
            )
    return name


def _has_video(media: Media) -> bool:
    try:
        video_stream(media)
    except MissingModality:
        return False
    return True


def _copy_bytes(sample: Sample, path: Path) -> None:
    with open_bytes(sample) as (file, size), open(path, "wb") as out:
        shutil.copyfileobj(file, out)
        if out.tell() < size:
            raise BadMedia("became shorter while it was read")


def _write(pictures: Media, sounds: Media | None, path: Path, settings: Settings) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        # The header is written with the first packet: all streams must be there before it.
        video = _encoded_video(pictures, out, settings)
        streams = [video]
        if sounds is not None:
            codec = audio_stream(sounds).codec_context.codec.canonical_name
            copied = codec in _COPIED
            streams.append(_copied_sound(sounds, out) if copied else _encoded_sound(sounds, out))
        begun = [next(stream) for stream in streams]
        assert all(time == -math.inf for time, _ in begun)
        for _, packet in heapq.merge(*streams, key=lambda item: item[0]):
            _mux(out, packet)


def _mux(out: OutputContainer, packet: Any) -> None:
    try:
        out.mux(packet)
    except ValueError as error:  # times that do not increase; a full disk is an OSError
        raise BadMedia(f"its packets cannot be put in order: {error}") from error


# Each of these yields (-inf, None) once it has added its stream, then packets with their times
# of decoding in seconds, in order.
_Packets = Iterator[tuple[float, Any]]


def _encoded_video(media: Media, out: OutputContainer, settings: Settings) -> _Packets:
    source = video_stream(media)
    rate = source.average_rate or source.guessed_rate or Fraction(25)
    frames = frames_from(media, _BEGINNING)
    first = next(frames)
    pixel = float(source.sample_aspect_ratio or 1)
    width, height = _size(first[1], pixel, settings.short_side)
    turns = round(first[1].rotation / 90) % 4
    stream = out.add_stream(
        "libx264",
        rate=Fraction(rate).limit_denominator(60_000),
        options={"preset": "fast", "crf": str(settings.crf), "x264-params": "open-gop=0"},
    )
    stream.width, stream.height = (height, width) if turns % 2 else (width, height)
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.gop_size = settings.gop
    context.thread_count = 1  # processes are the parallelism
    context.time_base = stream.time_base = Fraction(1, TICKS)
    context.colorspace = first[1].colorspace
    context.color_range = ColorRange.MPEG
    context.color_primaries = first[1].color_primaries
    context.color_trc = first[1].color_trc
    yield -math.inf, None

    scaler = VideoReformatter()
    before = -1
    for time, frame in _chained(first, frames):
        with damage_is_bad_media():
            scaled = scaler.reformat(
                frame,
                width=width,
                height=height,
                format="yuv420p",
                dst_colorspace=frame.colorspace,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC,
                threads=1,
            )
        if turns:
            scaled = _turned(scaled, turns)
        tick = round(time * TICKS)
        if tick <= before - TICKS // 100:
            raise BadMedia(f"its frames go back in time at {time:.2f} s")
        before = max(tick, before + 1)
        scaled.pts, scaled.time_base = before, Fraction(1, TICKS)
        if frame.duration and frame.time_base:
            scaled.duration = round(frame.duration * frame.time_base * TICKS)
        scaled.pict_type = PictureType.NONE
        for packet in context.encode(scaled):
            packet.stream = stream
            yield _seconds(packet), packet
    for packet in context.encode(None):
        packet.stream = stream
        yield _seconds(packet), packet


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _seconds(packet: Any) -> float:
    ticks = packet.dts if packet.dts is not None else packet.pts
    return 0.0 if ticks is None else float(ticks * packet.time_base)


def _size(frame: VideoFrame, pixel: float, short_side: int) -> tuple[int, int]:
    """Width and height, even, before turning: square pixels, the short side never enlarged."""
    width, height = float(frame.width), float(frame.height)
    if not 0 < max(width, height) <= 32 * min(width, height):
        raise BadMedia(f"its frames are {frame.width} by {frame.height} pixels")
    if 0.25 <= pixel <= 4:  # as in reading: no camera's or disc's pixels are farther from square
        width *= pixel
    factor = min(1.0, short_side / min(width, height))
    return max(2, 2 * int(width * factor / 2 + 1e-6)), max(2, 2 * int(height * factor / 2 + 1e-6))


def _turned(frame: VideoFrame, turns: int) -> VideoFrame:
    """The frame turned counter-clockwise, as its rotation wants it shown."""
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    out = VideoFrame(width, height, "yuv420p")
    out.colorspace, out.color_range = frame.colorspace, frame.color_range
    for source, target in zip(frame.planes, out.planes, strict=True):
        pixels = _pixels(source)[: source.height, : source.width]
        _pixels(target)[: target.height, : target.width] = np.rot90(pixels, turns)
    return out


def _pixels(plane: Any) -> np.ndarray:
    """``[height, line_size]`` uint8, the plane's own memory."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)


def _copied_sound(media: Media, out: OutputContainer) -> _Packets:
    source = audio_stream(media)
    stream = out.add_stream_from_template(source)
    unit = source.time_base or Fraction(1, TICKS)
    shift = round(media.origin / unit)
    yield -math.inf, None
    packets = media.container.demux(source)
    last = None
    while True:
        with damage_is_bad_media():
            packet = next(packets, None)
        if packet is None:
            return
        if not packet.size or packet.pts is None:
            continue
        packet.pts -= shift
        packet.dts = packet.pts  # no codec of sound reorders
        if last is not None and packet.dts <= last:
            raise BadMedia(f"its sound goes back in time at {float(packet.pts * unit):.2f} s")
        last = packet.dts
        packet.stream = stream
        yield float(packet.dts * unit), packet


def _encoded_sound(media: Media, out: OutputContainer) -> _Packets:
    source = audio_stream(media)
    native = source.rate or 0
    if native <= 0:
        raise BadMedia(f"the sound's sampling rate is {native} Hz")
    rate = native if native in _AAC else 48_000
    layout = "mono" if source.layout.nb_channels == 1 else "stereo"
    stream = out.add_stream("aac", rate=rate, layout=layout)
    stream.codec_context.bit_rate = 64_000 * stream.codec_context.layout.nb_channels
    yield -math.inf, None
    for frame in _continuous(media, rate, layout):
        for packet in stream.encode(frame):
            yield _seconds(packet), packet
    for packet in stream.encode(None):
        yield _seconds(packet), packet


def _continuous(media: Media, rate: int, layout: str) -> Iterator[AudioFrame]:
    """Sound without gaps and overlaps, as an encoder wants it; ``pts`` counts samples."""
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    length = media.length
    position: int | None = None

    def sound(values: np.ndarray) -> AudioFrame:
        nonlocal position
        assert position is not None
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(values), "fltp", layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
        position += values.shape[1]
        return frame

    for time, decoded in all_sound(media):
        due = round(time * rate)
        decoded.pts = None  # the resampler would fill gaps by itself
        with damage_is_bad_media():
            parts = [part.to_ndarray() for part in resampler.resample(decoded)]
        if position is None:
            position = due
        elif due - position > 0.05 * rate:
            if due > (length + 1) * rate:
                raise BadMedia(f"its sound goes on at {time:.2f} s, after its end")
            channels = resampler.layout.nb_channels if resampler.layout else 1
            while due > position:
                yield sound(np.zeros((channels, min(due - position, rate)), np.float32))
        for values in parts:
            # What a gap made late, or an overlap early, is cut off at the front.
            excess = min(values.shape[1], max(0, position - due - round(0.05 * rate)))
            if not np.isfinite(values).all():
                raise BadMedia("the sound holds what is not a number")
            if excess < values.shape[1]:
                yield sound(values[:, excess:])
    if position is not None:
        with damage_is_bad_media():
            rest = [part.to_ndarray() for part in resampler.resample(None)]
        for values in rest:
            yield sound(values)
