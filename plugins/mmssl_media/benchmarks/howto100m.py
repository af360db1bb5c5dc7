"""HowTo100M: instructional videos, and what is said in them."""

import codecs
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import DirectoryPath, Field

from mmssl.contracts import Sample
from mmssl.data.cache import cache_folder
from mmssl.errors import UserError
from mmssl.training.checkpoints import write_atomically
from mmssl.training.progress import Progress, Silent
from mmssl_media.benchmarks.official import Official, Row, seconds, within

_CAPTIONS = ("caption.json", "raw_caption.json")

# Raise it when captions come to be listed otherwise.
_VERSION = 2

# A list under way that nobody wrote to for so many seconds is of a process that was killed.
_ABANDONED = 3600

# Bytes that are read at a time, and characters within which a video's captions must end.
_CHUNK = 1 << 22
_LONGEST = 1 << 26

_SPACE = re.compile(r"\s*")
_OPEN = re.compile(r"\s*\{")
_CLOSE = re.compile(r"\s*\}")
_COLON = re.compile(r"\s*:\s*")
_NEXT = re.compile(r"\s*([,}])")


class HowTo100M(Official):
    """HowTo100M: 136 million captions of 1.2 million instructional videos; a caption is a sample.

    Read are ``caption.json`` (or ``raw_caption.json``), which holds ``start``, ``end`` and
    ``text`` of the captions by video, and the videos, ``<id>`` with any ending anywhere below
    ``videos``, or else below `path`. The sample is the span of time of its caption. The caption is
    the field ``text``; the field ``texts`` is a JSON list that begins with it, and goes on with
    the captions of the same video that are nearest in time, the nearest first: what MIL-NCE
    chooses from. A sample's id is ``<video>/<number of the caption>``. There are no classes.

    The captions of the videos that are there are written once, in one pass that holds no more
    than a video's at a time, as CSV to ``$MMSSL_CACHE`` or ``~/.cache/mmssl``: some 80 bytes each,
    10 GB for all. Other files or another annotation make another list, which takes the place of
    the earlier one. Captions of videos that are not there, and those without text or time, are
    left out, and how many these are is said when a run begins.

    Args:
        path: the folder with captions and videos.
        context: how many further captions ``texts`` has, at most.
    """

    columns = ("start", "end", "id", "text")
    source = "are they named by the videos' ids?"
    partial = True

    def __init__(
        self, *, path: DirectoryPath, context: Annotated[int, Field(ge=0, le=64)] = 4
    ) -> None:
        source = "the archive of captions, howto100m_captions.zip, contains it"
        self._file = within(path, *_CAPTIONS, source=source)
        self._context = context
        self._progress: Progress = Silent()
        super().__init__(self._file, within(path, "videos", ".", source=source))

    def sample(self, index: int) -> Sample:
        """The caption of a row.

        Raises:
            IndexError: there is no such row.
        """
        own = super().sample(index)
        # Rows of a video are in the order of time, so the nearest are among the next ones.
        rows = range(max(0, index - self._context), min(len(self), index + self._context + 1))
        others = [super(HowTo100M, self).sample(row) for row in rows if row != index]
        near = sorted(
            (other for other in others if other.media == own.media),
            key=lambda other: abs(other.start - own.start),
        )
        texts = [one.fields["text"] for one in (own, *near[: self._context])]
        return replace(own, fields={**own.fields, "texts": json.dumps(texts, ensure_ascii=False)})

    def materialise(self, progress: Progress) -> None:
        """Write the list of captions where there is none, and say what is left out."""
        self._progress = progress
        try:
            super().materialise(progress)
        finally:
            self._progress = Silent()

    @cached_property
    def _text(self) -> Path:
        files = self._files()
        state = self._file.stat()
        place = hashlib.blake2b(os.fsencode(f"{self._file.absolute()}\n{self.root}"), digest_size=6)
        key = hashlib.blake2b(f"{_VERSION}\n{state.st_mtime_ns}\n".encode(), digest_size=12)
        key.update(f"{state.st_size}\n".encode())
        for name in sorted(files.values()):
            key.update(name.encode("utf-8", "surrogateescape") + b"\n")
        own = f"howto100m-{place.hexdigest()}-"
        copy = cache_folder() / "lists" / f"{own}{key.hexdigest()}.csv"
        said = copy.with_suffix(".json")
        try:
            if copy.is_file() and said.is_file():
                self._said += json.loads(said.read_text())
            else:
                write_atomically(copy, partial(self._write_list, files, said))
        except OSError as error:
            raise UserError(
                f"{self._file}: cannot be listed in {copy.parent} ({error}); set MMSSL_CACHE to a "
                "folder with room"
            ) from None
        _clear(copy, own)
        return copy

    def _write_list(self, files: Mapping[str, str], said: Path, to: Path) -> None:
        """Write the list, but first what is to be said of it whenever it is used."""
        before = len(self._said)
        with open(to, "w", encoding="utf-8", newline="") as text:
            self._write(text, files)
        write_atomically(said, lambda path: path.write_text(json.dumps(self._said[before:])))

    def _rows(self, files: Mapping[str, str]) -> Iterator[Row]:
        total = unfit = 0
        with self._progress.task("listing captions", self._file.stat().st_size) as advance:
            for video, entry in entries(self._file, advance):
                try:
                    columns = [entry[name] for name in ("start", "end", "text")]
                    captions = list(zip(*columns, range(len(columns[0])), strict=True))
                except (KeyError, TypeError, ValueError):
                    raise UserError(
                        f"{self._file}: {video!r} has no lists start, end and text of one length"
                    ) from None
                fit = [caption for caption in captions if _is_fit(*caption[:3])]
                total, unfit = total + len(captions), unfit + len(captions) - len(fit)
                for start, end, text, number in sorted(fit, key=lambda caption: caption[0]):
                    yield video, [str(start), str(end), f"{video}/{number}", text]
        if unfit:
            self._said.append(
                f"{self._file}: {unfit:,} of {total:,} captions have no text or no time, and are "
                "left out"
            )


