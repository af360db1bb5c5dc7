"""Files of features, ``.npz`` and ``.parquet``, written and read piece by piece.

======================  =====================  =============================================
column                  of N rows              what it is
======================  =====================  =============================================
``ids``                 text                   the sample's id
``paths``               text                   its media file; empty (null) where it has none
``start``, ``end``      float64                seconds in the file; NaN (null): the file's end
``labels``              int32, or [N, C]       classes, -100 (null) for none; or, of a multi-label
                        float32                dataset, 1 for each class of a sample
``features/<m>``        [N, D] float32         what the encoder of modality ``m`` saw
``present/<m>``         bool                   did the sample have it? Features are zeros if not
``embeddings/<s>/<m>``  [N, E] float32         where modalities can be compared, space ``s``
======================  =====================  =============================================

An ``.npz`` needs no pickle; ``classes`` names the classes, and ``about`` is JSON on how the file
was made. Parquet keeps both as metadata: ``about`` under the key ``mmssl``.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.errors import UserError
from mmssl.formats import FEATURES

# Rows that are in memory at a time.
_ROWS = 1 << 14

_NO_LABEL = -100

# What `about` must say, of which type.
_NEEDED = {"rows": int, "modalities": list, "classes": list}

#: Some rows, by column.
Piece = Mapping[str, np.ndarray]

#: Consecutive rows of the columns asked for.
Pieces = Callable[[Sequence[str]], Iterable[Piece]]


@dataclass(frozen=True)
class Column:
    """A column to be written: its name, numpy's dtype, and the shape of a row's value."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()


