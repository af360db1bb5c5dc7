"""Which files there are: a folder of anything, or a list."""

import csv
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, get_args

from mmssl.errors import UserError

Kind = Literal["video", "audio", "image"]

KINDS: tuple[Kind, ...] = get_args(Kind)

_ENDINGS: dict[Kind, str] = {
    "video": ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .gif .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov "
    ".mp4 .mpe .mpeg .mpg .mts .mxf .nut .ogm .ogv .rm .rmvb .ts .vob .webm .wmv .y4m",
    "audio": ".aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .flac .m4a .m4b .mka .mp2 .mp3 .oga "
    ".ogg .opus .spx .tta .w64 .wav .weba .wma .wv",
    "image": ".bmp .jpeg .jpg .jxl .png .ppm .tif .tiff .webp",
}

#: Endings by what they promise.
ENDINGS = {kind: frozenset(endings.split()) for kind, endings in _ENDINGS.items()}


class Unfit(Exception):
    """What a path names is nothing to be read: a problem's name, and the reason in words."""

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(problem, reason)
        self.problem = problem
        self.reason = reason


def kind_of(path: str) -> Kind | None:
    """What a file's ending promises."""
    ending = os.path.splitext(path)[1].lower()
    return next((kind for kind in KINDS if ending in ENDINGS[kind]), None)


def walk(folder: str, kinds: Collection[Kind], others: Counter[str]) -> Iterator[str]:
    """Paths below a folder that promise to be media, in an order that names alone decide.

    Hidden files and folders are passed over. Links to files are followed; links to folders are
    not, as they may lead in circles. A folder that has a file's name, or that cannot be
    listed, is yielded too: `look` says what is wrong with it.

    Args:
        folder: where to begin.
        kinds: of media that are wanted.
        others: counts what is passed over, by its ending.
    """
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(here) as found:
                entries = sorted((entry.name, _is_folder(entry)) for entry in found)
        except OSError:
            yield here
            continue
        below = []
        for name, is_folder in entries:
            path = os.path.join(here, name)
            if name.startswith("."):
                continue
            if kind_of(name) in kinds:
                yield path
            elif not is_folder:
                others[os.path.splitext(name)[1].lower() or "without ending"] += 1
            if is_folder:
                if os.path.islink(path):
                    others["links to folders"] += 1
                else:
                    below.append(path)
        folders.extend(reversed(below))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def refuse_bad_name(path: str) -> None:
    """Do nothing, if a list can hold the path or URL.

    Raises:
        Unfit: it cannot.
    """
    for what, is_there in (
        ("is not UTF-8", not _is_text(path)),
        ("holds a line break", "\n" in path or "\r" in path),
        ("holds a zero byte", "\0" in path),
    ):
        if is_there:
            raise Unfit("bad-name", f"its name {what}, so that no list can name it")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def look(path: str) -> os.stat_result:
    """The state of a file that can be read.

    Raises:
        Unfit: it is none.
    """
    refuse_bad_name(path)
    try:
        state = os.stat(path)
    except OSError as error:
        if os.path.islink(path):
            reason = f"links to {os.readlink(path)}, which is not there"
            raise Unfit("dangling-link", reason) from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise Unfit("missing", "no such file") from None
        raise Unfit("unreadable", error.strerror or str(error)) from None
    if stat.S_ISDIR(state.st_mode):
        if not os.access(path, os.R_OK | os.X_OK):
            raise Unfit("unreadable", "a folder that may not be listed")
        raise Unfit("folder", "a folder with a file's name")
    if not stat.S_ISREG(state.st_mode):
        raise Unfit("not-a-file", f"{_sort(state.st_mode)}, not a file")
    if not os.access(path, os.R_OK):
        raise Unfit("unreadable", "Permission denied")
    if state.st_size == 0:
        raise Unfit("empty", "the file is empty")
    return state


def _sort(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def columns_of(path: Path) -> list[str]:
    """The columns of a list: those of a CSV or TSV file, or ``path`` alone.

    Raises:
        UserError: there is no column ``path``, two have one name, or a name is no line of text.
    """
    if not _delimiter(path):
        return ["path"]
    number, header = next(_records(path), (1, []))
    _refuse_no_text(path, number, header)
    if any("\n" in name or "\r" in name for name in header):
        raise UserError(f"{path}:1: a column's name holds a line break")
    if "path" not in header:
        named = ", ".join(map(repr, header)) or "none"
        raise UserError(f"{path}:1: no column 'path'; its columns are: {named}")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{path}:1: two columns are named {twice!r}")
    return header


def rows_of(path: Path) -> Iterator[list[str]]:
    """The rows of a list, with a value for each of `columns_of`.

    Line breaks within values become spaces, as a manifest's rows are lines; in a path they stay,
    for `look` to refuse it, as do bytes that are no UTF-8.

    Raises:
        UserError: a line has more or fewer values, or is not UTF-8.
    """
    if not _delimiter(path):
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for line in file:
                if line := line.rstrip("\r\n"):
                    yield [line]
        return
    records = _records(path)
    _, header = next(records)
    own = header.index("path")
    for number, values in records:
        if len(values) != len(header):
            raise UserError(
                f"{path}:{number}: {len(values)} values for {len(header)} columns; "
                "put quotes around a value that holds the separator"
            )
        media, values[own] = values[own], ""
        _refuse_no_text(path, number, values)
        values = [re.sub(r"[\r\n]+", " ", value) for value in values]
        values[own] = media
        yield values


def _refuse_no_text(path: Path, number: int, values: list[str]) -> None:
    if not all(map(_is_text, values)):
        raise UserError(f"{path}:{number}: is not UTF-8 text; convert the list to it")


def _delimiter(path: Path) -> str:
    return {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower(), "")


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=_delimiter(path), strict=True)
        try:
            for values in reader:
                if values:
                    yield reader.line_num, values
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: {error}") from None


def printable(text: str) -> str:
    """A name for messages: on one line, and without bytes that are no text."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
