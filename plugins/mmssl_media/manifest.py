"""Datasets that are lists: of files, and of parts of archives, in CSV, TSV or Parquet."""

import csv
import hashlib
import io
import mmap
import os
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
from pydantic import DirectoryPath, Field, FilePath

from mmssl.contracts import IGNORE, Dataset, Sample, Storage
from mmssl.data.cache import cache_folder
from mmssl.data.remote import check_protocol
from mmssl.errors import UserError
from mmssl.training.checkpoints import write_atomically

# Every so many rows the place in the file is remembered; the rows between are skipped over.
# 65 million rows cost 33 MB this way, where Python objects would cost gigabytes.
_MARK = 16

_OWN_COLUMNS = ("path", "label", "start", "end", "id")
_SPAN_COLUMNS = ("offset", "size")

# A label that is a number is its own index, so a mistaken column must not make 10^9 classes.
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class _Index:
    """What one pass over the list found.

    Attributes:
        header: the columns' names.
        own: those of them that are no further fields.
        rows: how many.
        marks: int64, the byte at which every `_MARK`-th row begins.
        labels: ``[rows]`` int32, or None without a column ``label``.
        multilabel: is there a column ``labels``?
        classes: the classes' names.
        groups: int64, how many consecutive rows lie in the same file, file after file; None
            where files are not archives.
    """

    header: list[str]
    own: frozenset[str]
    rows: int
    marks: np.ndarray
    labels: np.ndarray | None
    multilabel: bool
    classes: tuple[str, ...]
    groups: np.ndarray | None