def _clear(copy: Path, own: str) -> None:
    """Remove a dataset's earlier lists, and what killed processes left of any."""
    old = [path for path in copy.parent.glob(f"{own}*") if path.stem != copy.stem]
    for path in copy.parent.glob(".howto100m-*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                old.append(path)
    for path in old:
        with suppress(OSError):  # somebody else's, or gone meanwhile
            path.unlink()


def _is_fit(start: Any, end: Any, text: Any) -> bool:
    numbers = isinstance(start, int | float) and isinstance(end, int | float)
    if not (numbers and isinstance(text, str) and text.strip()):
        return False
    return seconds(start) is not None and seconds(end) is not None and start < end


def entries(file: Path, advance: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """The entries of the object in a JSON file that memory would not hold, one after the other.

    Args:
        file: the JSON.
        advance: called with how many bytes were read.

    Raises:
        UserError: it holds no such object, or ends within it.
    """
    decode = json.JSONDecoder().raw_decode
    bytes_to_text = codecs.getincrementaldecoder("utf-8-sig")()
    text, at, last, key = "", 0, "", ""
    with open(file, "rb") as source:
        while last != "}":
            raw = source.read(_CHUNK)
            advance(len(raw))
            try:
                text, at = text[at:] + bytes_to_text.decode(raw, final=not raw), 0
                if not last and text.strip():
                    at, last = _after(_OPEN, text, 0).end(), "{"
                if last == "{" and _CLOSE.match(text, at):
                    last = "}"
                # Until the chunk ends within an entry.
                while last in ("{", ","):
                    key, value, at, last = _entry(decode, text, at)
                    yield key, value
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                cut = last and raw and len(text) - at < _LONGEST
                if cut and isinstance(error, json.JSONDecodeError):
                    continue
                place = f"after the video {key!r}" if key else "from its beginning"
                raise UserError(f"{file}: is not JSON of captions by video, {place}") from None
            if not raw and last != "}":
                raise UserError(f"{file}: is not JSON of captions by video, from its beginning")


def _entry(
    decode: Callable[[str, int], tuple[Any, int]], text: str, at: int
) -> tuple[str, Any, int, str]:
    """Key and value of the entry at a place, the place behind it, and what stands there.

    Raises:
        json.JSONDecodeError: there is none, or not all of it.
    """
    key, end = decode(text, _after(_SPACE, text, at).end())
    value, end = decode(text, _after(_COLON, text, end).end())
    following = _after(_NEXT, text, end)
    if not isinstance(key, str):
        raise json.JSONDecodeError("no name", text, at)
    return key, value, following.end(), following[1]


def _after(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str]:
    found = pattern.match(text, at)
    if found is None:
        raise json.JSONDecodeError("something else", text, at)
    return found
