"""A sample together with its file, opened at most once for all its modalities."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import TracebackType
from typing import Any

import av
from av.container import InputContainer

from mmssl.contracts import Sample
from mmssl.data.remote import open_url
from mmssl.data.timing import step
from mmssl.errors import BadMedia, MissingModality

# A media file must not make FFmpeg open anything but itself: these protocols are open to it, no
# format that names other files is, and a name with a pattern is a name.
_OWN = "file,subfile,crypto,data"
_LISTS = {"concat", "dash", "hls", "imf", "lavfi", "rtp", "rtsp", "sdp", "vobsub"}
_OPTIONS = {
    "protocol_whitelist": _OWN,
    "format_whitelist": ",".join(sorted(av.formats_available - _LISTS)),
    "pattern_type": "none",
}

# Formats of pictures that do not have their codec's name.
_PIPES = {"mjpeg": "jpeg", "jpeg2000": "j2k"}


@contextmanager
def damage_is_bad_media() -> Iterator[None]:
    """Turn what PyAV raises for a damaged file into `BadMedia`.

    Put it around calls of PyAV alone: in other code a `ValueError` is a defect.
    """
    try:
        yield
    except (av.FFmpegError, OSError, EOFError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadMedia(reason) from error


def packets(container: InputContainer, *streams: Any) -> Iterator[Any]:
    """The packets of some streams, or of all, in the file's order; the last of each is empty.

    As PyAV's ``demux``, which stumbles at the end over streams that only turned up on the way,
    as they may in MPEG-TS. By then it is done with those that were asked for.

    In a picture's file the first one counts: telephones and tools append other things.
    """
    picture, found = container.format.name.endswith("_pipe"), False
    try:
        for packet in container.demux(*streams):
            if not (picture and found and packet.size):
                yield packet
            found = True
    except IndexError:
        return


class Media:
    """What `mmssl.Modality.read` reads from. A context manager: leaving it closes the file.

    Times are in seconds from `origin`, where the file's first stream begins.

    Args:
        sample: the row of the dataset.

    Attributes:
        sample: the same; a modality with a file of its own finds it in ``sample.fields``.
    """

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self._open = ExitStack()

    @cached_property
    def container(self) -> InputContainer:
        """The open PyAV container of ``sample.media``.

        Raises:
            MissingModality: the sample has no media file.
            BadMedia: there is no such file, or it is no media file.
        """
        if self.sample.media is None:
            raise MissingModality("the sample names no media file")
        with step("open"), damage_is_bad_media():
            source = self._source(self.sample.media, self.sample.span)
            container = av.open(source, metadata_errors="ignore", options=_OPTIONS)
            if better := self._better_format(container):
                container.close()
                container = av.open(
                    source, format=better, metadata_errors="ignore", options=_OPTIONS
                )
            return container

    def _better_format(self, container: InputContainer) -> str | None:
        """Where FFmpeg guesses wrong between one picture and many: the format that it is."""
        sample, found = self.sample, container.format.name
        name = (sample.media or "") if sample.span is None else sample.id
        if found == "jpeg_pipe" and name.lower().endswith((".mjpeg", ".mjpg")):
            return "mjpeg"
        if found != "image2":
            return None
        # By its name, as something follows the picture. This format could not be rewound.
        context: Any = container.streams[0].codec_context
        codec = "" if context is None else context.codec.canonical_name
        pipe = f"{_PIPES.get(codec, codec)}_pipe"
        return pipe if pipe in av.formats_available else None

    def _source(self, path: str, span: tuple[int, int] | None) -> Any:
        """What PyAV opens: FFmpeg reads local files and parts of them by itself."""
        if "://" in path:
            return self._open.enter_context(open_url(path, span))
        if os.path.isdir(path):
            raise BadMedia(f"{path} is a folder")
        if not os.path.isfile(path):
            if os.path.islink(path):
                raise BadMedia(f"{path} links to {os.readlink(path)}, which is not there")
            raise BadMedia(f"no such file: {path}")
        size = os.path.getsize(path)
        if span is None:
            if size == 0:
                raise BadMedia("the file is empty")
            return f"file:{path}"
        first, count = span
        if count == 0:
            raise BadMedia("the file is empty")
        if first + count > size:
            raise BadMedia(f"{path} ends at byte {size}, before the sample does")
        return f"subfile,,start,{first},end,{first + count},,:{path}"

    @cached_property
    def origin(self) -> float:
        """The presentation time that counts as second 0: of the earliest stream's beginning.

        Some containers begin anywhere (MPEG-TS). Codec delay before 0, as in Matroska with
        Opus, is discarded in decoding and no part of the file's time.
        """
        if self.container.format.name == "avi":
            return 0.0  # its times are places in the file; what is reordered seems to begin later
        return max(0.0, (self.container.start_time or 0) / av.time_base)

    @cached_property
    def length(self) -> float:
        """Seconds from `origin` to the end of the longest stream.

        Raises:
            BadMedia: there is nothing in the file, or nothing tells how long it is.
        """
        duration = (self.container.duration or 0) / av.time_base
        if "matroska" in self.container.format.name and duration > self.origin:
            duration -= self.origin  # Matroska says when the last stream ends
        if duration > 0:
            return duration
        # A recording that was streamed knows its length only at its end.
        ends = [0.0]
        with step("open"), damage_is_bad_media():
            self.container.seek(0)
            for packet in packets(self.container):
                if packet.pts is not None and packet.time_base is not None:
                    ends.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
        length = max(ends) - self.origin
        if length <= 0:
            raise BadMedia("its length is unknown")
        return length

    @property
    def start(self) -> float:
        """Where the sample begins in its file, in seconds."""
        return self.sample.start

    @property
    def end(self) -> float:
        """Where the sample ends in its file, in seconds: at the latest where the file ends.

        For a sample without file it is the row's, or `start` if the row has none.

        Raises:
            BadMedia: the file ends before the sample begins, or its length is unknown.
        """
        end = self.sample.end
        if self.sample.media is None:
            return self.start if end is None else end
        length = self.length
        if length <= self.start:
            raise BadMedia(f"begins at {self.start:g} s, but the file ends at {length:g} s")
        return length if end is None else min(end, length)

    def close(self) -> None:
        """Close the file, if it was opened."""
        container = self.__dict__.pop("container", None)
        if container is not None:
            container.close()
        self._open.close()

    def __enter__(self) -> "Media":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