class Listed(Dataset):
    """Samples that stand in CSV text, one a row: what lists, folders, shards and benchmarks are.

    Args:
        path: what messages call the list.
        root: folder, or the URL of one, that relative paths are relative to.
        classes: names of all classes in order; None for those that are found.
        buffer: rows that are shuffled together where they are parts of archives.
    """

    _delimiter = ","

    def __init__(
        self, path: Path | str, *, root: str, classes: list[str] | None, buffer: int
    ) -> None:
        self.path = path
        self.root = root
        self._given = classes
        self._buffer = buffer
        if classes is not None and len(set(classes)) < len(classes):
            raise UserError(f"{self.path}: a class is named twice in {classes}")

    @property
    @abstractmethod
    def _text(self) -> Path | bytes:
        """The list as CSV in UTF-8: a file, or itself."""

    def fingerprint(self) -> str:
        """Of all that the list says: another one is another list, or the files lie elsewhere."""
        digest = hashlib.blake2b(self._bytes, digest_size=16)
        digest.update(f"\n{self.root}".encode())
        return digest.hexdigest()

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        """Names of the classes that labels index; empty for unlabelled data."""
        return self._index.classes

    @property
    def multilabel(self) -> bool:  # type: ignore[override]
        """Is there a column ``labels``?"""
        return self._index.multilabel

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
        path = row.get("path")
        span = None
        if "offset" in found.own and row["offset"]:
            span = int(row["offset"]), int(row["size"])
        return Sample(
            id=_identity(*(row.get(name, "") for name in ("id", "path", "start", "end"))),
            media=_located(self.root, path) if path else None,
            start=float(row.get("start") or 0.0),
            end=float(row["end"]) if row.get("end") else None,
            label=None if label == IGNORE else label,
            labels=self._several(row["labels"]) if found.multilabel else None,
            fields={name: value for name, value in row.items() if name not in found.own},
            root=self.root,
            span=span,
        )

    def _several(self, text: str) -> tuple[int, ...] | None:
        """The classes that a value of ``labels`` names; None if it is empty."""
        if not text.strip():
            return None
        numbers = self._numbers
        # "02" is the class "2".
        return tuple(sorted({numbers[n] if n in numbers else int(n) for n in _names(text)}))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The classes' numbers by name."""
        return {name: number for number, name in enumerate(self.classes)}

    def storage(self) -> Storage | None:
        """Rows that are parts of the same archive lie together; None for a list of files."""
        groups = self._index.groups
        return None if groups is None else Storage(groups, self._buffer)

    def _values(self, found: _Index, index: int) -> list[str]:
        first, skip = int(found.marks[index // _MARK]), index % _MARK
        while True:
            if first >= len(self._bytes):
                raise UserError(f"{self.path}: has changed since it was first read: start again")
            after = self._bytes.find(b"\n", first) + 1 or len(self._bytes)
            line = self._bytes[first:after]
            if line.strip(b"\r\n"):
                if skip == 0:
                    break
                skip -= 1
            first = after
        return next(csv.reader([line.decode()], delimiter=self._delimiter, strict=True))

    def labels(self) -> np.ndarray:
        """``[len(self)]`` int32, `IGNORE` where a sample has none, or may have several."""
        found = self._index
        if found.labels is None:
            return np.full(found.rows, IGNORE, np.int32)
        return found.labels.copy()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    @cached_property
    def _known(self) -> Sequence[str] | None:
        """Names of all classes in order, where they need not be found in the list."""
        return self._given

    @cached_property
    def _bytes(self) -> mmap.mmap | bytes:
        """The list; a file is mapped: processes share its pages."""
        if isinstance(self._text, bytes):
            return self._text
        with open(self._text, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _fail(self, line: int, message: str) -> NoReturn:
        raise UserError(f"{self._place(line)}: {message}")

    def _place(self, line: int) -> str:
        return f"{self.path}:{line}"

    def _name_of(self, line: int) -> str:
        return f"line {line}"

    def _records(self) -> Iterator[tuple[int, int, list[str]]]:
        """Line number, first byte and values of every row, the header's included."""
        begin = after = 0

        def lines() -> Iterator[str]:
            nonlocal begin, after
            text = self._text
            with io.BytesIO(text) if isinstance(text, bytes) else open(text, "rb") as file:
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
        labels_at = header.index("labels") if "labels" in header else None
        # A column `size` alone is one of the user's.
        spans = "offset" in header
        if spans and "size" not in header:
            self._fail(line, "a column 'offset' without a column 'size'")
        offset_at, size_at = (header.index(name) for name in _SPAN_COLUMNS) if spans else (0, 0)
        groups, before = array("q"), None
        protocols: dict[str, str] = {}
        known = None if self._known is None else frozenset(self._known)
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
            if "://" in path:
                protocols.setdefault(path.partition("://")[0], path)
            if spans:
                self._check_span(number, path, own, values[offset_at], values[size_at])
                if path != before:
                    groups.append(0)
                    before = path
                groups[-1] += 1
            if len(hashes) % _MARK == 0:
                marks.append(begin)
            hashes.append(hash(_identity(own, path, start, end)))
            if label_at is not None:
                name = values[label_at]
                labels.append(names.setdefault(name, len(names)) if name else IGNORE)
                if name and known is not None and name not in known:
                    self._fail(number, f"label: {name!r} is not among the classes given")
                if name and labels_at is not None:
                    self._fail(number, "label: must be empty in a list with a column 'labels'")
            if labels_at is not None:
                for name in _names(values[labels_at]):
                    names.setdefault(name, len(names))
                    if known is not None and name not in known:
                        self._fail(number, f"labels: {name!r} is not among the classes given")
        rows = len(hashes)
        if not rows:
            raise UserError(f"{self.path}: lists no samples")
        self._check_unique(np.frombuffer(hashes, np.int64), header)
        del hashes
        for url in protocols.values():
            check_protocol(url)
        found = None if label_at is None else np.frombuffer(labels, np.int32)
        classes, found = self._classes(list(names), found)
        return _Index(
            header,
            frozenset(_OWN_COLUMNS + _SPAN_COLUMNS * spans),
            rows,
            np.frombuffer(marks, np.int64),
            found,
            labels_at is not None,
            classes,
            np.frombuffer(groups, np.int64) if spans else None,
        )

    def _check_header(self, line: int, header: list[str]) -> None:
        if not header:
            raise UserError(f"{self.path}: is empty; its first line must name the columns")
        if "path" not in header and "id" not in header:
            self._fail(line, f"no column 'path' among {', '.join(map(repr, header))}")
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            self._fail(line, f"two columns are named {twice!r}")

    def _check_span(self, line: int, path: str, own: str, offset: str, size: str) -> None:
        if not offset and not size:
            return
        for column, text in zip(_SPAN_COLUMNS, (offset, size), strict=True):
            if not (text.isascii() and text.isdigit() and len(text) < 19):
                self._fail(line, f"{column}: {text[:40]!r} is not a number of bytes")
        if not path or not own:
            missing = "an id" if path else "a path"
            self._fail(line, f"offset: the row is a part of an archive, and needs {missing}")

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
                    self._fail(number, f"{name!r} is listed already in {self._name_of(seen[name])}")
                seen[name] = number

    def _classes(
        self, names: list[str], found: np.ndarray | None
    ) -> tuple[tuple[str, ...], np.ndarray | None]:
        """The classes' names, and labels numbered by them instead of by first appearance."""
        if self._known is not None:
            classes = list(self._known)
        elif names and all(name.isascii() and name.isdigit() for name in names):
            if wrong := next((name for name in names if not is_index(name)), None):
                raise UserError(
                    f"{self.path}: label: {wrong[:40]} is too large for a class's index"
                )
            count = max(map(int, names)) + 1
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


class Manifest(Listed):
    """Samples listed in a CSV, TSV or Parquet file (by its ending), one a row.

    The first line names the columns. ``path`` is the media file, or its URL (``s3://...``);
    ``label``, ``start`` and ``end`` (seconds) are optional, as is a value in each; any further
    column is passed on to modalities. One file may hold several samples that differ in ``start``
    and ``end``. A row's name in messages is made of these, or is its ``id`` where it has one. A
    row without ``path``, for modalities with files of their own, needs an ``id``. With
    ``offset`` and ``size`` the media are so many bytes of the file, as in an uncompressed tar;
    such rows need an ``id``, too, and are read nearly in order. The text is UTF-8.

    It is indexed in one pass when first used, which takes up to 20 bytes a row for the moment;
    4 bytes a row are kept, for the label. A Parquet file is copied as CSV to ``$MMSSL_CACHE`` or
    ``~/.cache/mmssl`` first, so that loader processes can find any row without reading others.

    Labels that are whole numbers from 0 are the classes' indices. Others are names, and the
    classes are all names in alphabetical order unless `classes` gives the order.

    A column ``labels`` in place of ``label`` makes a multi-label dataset: each value holds any
    number of classes with ``;`` between them. An empty one says that the sample is not labelled,
    a lone ``;`` that it was, and is of no class. It remains a field, too.

    Args:
        path: the list.
        root: folder that relative paths are relative to; by default the list's own.
        classes: names of all classes in order, so that lists that lack some of them agree.
        buffer: how many rows are shuffled together where they are parts of archives; more mix
            better, fewer read fewer archives at a time.
    """

    def __init__(
        self,
        *,
        path: FilePath,
        root: DirectoryPath | None = None,
        classes: list[str] | None = None,
        buffer: Annotated[int, Field(gt=0)] = 10_000,
    ) -> None:
        self._file = Path(path)
        if not os.path.isfile(path):
            # Of a pipe rows could not be read again and again.
            other = "is no file but a pipe, a folder or a device: write the list to a file"
            raise UserError(f"{path}: {other if os.path.exists(path) else 'no such file'}")
        base = os.path.abspath(self._file.parent if root is None else root)
        super().__init__(self._file, root=base, classes=classes, buffer=buffer)
        self._is_parquet = self._file.suffix.lower() in (".parquet", ".pq")
        if self._file.suffix.lower() == ".tsv":
            self._delimiter = "\t"
        if self._is_parquet:
            _pyarrow(self._file)

    @cached_property
    def _text(self) -> Path:
        return as_csv(self._file) if self._is_parquet else self._file

    def _place(self, line: int) -> str:
        return f"{self.path}: row {line - 1}" if self._is_parquet else super()._place(line)

    def _name_of(self, line: int) -> str:
        return f"row {line - 1}" if self._is_parquet else super()._name_of(line)


def _pyarrow(path: Path) -> Any:
    """The module that reads Parquet files.

    Raises:
        UserError: it is not installed.
    """
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError:
        raise UserError(
            f"{path}: a Parquet file is read with pyarrow: pip install pyarrow"
        ) from None


def as_csv(path: Path) -> Path:
    """A Parquet file's copy as CSV in the cache, made where it is missing.

    Raises:
        UserError: the file cannot be read, or a column holds neither text nor numbers.
    """
    state = path.stat()
    key = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    copy = cache_folder() / "lists" / f"{name}.csv"
    if copy.is_file():
        return copy
    pyarrow = _pyarrow(path)
    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: is no Parquet file that can be read ({reason})") from None
    with file:
        for column in file.schema_arrow:
            if pyarrow.types.is_nested(column.type) or pyarrow.types.is_binary(column.type):
                raise UserError(
                    f"{path}: column {column.name!r} holds {column.type}, but a list holds text "
                    "and numbers; leave it out"
                )

        def write(temporary: Path) -> None:
            with open(temporary, "w", encoding="utf-8", newline="") as text:
                writer = csv.writer(text, lineterminator="\n")
                writer.writerow(file.schema_arrow.names)
                # No threads: the loader's processes are forked from this one.
                for batch in file.iter_batches(batch_size=10_000, use_threads=False):
                    columns = (map(_as_text, column.to_pylist()) for column in batch.columns)
                    writer.writerows(zip(*columns, strict=True))

        try:
            write_atomically(copy, write)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: cannot be copied to {copy.parent} ({error}); set MMSSL_CACHE to a "
                "folder with room"
            ) from None
    return copy


def _as_text(value: Any) -> str:
    if value is None or value != value:  # NaN, which some writers use for what is missing
        return ""
    # A whole number in a column of floats, as pandas makes of one with values that are missing.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _located(root: str, path: str) -> str:
    return path if "://" in path else os.path.join(root, path)


def _identity(own: str, path: str, start: str, end: str) -> str:
    """The id of a row: its own if it has one, else its path, and its times if it has any."""
    return own or (f"{path}#{start}-{end}" if start or end else path)


def is_index(text: str) -> bool:
    """Whether text is a class's number."""
    digits = text.isascii() and text.isdigit()
    return digits and len(text) < 100 and len(text.lstrip("0")) < len(str(_MOST_CLASSES))


def _names(text: str) -> list[str]:
    """The classes that a value of ``labels`` names."""
    return [name for part in text.split(";") if (name := part.strip())]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # which Python reads as in 1_000, but 12_34 is a name
