"""What is wrong with a media file, found by decoding samples of it as training would."""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import islice, takewhile
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from mmssl import BadMedia, Media, MissingModality, Sample
from mmssl.data.media import damage_is_bad_media, packets
from mmssl_media.decode import GRACE, audio_stream, frames_from, pcm, video_stream
from mmssl_media.listing import Kind, kind_of
from mmssl_media.probe import is_image
from mmssl_media.structure import cut_short, why_not_media

#: Every problem there is a name for, and what it means.
PROBLEMS = {
    "missing": "no such file",
    "dangling-link": "a link to what is not there",
    "folder": "a folder with a file's name",
    "not-a-file": "a named pipe, a socket or a device",
    "bad-name": "a name that no list can hold",
    "unreadable": "no permission, or the disk does not answer",
    "empty": "no bytes",
    "wrong-extension": "another container than the name's ending says, or no media at all",
    "truncated": "the file ends before what its header promises",
    "corrupt": "cannot be decoded, or the decoder reports damage",
    "no-video": "no video, and the name does not end as a sound file's",
    "no-audio": "no sound, and the name does not end as an image's",
    "black": "no pixel brighter than 10 of 255 in any clip",
    "frozen": "no pixel changes by more than 2 of 255 within and between clips",
    "silent": "no sample above -60 dB of full scale in any clip",
    "different-length": "video and sound begin or end more than 1 s apart",
    "too-slow": "the time limit is over",
    "kills-reader": "ends the process that reads it, or raises an error that would end a run",
}

Findings = list[tuple[str, str]]

# Seconds of each clip, and the most frames of it that are decoded.
_CLIP = 1.0
_FRAMES = 120

# Frames are compared as grey pictures of so many pixels a side, in 255 levels.
_SIDE = 64
_BLACK = 10
_SAME = 2

_SILENCE = 1e-3
_APART = 1.0

# What a header promises and what is there may differ by the last packet and by rounding.
_CUT = 0.5
_TAIL = 5.0

# Containers by the endings of names; where an ending is not here, any container is right.
_CONTAINERS = {
    "mov": ".3g2 .3gp .f4v .m4a .m4b .m4v .mov .mp4",
    "matroska": ".mka .mkv .weba .webm",
    "avi": ".avi .divx",
    "flv": ".f4v .flv",
    "asf": ".asf .wma .wmv",
    "mpeg": ".mpe .mpeg .mpg .vob",
    "mpegvideo": ".m2v .mpe .mpeg .mpg",
    "mpegts": ".m2ts .mts .ts",
    "ogg": ".oga .ogg .ogm .ogv .opus .spx",
    "mp3": ".mp2 .mp3",
    "aac": ".aac",
    "wav": ".wav",
    "w64": ".w64 .wav",
    "flac": ".flac",
    "aiff": ".aif .aifc .aiff",
    "gif": ".gif",
}

# Containers that hold sound alone, or sound if there is no video in them.
_SOUND = {"aac", "aiff", "amr", "au", "caf", "flac", "mp3", "ogg", "w64", "wav"}

# Moving pictures under the endings of still ones.
_ANIMATED = {"apng", "jpegxl_anim", "webp"}

# Containers whose header says how long the streams are, rather than a guess from their size.
_PROMISING = {"mov", "matroska", "flac", "flv"}


def inspect(sample: Sample, clips: int) -> Findings:
    """Decode a second at some places of a sample and say what is wrong.

    Args:
        sample: a row of a dataset; its file exists and is not empty.
        clips: how many places, from the beginning to the end.

    Returns:
        Names from `PROBLEMS`, each with a reason in words; empty if all is well.
    """
    with Media(sample) as media:
        try:
            if not is_image(media.container.format.name) and media.end <= media.start:
                raise BadMedia("it has no length")
        except BadMedia as error:
            return [why_not_media(sample, str(error))]
        return _Inspection(media, clips).findings()