def check_output(path: Path) -> None:
    """Refuse a file that could not be written, before there are features to write.

    Raises:
        UserError: its ending is another one, pyarrow is missing, or there is no such folder, or
            none that one may write to.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise UserError(f"{path}: features are written to .npz and .parquet files")
    if path.suffix == ".parquet":
        _parquet(path)
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if not os.path.lexists(path) and not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: the folder {path.parent} is not yours to write to")


def write_features(
    path: Path,
    about: Mapping[str, Any],
    columns: Sequence[Column],
    rows: int,
    pieces: Pieces,
    *,
    parquet: bool = False,
) -> None:
    """Write a file; called with a temporary path, so that it appears whole.

    Args:
        path: where to write.
        about: JSON-able; its key ``classes`` names the classes.
        columns: in their order.
        rows: N.
        pieces: all rows, some at a time, of the columns that it is given; an ``.npz`` is written
            column by column, Parquet at once.
        parquet: else ``.npz``.
    """
    if parquet:
        _write_parquet(path, about, columns, pieces)
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for column in columns:
            parts = (piece[column.name] for piece in pieces([column.name]))
            _write_array(archive, column, (rows, *column.shape), parts)
        for name, value in (("classes", about["classes"]), ("about", json.dumps(about))):
            if value:
                array = np.array(value)
                whole = Column(name, array.dtype.str)
                _write_array(archive, whole, array.shape, [array])


def _write_array(
    archive: zipfile.ZipFile, column: Column, shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    dtype = np.dtype(column.dtype)
    # The same bytes whenever it is written: an entry has the date of 1980.
    with archive.open(zipfile.ZipInfo(f"{column.name}.npy"), "w", force_zip64=True) as out:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for part in parts:
            out.write(np.ascontiguousarray(part, dtype).tobytes())


def _parquet(path: Path) -> Any:
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise UserError(
            f"{path}: a Parquet file needs pyarrow: pip install 'mmssl[parquet]'"
        ) from error


def _write_parquet(
    path: Path, about: Mapping[str, Any], columns: Sequence[Column], pieces: Pieces
) -> None:
    arrow = _parquet(path)
    schema = arrow.schema(
        [(column.name, _type(arrow, column)) for column in columns],
        metadata={"mmssl": json.dumps(about)},
    )
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        held: list[Any] = []
        for piece in pieces([column.name for column in columns]):
            arrays = [_array(arrow, column, piece[column.name]) for column in columns]
            held.append(arrow.RecordBatch.from_arrays(arrays, schema=schema))
            if sum(batch.num_rows for batch in held) >= _ROWS:
                writer.write_table(arrow.Table.from_batches(held, schema))
                held = []
        writer.write_table(arrow.Table.from_batches(held, schema))


def _type(arrow: Any, column: Column) -> Any:
    dtype = np.dtype(column.dtype)
    kind = arrow.string() if dtype.kind == "U" else arrow.from_numpy_dtype(dtype)
    return arrow.list_(kind, column.shape[0]) if column.shape else kind


def _array(arrow: Any, column: Column, values: np.ndarray) -> Any:
    if column.shape:
        flat = arrow.array(np.ascontiguousarray(values, column.dtype).reshape(-1))
        return arrow.FixedSizeListArray.from_arrays(flat, column.shape[0])
    missing = None
    if values.dtype.kind == "U":
        missing = values == ""
        values = values.astype(object)
    elif column.name == "labels":
        missing = values == _NO_LABEL
    elif values.dtype.kind == "f":
        missing = np.isnan(values)
    return arrow.array(values, _type(arrow, column), mask=missing)


class FeaturesFile:
    """A file of features, of which only what is asked for is read.

    Args:
        path: what `mmssl embed` wrote.

    Raises:
        UserError: it is no such file, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray] = {}
        try:
            if path.suffix == ".parquet":
                arrow = _parquet(path)
                self._file = arrow.parquet.ParquetFile(path, memory_map=True)
                about = (self._file.schema_arrow.metadata or {})[b"mmssl"].decode()
                self.columns = list(self._file.schema_arrow.names)
            else:
                loaded = np.load(path, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    raise ValueError("a single array")
                with loaded as arrays:
                    about = str(arrays["about"])
                    self.columns = [n for n in arrays.files if n not in ("about", "classes")]
            self.about: dict[str, Any] = json.loads(about)
            if not isinstance(self.about, dict):
                raise ValueError("a description of something else")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}") from error
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: is no file of features that mmssl embed wrote") from error
        self.about = FEATURES.migrated(self.about, self.about.get("format"), str(path))
        for key, kind in _NEEDED.items():
            if not isinstance(self.about.get(key), kind):
                raise UserError(f"{path}: is no file of features that mmssl embed wrote: no {key}")

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """A column, some thousand rows at a time."""
        if self.path.suffix == ".parquet":
            for batch in self._file.iter_batches(_ROWS, columns=[name]):
                yield _numpy(batch.column(0))
        else:
            for start in range(0, len(self), _ROWS):
                yield np.asarray(self._array(name)[start : start + _ROWS])

    def take(self, name: str, rows: Sequence[int]) -> list[Any]:
        """A column's values at some rows; what follows the last of them is not read."""
        if self.path.suffix != ".parquet":
            return list(np.asarray(self._array(name)[np.asarray(rows, np.int64)]))
        found: dict[int, Any] = {}
        first = 0
        pieces = self.pieces(name)
        while len(found) < len(set(rows)):
            piece = next(pieces)
            for row in rows:
                if first <= row < first + len(piece):
                    found[row] = piece[row - first]
            first += len(piece)
        return [found[row] for row in rows]

    def find(self, id: str) -> int | None:
        """The first row of an id, or None."""
        first = 0
        for piece in self.pieces("ids"):
            there = np.flatnonzero(piece == id)
            if len(there):
                return first + int(there[0])
            first += len(piece)
        return None

    def __len__(self) -> int:
        return int(self.about["rows"])

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = _mapped(self.path, name)
        return self._arrays[name]


def _mapped(path: Path, name: str) -> np.ndarray:
    """An array of an ``.npz``, of which the disk holds what is not looked at.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entry = archive.getinfo(f"{name}.npy")
            if entry.compress_type != zipfile.ZIP_STORED:  # somebody saved it anew
                with np.load(path, allow_pickle=False) as arrays:
                    return np.asarray(arrays[name])
            file.seek(entry.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")  # of the entry's name and extra field
            file.seek(int(lengths.sum()), 1)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if 0 in shape:
                return np.empty(shape, dtype)
            return np.memmap(path, dtype, "r", file.tell(), shape)
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is damaged ({error})") from error


def _numpy(array: Any) -> np.ndarray:
    """An arrow array as an ``.npz`` would hold it."""
    kind = str(array.type)
    if kind.startswith("fixed_size_list"):
        flat = array.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat.reshape(len(array), array.type.list_size))
    if kind == "string":
        return np.array(array.fill_null("").to_pylist(), dtype=np.str_)
    if kind == "int32":
        return np.asarray(array.fill_null(_NO_LABEL).to_numpy(zero_copy_only=False))
    return np.asarray(array.to_numpy(zero_copy_only=False))
