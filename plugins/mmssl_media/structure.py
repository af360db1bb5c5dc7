"""What a few bytes of a file tell of it where decoding does not: is it cut short, is it text?"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from mmssl import BadMedia, Sample
from mmssl.data.remote import open_bytes

# The boxes that files of the MP4 family begin with.
_FIRST_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}

# IDs of Matroska's header and of the segment that holds all the rest.
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"

# In a JPEG's coded data: neither a byte of it, nor a restart, nor filling.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def why_not_media(sample: Sample, reason: str) -> tuple[str, str]:
    """The problem's name, and the reason in words, of a file that cannot be opened.

    Args:
        sample: whose file it is.
        reason: what the demuxer says of it, for want of anything better.

    Raises:
        BadMedia: it cannot be read at all.
    """
    cut = cut_short(sample)
    if cut:
        return "truncated", cut
    with _bytes_of(sample) as (file, _):
        head = file.read(256)
    text = head.decode("utf-8", "ignore")
    # The last character may be cut off.
    if len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text):
        return "wrong-extension", f"holds text, not media: {' '.join(text.split())[:40]!r}"
    return "corrupt", reason


def cut_short(sample: Sample) -> str:
    """How a file is shorter than it says itself; empty if it is not, or if nothing tells.

    MP4 and its family, RIFF (AVI, WAV), Matroska and WebM, JPEG and PNG tell. A file cut
    elsewhere is noticed when its last packets are read, if its header says how long it is.

    Raises:
        BadMedia: it cannot be read.
    """
    with _bytes_of(sample) as (file, size):
        head = file.read(16)
        if head[4:8] in _FIRST_BOXES:
            return _mp4(file, size)
        if head.startswith(b"RIFF"):
            return _riff(file, size)
        if head.startswith(_EBML):
            return _matroska(file, size)
        if head.startswith(b"\xff\xd8\xff"):
            return _jpeg(file)
        if head.startswith(b"\x89PNG"):
            return _png(file, size)
        return ""


@contextmanager
def _bytes_of(sample: Sample) -> Iterator[tuple[BinaryIO, int]]:
    """The sample's file, and how long it is."""
    try:
        with open_bytes(sample) as found:
            yield found
    except OSError as error:
        raise BadMedia(error.strerror or str(error)) from error


def _past_the_end(what: str, end: int, size: int) -> str:
    return f"{what} should end at byte {end:,}, but the file ends at {size:,}"


def _mp4(file: BinaryIO, size: int) -> str:
    position, names = 0, set()
    while position < size:
        file.seek(position)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 0 and name in (b"mdat", b"free", b"skip"):
            names.add(name)
            break  # goes on to the end
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if not (name.isalnum() or name == b"uuid") or length < 8:
            if names & {b"moov", b"moof"}:
                return ""  # what follows is no box, and nobody needs it
            break
        names.add(name)
        position += length
        if position > size:
            return _past_the_end(f"its part {name.decode()!r}", position, size)
    if not names & {b"moov", b"moof"}:
        return "it lacks the part 'moov', which is written last"
    return ""


def _riff(file: BinaryIO, size: int) -> str:
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        # A recorder that was interrupted, or that could not go back, leaves these.
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return ""
        position += 8 + length
        if position > size:
            return _past_the_end("its RIFF part", position, size)
        position += length % 2
    return ""


def _jpeg(file: BinaryIO) -> str:
    # Marker by marker: previews within have ends of their own, and others may come after this one.
    position = 2
    while True:
        file.seek(position)
        head = file.read(4)
        if head[:2] == b"\xff\xd9":
            return ""
        if len(head) < 4:
            return "the picture has no end"
        if head[0] != 0xFF:
            return ""  # no marker: the decoder decides
        if head[1] == 0xFF:
            position += 1
        elif head[1] == 0x01 or 0xD0 <= head[1] <= 0xD8:
            position += 2
        else:
            position += 2 + int.from_bytes(head[2:], "big")
            if head[1] == 0xDA:
                position = _after_scan(file, position)


def _after_scan(file: BinaryIO, position: int) -> int:
    """Where the marker after a JPEG's coded data is; where the file ends, if there is none."""
    file.seek(position)
    data = b""
    while block := file.read(1 << 16):
        data += block
        if found := _MARKER.search(data):
            return position + found.start()
        position += len(data) - 1
        data = data[-1:]
    return position + len(data)


def _png(file: BinaryIO, size: int) -> str:
    position = 8
    while position + 12 <= size:
        file.seek(position)
        head = file.read(8)
        name = head[4:]
        if not name.isalpha():
            return ""  # no chunk: the decoder decides
        position += 12 + int.from_bytes(head[:4], "big")
        if position > size:
            return _past_the_end(f"its part {name.decode()!r}", position, size)
        if name == b"IEND":
            return ""
    return "the picture has no end"


def _matroska(file: BinaryIO, size: int) -> str:
    file.seek(len(_EBML))
    header = _variable_length(file)
    if header is None:
        return "it ends within its header"
    file.seek(file.tell() + header)
    if file.read(4) != _SEGMENT:
        return "" if file.tell() < size else "it ends within its header"
    length = _variable_length(file)
    if length is None:
        return "it ends within its header"
    if length < 0 or file.tell() + length <= size:
        return ""
    return _past_the_end("its segment", file.tell() + length, size)


def _variable_length(file: BinaryIO) -> int | None:
    """A number as Matroska writes them; -1 for unknown, None at the file's end."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    if len(rest) < more:
        return None
    bits = 7 * (more + 1)
    number = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return -1 if number == (1 << bits) - 1 else number
