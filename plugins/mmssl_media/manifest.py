"""A dataset listed in a CSV file."""

import csv
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import DirectoryPath, FilePath

from mmssl.contracts import IGNORE, Dataset, Sample
from mmssl.errors import UserError

# Every so many rows the place in the file is remembered; the rows between are skipped over.
# 65 million rows cost 33 MB this way, where Python objects would cost gigabytes.
_MARK = 16

_OWN_COLUMNS = ("path", "label", "start", "end", "id")

# A label that is a number is its own index, so a mistaken column must not make 10^9 classes.
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class _Index:
    """What one pass over the file found.

    Attributes:
        header: the columns' names.
        rows: how many.
        marks: int64, the byte at which every `_MARK`-th row begins.
        labels: ``[rows]`` int32, or None without a column ``label``.
        classes: the classes' names.
    """

    header: list[str]
    rows: int
    marks: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]


class Manifest(Dataset):
    """Samples listed in a CSV file, or in a TSV file (by its ending), one a row.

    The first line names the columns. ``path`` is the media file; ``label``, ``start`` and ``end``
    (seconds) are optional, as is a value in each; any further column is passed on to modalities.
    One file may hold several samples that differ in ``start`` and ``end``. A row's name in
    messages is made of these, or is its ``id`` where it has one. A row without ``path``, for
    modalities with files of their own, needs an ``id``. The list is UTF-8.

    It is indexed in one pass when first used, which takes up to 20 bytes a row for the moment;
    4 bytes a row are kept, for the label.

    Labels that are whole numbers from 0 are the classes' indices. Others are names, and the
    classes are all names in alphabetical order unless `classes` gives the order.

    Args:
        path: the list.
        root: folder that relative paths are relative to; by default the list's own.
        classes: names of all classes in order, so that lists that lack some of them agree.
    """

    def __init__(
        self,
        *,
        path: FilePath,
        root: DirectoryPath | None = None,
        classes: list[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.root = os.path.abspath(self.path.parent if root is None else root)
        self._given = classes
        if classes is not None and len(set(classes)) < len(classes):
            raise UserError(f"{self.path}: a class is named twice in {classes}")
        self._delimiter = "\t" if self.path.suffix.lower() == ".tsv" else ","

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        """Names of the classes that labels index; empty for unlabelled data."""
        return self._index.classes

    def __len__(self) -> int:
        return self._index.rows

    def sample(self, index: int) -> Sample:
        """The sample of a row.

        Raises:
            IndexError: there is no such row.
        """
        found = self._index
        if not 0 <= index < found.rows:
            raise IndexError(f"row {index} of {found.rows}")
        row = dict(zip(found.header, self._values(found, index), strict=True))
        label = IGNORE if found.labels is None else int(found.labels[index])
        return Sample(
            id=_identity(*(row.get(name, "") for name in ("id", "path", "start", "end"))),
            media=os.path.join(self.root, row["path"]) if row.get("path") else None,
            start=float(row.get("start") or 0.0),
            end=float(row["end"]) if row.get("end") else None,
            label=None if label == IGNORE else label,
            fields={name: value for name, value in row.items() if name not in _OWN_COLUMNS},
            root=self.root,
        )

    def _values(self, found: _Index, index: int) -> list[str]:
        first, skip = int(found.marks[index // _MARK]), index % _MARK
        while True:
            after = self._bytes.find(b"\n", first) + 1 or len(self._bytes)
            line = self._bytes[first:after]
            if line.strip(b"\r\n"):
                if skip == 0:
                    break
                skip -= 1
            first = after
        return next(csv.reader([line.decode()], delimiter=self._delimiter, strict=True))

    def labels(self) -> np.ndarray:
        """``[len(self)]`` int32, `IGNORE` where a sample has none."""
        found = self._index
        if found.labels is None:
            return np.full(found.rows, IGNORE, np.int32)
        return found.labels.copy()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    @cached_property
    def _bytes(self) -> mmap.mmap:
        """The file, mapped: processes share its pages."""
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _fail(self, line: int, message: str) -> NoReturn:
        raise UserError(f"{self.path}:{line}: {message}")

    def _records(self) -> Iterator[tuple[int, int, list[str]]]:
        """Line number, first byte and values of every row, the header's included."""
        begin = after = 0

        def lines() -> Iterator[str]:
            nonlocal begin, after
            with open(self.path, "rb") as file:
                for raw in file:
                    begin, after = after, after + len(raw)
                    yield raw.decode("utf-8-sig" if begin == 0 else "utf-8")

        reader = csv.reader(lines(), delimiter=self._delimiter, strict=True)
        last = 0
        try:
            for values in reader:
                last += 1
                if reader.line_num > last:
                    self._fail(last, "a quoted value goes on in the next line")
                if values:
                    yield last, begin, values
        except UnicodeDecodeError:
            self._fail(last + 1, "is not UTF-8 text")
        except csv.Error as error:
            self._fail(last + 1, str(error))

    @cached_property
    def _index(self) -> _Index:
        records = self._records()
        line, _, header = next(records, (1, 0, []))
        self._check_header(line, header)
        width = len(header)
        places = [header.index(name) if name in header else None for name in _OWN_COLUMNS]
        path_at, label_at, start_at, end_at, id_at = places
        given = None if self._given is None else frozenset(self._given)
        marks, hashes, labels = array("q"), array("q"), array("i")
        names: dict[str, int] = {}
        # This loop runs once for each of perhaps 10^8 rows: nothing in it that could be outside.
        for number, begin, values in records:
            if len(values) != width:
                self._fail(
                    number,
                    f"{len(values)} values for {width} columns; "
                    "put quotes around a value that holds the separator",
                )
            path = "" if path_at is None else values[path_at]
            start = "" if start_at is None else values[start_at]
            end = "" if end_at is None else values[end_at]
            own = "" if id_at is None else values[id_at]
            if not path and not own:
                self._fail(number, "path: is empty; a row without a file needs an id")
            if path and (path.isspace() or "\0" in path):
                self._fail(number, f"path: {path!r} is no file's name")
            if start or end:
                self._check_times(number, start, end)
            if len(hashes) % _MARK == 0:
                marks.append(begin)
            hashes.append(hash(_identity(own, path, start, end)))
            if label_at is not None:
                name = values[label_at]
                labels.append(names.setdefault(name, len(names)) if name else IGNORE)
                if name and given is not None and name not in given:
                    self._fail(number, f"label: {name!r} is not among the classes given")
        rows = len(hashes)
        if not rows:
            raise UserError(f"{self.path}: lists no samples")
        self._check_unique(np.frombuffer(hashes, np.int64), header)
        del hashes
        found = None if label_at is None else np.frombuffer(labels, np.int32)
        classes, found = self._classes(list(names), found)
        return _Index(header, rows, np.frombuffer(marks, np.int64), found, classes)

    def _check_header(self, line: int, header: list[str]) -> None:
        if not header:
            raise UserError(f"{self.path}: is empty; its first line must name the columns")
        if "path" not in header and "id" not in header:
            self._fail(line, f"no column 'path' among {', '.join(map(repr, header))}")
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            self._fail(line, f"two columns are named {twice!r}")

    def _check_times(self, line: int, start: str, end: str) -> None:
        first = self._seconds(line, "start", start) if start else 0.0
        last = self._seconds(line, "end", end) if end else None
        if last is not None and last <= first:
            self._fail(line, f"end: {last:g} is not after start, {first:g}")

    def _seconds(self, line: int, column: str, text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            self._fail(line, f"{column}: {text!r} is not a number")
        if not 0 <= seconds < float("inf"):
            self._fail(line, f"{column}: {text} is not a time in seconds")
        return seconds

    def _check_unique(self, hashes: np.ndarray, header: list[str]) -> None:
        """Refuse a second row of the same name.

        Args:
            hashes: ``[rows]`` int64 of the names; sorted in place, so that beside their own 8
                bytes a row the comparison takes one more.
            header: the columns' names.
        """
        hashes.sort()
        twins = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        if not twins:
            return
        # Different rows may have equal hashes: look at the rows themselves.
        seen: dict[str, int] = {}
        records = self._records()
        next(records)
        for number, _, values in records:
            row = dict(zip(header, values, strict=True))
            name = _identity(*(row.get(column, "") for column in ("id", "path", "start", "end")))
            if hash(name) in twins:
                if name in seen:
                    self._fail(number, f"{name!r} is listed already in line {seen[name]}")
                seen[name] = number

    def _classes(
        self, names: list[str], found: np.ndarray | None
    ) -> tuple[tuple[str, ...], np.ndarray | None]:
        """The classes' names, and labels numbered by them instead of by first appearance."""
        if self._given is not None:
            classes = list(self._given)
        elif names and all(name.isascii() and name.isdigit() for name in names):
            count = max(int(name) for name in names) + 1
            if count > _MOST_CLASSES:
                raise UserError(f"{self.path}: label: {count - 1} is too large for a class's index")
            classes = [str(number) for number in range(count)]
            names = [str(int(name)) for name in names]
        elif names and all(map(_is_number, names)):
            wrong = next(name for name in names if not (name.isascii() and name.isdigit()))
            raise UserError(
                f"{self.path}: label: {wrong!r} is no class's index; "
                "write whole numbers from 0, leave unlabelled ones empty"
            )
        else:
            classes = sorted(names)
        if found is None:
            return tuple(classes), None
        place = {name: number for number, name in enumerate(classes)}
        numbers = np.array([place[name] for name in names], np.int32)
        labels = np.full(len(found), IGNORE, np.int32)
        labelled = found != IGNORE
        labels[labelled] = numbers[found[labelled]]
        return tuple(classes), labels


def _identity(own: str, path: str, start: str, end: str) -> str:
    """The id of a row: its own if it has one, else its path, and its times if it has any."""
    return own or (f"{path}#{start}-{end}" if start or end else path)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which Python reads as in 1_000, but 12_34 is a name
