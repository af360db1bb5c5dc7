"""What a media file's header says of it."""

from itertools import islice, pairwise
from statistics import median
from typing import Any

from av.stream import Disposition
from av.video.stream import VideoStream

from mmssl import BadMedia, Media, Sample
from mmssl.data.media import damage_is_bad_media, packets

#: What `probe` tells; none is a name that manifests use themselves.
COLUMNS = (
    "duration",
    "streams",
    "video_codec",
    "width",
    "height",
    "fps",
    "variable_fps",
    "audio_codec",
    "rate",
    "channels",
    "bytes",
)

# Frames whose times are compared: those of an index cost nothing, others must be read.
_INDEXED_FRAMES = 5000
_READ_FRAMES = 100
_READ_PACKETS = 1000

# Frames that a codec may send before others that are shown earlier.
_REORDERED = 16

# A step between two frames is another one if it is longer or shorter by so much: a tenth, and
# more than containers round times, Matroska to a millisecond.
_UNEVEN = 0.1
_ROUNDING = 2.1e-3


def probe(sample: Sample) -> dict[str, str]:
    """Open a file and describe it, without decoding anything.

    Args:
        sample: of which the media file is described, whatever part of it the sample is.

    Returns:
        By name in `COLUMNS`, but for ``bytes``; empty where there is nothing to say:

        - ``duration``: seconds; empty for an image.
        - ``streams``: kinds of all streams in their order, such as ``video+audio``; ``image``.
        - ``video_codec``, ``width``, ``height``: of the first video stream, as stored.
        - ``fps``: frames per second on average; where the rate varies and the container counts no
          frames, at the beginning.
        - ``variable_fps``: ``yes`` or ``no``.
        - ``audio_codec``, ``rate`` (Hz), ``channels``: of the first audio stream.

    Raises:
        BadMedia: it is no media file, or has neither video nor sound.
    """
    with Media(sample) as media:
        container = media.container
        image = is_image(container.format.name)
        kinds = ["image" if image else _kind(stream) for stream in container.streams]
        found = {"streams": "+".join(kinds)}
        if not image and "video" not in kinds and "audio" not in kinds:
            raise BadMedia(f"neither video nor audio in it, but {found['streams'] or 'nothing'}")
        if not image:
            found["duration"] = f"{media.length:.3f}"
        for stream in container.streams:
            kind, context = _kind(stream), stream.codec_context
            if kind == "audio" and "rate" not in found:
                found["audio_codec"] = "" if context is None else context.codec.canonical_name
                found["rate"] = str(getattr(context, "rate", None) or "")
                found["channels"] = str(getattr(context, "channels", None) or "")
            if kind == "video" and "width" not in found:
                assert isinstance(stream, VideoStream)
                found["video_codec"] = "" if context is None else context.codec.canonical_name
                found["width"] = str(getattr(context, "width", None) or "")
                found["height"] = str(getattr(context, "height", None) or "")
                if not image:
                    fps, varies = _pace(media, stream)
                    found["fps"] = f"{fps:.6g}" if fps else ""
                    found["variable_fps"] = "yes" if varies else "no"
    return found


def is_image(container: str) -> bool:
    """Is a container, by its name in FFmpeg, that of a single picture?"""
    return container == "image2" or container.endswith("_pipe")


def _kind(stream: Any) -> str:
    if stream.disposition & Disposition.attached_pic:
        return "cover"
    return str(stream.type)


def _pace(media: Media, stream: VideoStream) -> tuple[float, bool]:
    """Frames per second, and whether the time from frame to frame differs; nothing is decoded.

    Judged by the first frames, and by all where the container has an index of them.
    """
    unit = float(stream.time_base or 0)
    average = float(stream.average_rate or stream.guessed_rate or 0)
    entries = stream.index_entries
    indexed = len(entries) > 1 and len(entries) == stream.frames
    if indexed:
        ticks = [entries[place].timestamp for place in range(min(len(entries), _INDEXED_FRAMES))]
    else:
        ticks = _read_times(media, stream)
    times = sorted(tick * unit for tick in ticks)
    steps = [after - before for before, after in pairwise(times)]
    if not steps:
        return average, False
    usual = median(steps)
    uneven = max(_UNEVEN * usual, _ROUNDING)
    varies = any(abs(step - usual) > uneven for step in steps)
    if indexed and len(entries) > _INDEXED_FRAMES and average:
        # What is even at first may change later, and then the average differs.
        varies = varies or abs(1 / average - usual) > _UNEVEN / 2 * usual
    if varies and stream.frames and stream.duration:
        average = stream.frames / (stream.duration * unit)
    elif varies:
        average = len(steps) / (times[-1] - times[0])
    return average, varies


def _read_times(media: Media, stream: VideoStream) -> list[int]:
    """Presentation times of the first frames, in ticks; of some, where packets are damaged."""
    ticks = []
    with damage_is_bad_media():
        for packet in islice(packets(media.container), _READ_PACKETS):
            time = packet.pts if packet.pts is not None else packet.dts
            if packet.stream_index == stream.index and packet.size and time is not None:
                ticks.append(time)
                if len(ticks) == _READ_FRAMES:
                    break
    # The last ones may have others between them that come later in decoding order.
    return sorted(ticks)[: -_REORDERED or None] if len(ticks) > 2 * _REORDERED else ticks