class _Inspection:
    """Of one open file. The checks are in the order in which one explains the next."""

    def __init__(self, media: Media, clips: int) -> None:
        self.media = media
        self.sample = media.sample
        self.container = media.container.format.name
        self.image = is_image(self.container)
        self.clips = 1 if self.image else clips
        self.found: Findings = []

    def findings(self) -> Findings:
        kind = "image" if self.image else self._kind()
        self._extension()
        if cut := cut_short(self.sample):
            # Whatever else is wrong with it may follow from this.
            return [*self.found, ("truncated", cut)]
        video = self._stream("video", video_stream)
        audio = self._stream("audio", audio_stream)
        if video is None and kind != "audio":
            self.found.append(("no-video", "no video stream"))
        if audio is None and kind != "image":
            self.found.append(("no-audio", "no audio stream"))
        streams = [stream for stream in (video, audio) if stream]
        ends: dict[int, float] = {}
        if not self.image:
            ends = self._ends(streams)
            if cut := self._short_of_promise(streams, ends):
                return [*self.found, ("truncated", cut)]
        if video:
            self._look()
        if audio:
            self._listen(audio.rate or 0)
        if video and audio:
            self._compare_lengths(video, audio, ends)
        return self.found

    def _kind(self) -> Kind | None:
        if self.sample.span is None:
            return kind_of(self.sample.media or "")
        # A part has no name but its id, which may lack an ending.
        return kind_of(self.sample.id) or ("audio" if self.container in _SOUND else None)

    def _stream(self, name: str, find: Callable[[Media], Any]) -> Any:
        try:
            return find(self.media)
        except MissingModality:
            return None
        except BadMedia as error:
            self.found.append(("corrupt", str(error)))
            return False

    def _extension(self) -> None:
        if self.sample.span is not None:
            return
        name = self.sample.media or ""
        ending, kind = os.path.splitext(name)[1].lower(), kind_of(name)
        if self.image or self.container in _ANIMATED:
            if kind in ("video", "audio"):
                self.found.append(("wrong-extension", f"named {ending}, but it is a picture"))
            return
        if kind == "image":
            self.found.append(("wrong-extension", f"named {ending}, but it is no picture"))
            return
        wanted = {name for name, endings in _CONTAINERS.items() if ending in endings.split()}
        if wanted and not wanted & set(self.container.split(",")):
            said = self.container.split(",")[0]
            self.found.append(("wrong-extension", f"named {ending}, but the container is {said}"))

    def _places(self) -> list[float]:
        """Seconds at which clips begin."""
        first, last = self.media.start, max(self.media.start, self.media.end - _CLIP)
        if self.clips == 1:
            return [first if self.image else (first + last) / 2]
        return [first + (last - first) * k / (self.clips - 1) for k in range(self.clips)]

    def _look(self) -> None:
        pictures: dict[float, np.ndarray] = {}  # by time: clips of a short file overlap
        for start in self._places():
            try:
                shown = takewhile(
                    lambda found, start=start: found[0] <= start + _CLIP + GRACE,  # type: ignore[misc]
                    frames_from(self.media, start),
                )
                for time, frame in islice(shown, _FRAMES):
                    if frame.is_corrupt:
                        raise BadMedia(f"the frame at {time:.2f} s is damaged")
                    pictures[time] = _grey(frame)
            except BadMedia as error:
                self.found.append(("corrupt", f"video from {start:.2f} s on: {error}"))
                return
            except MissingModality:
                continue  # it ended before its sound: the lengths are compared elsewhere
        if not pictures:
            self.found.append(("no-video", "no frame where the sample is"))
            return
        stack = np.stack(list(pictures.values()))
        if stack.max() <= _BLACK:
            self.found.append(("black", f"all {len(stack)} frames looked at are black"))
        elif len(stack) > 1 and np.ptp(stack, axis=0).max() <= _SAME:
            self.found.append(("frozen", f"all {len(stack)} frames looked at are the same"))

    def _listen(self, rate: int) -> None:
        peaks = []
        for start in self._places():
            try:
                samples = max(1, round(min(_CLIP, self.media.end - start) * rate))
                peaks.append(float(np.abs(pcm(self.media, start, samples, rate)).max()))
            except BadMedia as error:
                self.found.append(("corrupt", f"sound from {start:.2f} s on: {error}"))
                return
            except MissingModality:
                continue
        if not peaks:
            self.found.append(("no-audio", "no sound where the sample is"))
        elif max(peaks) <= _SILENCE:
            level = f"{20 * np.log10(max(peaks)):.0f} dB" if max(peaks) else "digital silence"
            self.found.append(("silent", f"{level} in {len(peaks)} places"))

    def _ends(self, streams: list[Any]) -> dict[int, float]:
        """Seconds at which each stream's last packet ends, by the stream's index."""
        ends = self._ends_after(streams, max(0.0, self.media.length - _TAIL))
        if len(ends) < len(streams):
            # One stream ends long before the file does: where, only reading all of it tells.
            ends = self._ends_after(streams, 0.0)
        return ends

    def _ends_after(self, streams: list[Any], start: float) -> dict[int, float]:
        ends: dict[int, float] = {}
        try:
            with damage_is_bad_media():
                container, origin = self.media.container, self.media.origin
                with suppress(av.FFmpegError):  # what has no index is read from where it is
                    container.seek(round((start + origin) * av.time_base))
                for packet in packets(container, *streams):
                    if packet.pts is None or not packet.size or packet.is_corrupt:
                        continue
                    unit = float(packet.time_base or 0)
                    end = (packet.pts + (packet.duration or 0)) * unit - origin
                    ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
        except BadMedia:
            return ends  # the file ends in the middle of a packet: what came before counts
        return ends

    def _short_of_promise(self, streams: list[Any], ends: dict[int, float]) -> str:
        """In which way the last packets are earlier than the header says; empty if they are not."""
        if not streams or not _PROMISING & set(self.container.split(",")):
            return ""
        promises = {s.index: _promised_end(s, self.media.origin) for s in streams}
        for stream in streams:
            promised, end = promises[stream.index], ends.get(stream.index, 0.0)
            if promised is not None and end < promised - _CUT:
                kind = "video" if stream.type == "video" else "sound"
                return f"the header promises {promised:.2f} s of {kind}, which ends at {end:.2f} s"
        promised, end = self.media.length, max(ends.values(), default=0.0)
        silent = all(promise is None for promise in promises.values())
        if silent and len(streams) == len(self.media.container.streams) and end < promised - _CUT:
            return f"the header promises {promised:.2f} s, but nothing comes after {end:.2f} s"
        return ""

    def _compare_lengths(self, video: Any, audio: Any, ends: dict[int, float]) -> None:
        def inside(seconds: float) -> float:
            return max(self.media.start, min(seconds, self.media.end))

        differences = []
        if video.index in ends and audio.index in ends:
            differences.append(("ends", inside(ends[audio.index]) - inside(ends[video.index])))
        if video.start_time is not None and audio.start_time is not None:
            begin = [float(s.start_time * s.time_base) - self.media.origin for s in (video, audio)]
            differences.append(("begins", inside(begin[1]) - inside(begin[0])))
        for what, difference in differences:
            if abs(difference) > _APART:
                when = "after" if difference > 0 else "before"
                reason = f"the sound {what} {abs(difference):.2f} s {when} the video"
                self.found.append(("different-length", reason))
                return


def _grey(frame: VideoFrame) -> np.ndarray:
    """``[64, 64]`` uint8, black being 0."""
    with damage_is_bad_media():
        small = frame.reformat(
            width=_SIDE, height=_SIDE, format="gray", interpolation=Interpolation.AREA, threads=1
        )
        return small.to_ndarray()


def _promised_end(stream: Any, origin: float) -> float | None:
    """Where a stream ends by its header, in seconds; None if that does not say."""
    if "mov" in stream.container.format.name.split(","):
        if stream.duration is None:
            return None
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - origin
    # Elsewhere FFmpeg fills in the container's duration, which is that of the longest stream. But
    # Matroska's writers leave a note.
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - origin
    except ValueError:
        return None
