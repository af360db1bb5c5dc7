"""What all published datasets have in common: annotations that become rows, and files by name."""

import csv
import hashlib
import io
import json
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

from mmssl.errors import UserError
from mmssl.training.progress import Progress
from mmssl_media.folder import nameable
from mmssl_media.listing import Kind, kind_of
from mmssl_media.manifest import Listed

_BREAKS = re.compile(r"[\r\n\0]+")

#: The name of an annotated file without its ending, and the values of its row after ``path``.
Row = tuple[str, Sequence[str]]


class Official(Listed):
    """A dataset in the files that its authors publish.

    A subclass says in `_rows` what the annotation lists. Files are found by their names below
    one folder, whatever their endings, so that copies in another format are the same dataset.

    Attributes:
        columns: of the rows, after ``path``.
        kinds: of the files.
        source: what the files come in.
        partial: is it normal that files are missing? They are left out and counted then.

    Args:
        annotation: the file or folder that lists the files.
        media: the folder below which they are.
    """

    columns: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[Kind, ...]] = ("video",)
    source: str = ""
    partial: ClassVar[bool] = False

    def __init__(self, annotation: Path, media: Path) -> None:
        super().__init__(annotation, root=os.path.abspath(media), classes=None, buffer=1)
        self._said: list[str] = []

    @abstractmethod
    def _rows(self, files: Mapping[str, str]) -> Iterable[Row]:
        """What is annotated, in the annotation's order.

        Args:
            files: paths relative to the root by `_key`, in the order of their names.
        """

    def _class_names(self) -> Sequence[str] | None:
        """All classes in the official order; None where there are none."""
        return None

    def _key(self, path: str) -> str:
        """What a file is known by in the annotation: by default its name without ending."""
        return _stem(path)

    @cached_property
    def _known(self) -> Sequence[str] | None:
        names = self._class_names()
        twice = [name for name, count in Counter(names or ()).items() if count > 1]
        if twice:
            raise UserError(f"{self.path}: two classes are named {twice[0]!r}")
        return names

    @cached_property
    def _text(self) -> Path | bytes:
        raw = io.BytesIO()
        text = io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True)
        self._write(text, self._files())
        return raw.getvalue()

    def _files(self) -> dict[str, str]:
        """Paths relative to the root by `_key`; of several files a video, or else the first."""
        found: dict[str, str] = {}
        for path in self._walk():
            name = os.path.relpath(path, self.root)
            if not nameable(name):
                continue
            key = self._key(name)
            before = found.get(key)
            if before is None or kind_of(before) != "video" == kind_of(name):
                found[key] = name
        return found

    def _walk(self) -> Iterator[str]:
        """Media below the root, in an order that names alone decide; nothing hidden.

        Links to folders elsewhere are followed, as parts of a dataset are often made of such; but
        of those that stand in there only such as lead to another folder, and none to where the
        root is: no link leads in circles.
        """
        home = os.path.realpath(self.root)
        followed = set()
        for here, folders, names in os.walk(self.root, onerror=self._unlisted, followlinks=True):
            below = sorted(name for name in folders if not name.startswith("."))
            folders.clear()
            for path in (os.path.join(here, name) for name in below):
                if os.path.islink(path):
                    target = os.path.realpath(path)
                    is_own = os.path.commonpath([os.path.realpath(here), home]) == home
                    if os.path.commonpath([target, home]) in (target, home):
                        continue
                    if target in followed and not is_own:
                        continue
                    followed.add(target)
                folders.append(os.path.basename(path))
            for name in sorted(names):
                if kind_of(name) in self.kinds and not name.startswith("."):
                    yield os.path.join(here, name)

    def _unlisted(self, error: OSError) -> None:
        self._said.append(
            f"{error.filename} cannot be listed ({error.strerror}): what is in it is left out"
        )

    def _once(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows without those that a list holds word for word a second time."""
        seen: set[bytes] = set()
        count = 0
        for name, values in rows:
            count += 1
            text = "\0".join([name, *values])
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                yield name, values
        if repeated := count - len(seen):
            self._said.append(
                f"{self.path}: {repeated:,} of {count:,} rows are listed a second time, and are "
                "left out"
            )

    def _write(self, text: TextIO, files: Mapping[str, str]) -> None:
        """Write the rows of files that there are as CSV."""
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", *self.columns])
        total = absent = 0
        example = ""
        for key, values in self._rows(files):
            total += 1
            if path := files.get(key):
                writer.writerow([path, *map(one_line, values)])
            else:
                absent += 1
                example = example or key
        if absent and (absent == total or not self.partial):
            raise UserError(
                f"{self.root}: {absent:,} of the {total:,} files that {self.path} lists are not "
                f"below it, such as {example}{self._endings()}; {self.source}"
            )
        if absent:
            self._said.append(
                f"{self.path}: {absent:,} of {total:,} are left out, as their files are not below "
                f"{self.root}, such as {example}{self._endings()}"
            )

    def _endings(self) -> str:
        return {"video": ".mp4", "audio": ".wav", "image": ".JPEG"}[self.kinds[0]]

    def materialise(self, progress: Progress) -> None:
        """Read the annotation, look for the files, and say what is left out."""
        len(self)
        for line in self._said:
            progress.say(line)

    def _place(self, line: int) -> str:
        return f"{self.path}: sample {line - 1}"

    def _name_of(self, line: int) -> str:
        return f"sample {line - 1}"


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def in_folder(path: str) -> str:
    """A file's name without ending, and that of the folder it is in: ``folder/name``."""
    return "/".join([*os.path.dirname(path).split(os.sep)[-1:], _stem(path)]).lstrip("/")


def one_line(text: str) -> str:
    """Text without line breaks, zero bytes, and what UTF-8 cannot say."""
    if text.isprintable():
        return text
    return _BREAKS.sub(" ", text).encode("utf-8", "replace").decode()


def within(folder: Path, *names: str, source: str) -> Path:
    """The first of some files or folders that is there.

    Raises:
        UserError: none is.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder}: has no {' or '.join(names)}; {source}")


def fail(file: Path, line: int, message: str) -> NoReturn:
    """Say what is wrong with a line of an annotation."""
    raise UserError(f"{file}:{line}: {message}")


def _raw_lines(file: Path) -> Iterator[str]:
    """The lines of a text, with their ends.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        with open(file, "rb") as text:
            for number, line in enumerate(text, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    fail(file, number, "is not UTF-8 text")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that hold something, by number, without white space around them.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    for number, line in enumerate(_raw_lines(file), 1):
        if line := line.strip():
            yield number, line


def records(file: Path, *, comment: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file by the number of their last line, without empty ones.

    Args:
        file: the CSV; white space after a comma does not count.
        comment: lines that begin so are none.

    Raises:
        UserError: it cannot be read, is not UTF-8, or has quotes where none may be.
    """
    text = ("\n" if comment and line.startswith(comment) else line for line in _raw_lines(file))
    reader = csv.reader(text, skipinitialspace=True, strict=True)
    try:
        for values in reader:
            if values:
                yield reader.line_num, values
    except csv.Error as error:
        fail(file, reader.line_num, str(error))


def table(
    file: Path, *columns: str, optional: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """The values of some columns of a CSV file whose first line names them.

    Args:
        file: the CSV.
        columns: that are needed.
        optional: one more, empty where the file does not have it.

    Raises:
        UserError: a column is missing, or a row has more or fewer values than there are.
    """
    rows = records(file)
    _, header = next(rows, (1, []))
    if missing := [name for name in columns if name not in header]:
        named = ", ".join(map(repr, header)) or "none"
        fail(file, 1, f"no column {missing[0]!r}; the columns are {named}")
    places = [header.index(name) for name in columns]
    if optional is not None and optional in header:
        places.append(header.index(optional))
        optional = None
    for number, values in rows:
        if len(values) != len(header):
            fail(file, number, f"{len(values)} values for {len(header)} columns")
        yield number, [values[place] for place in places] + [""] * (optional is not None)


def seconds(text: str) -> float | None:
    """A time in seconds; None if it is none."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 0 <= value < float("inf") else None


def read_json(file: Path, *keys: str) -> list[Any]:
    """The values of some keys of the object that a JSON file holds.

    Raises:
        UserError: it is no such file.
    """
    try:
        with open(file, encoding="utf-8") as text:
            found = json.load(text)
    except json.JSONDecodeError as error:
        fail(file, error.lineno, f"is not JSON ({error.msg})")
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise UserError(f"{file}: has no {key!r}")
    return [found[key] for key in keys]
