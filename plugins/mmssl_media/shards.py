"""A dataset in tar files, as WebDataset lays them out.

Members whose names are alike up to the first dot of the base name belong to one sample::

    shard-00000.tar
      000000000.mp4       the media, by its ending
      000000000.json      id, label, start, end, and any further fields
      000000001.mp4
      000000001.json

Others' archives may have a ``.cls`` (the class) and a ``.txt`` (the field ``txt``) instead.
"""

import csv
import hashlib
import itertools
import json
import math
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Annotated, Any

import fsspec
import numpy as np
from pydantic import AfterValidator, Field

from mmssl.cli.terminal import Terminal
from mmssl.data.cache import cache_folder
from mmssl.data.remote import RemotePart, check_parts, check_protocol, persistently, version_of
from mmssl.errors import UserError
from mmssl.training.checkpoints import write_atomically
from mmssl.training.progress import Progress
from mmssl_media.listing import KINDS, kind_of, printable
from mmssl_media.manifest import Listed, is_index

#: The list that lies beside shards which this project wrote.
INDEX = "index.csv"

#: What lies beside shards from the moment that their packing begins.
STATE = ".shards.json"

#: In a sample's ``.json``, the member that holds its media where that is not one of its own:
#: another sample's file, of which this one is another span of time; empty where there is none.
MEDIA = "__media__"

# Raise it when archives come to be listed otherwise: old lists are then left alone.
_VERSION = 2

# Bytes of a remote archive that are fetched at a time while its headers are read.
_HEADERS = 1 << 15

# A longer member is no sample's text; and a longer entry is no value in a list.
_LONGEST_MEMBER = 1 << 24
_LONGEST = 100_000

# So many remote shards are looked at together: each is one request.
_THREADS = 8

# So many things that are wrong are said.
_NAMED = 20

_COLUMNS = ("path", "offset", "size", "id", "label", "start", "end")


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


class Shards(Listed):
    """Samples in tar files, as WebDataset lays them out, read in place: local or remote.

    Members whose names are alike up to the first dot of the base name are one sample. Its media
    is the member with a known ending, a video before a sound before a picture; ``.cls`` is its
    class, ``.txt`` its field ``txt``, and the entries of its ``.json`` are ``id``, ``label``,
    ``start``, ``end`` and further fields. Members of other endings are passed over.

    Shards that `mmssl data shard` wrote have an ``index.csv`` beside them, and ids and rows as
    in the list that they were made of. Others are walked through once, from header to header,
    and the list of what is in them is kept in ``$MMSSL_CACHE`` or ``~/.cache/mmssl``.

    Training visits shards in random order and shuffles samples within a buffer.

    Args:
        path: a folder with shards, one ``.tar``, or several: ``{00000..00099}`` stands for the
            numbers between, ``{a,b}`` for each of the words. A folder or file may be an fsspec
            URL: ``https://host/{00000..00099}.tar``, ``s3://bucket/folder/``.
        classes: names of all classes in order, so that shards that lack some of them agree.
        buffer: how many samples are shuffled together; more mix better, fewer read fewer shards
            at a time.
    """

    def __init__(
        self,
        *,
        path: Annotated[str, AfterValidator(_absolute)],
        classes: list[str] | None = None,
        buffer: Annotated[int, Field(gt=0)] = 10_000,
    ) -> None:
        self._given_path = path = _absolute(path)
        if "://" in path:
            check_protocol(path)
        elif not re.search(r"[{}]", path) and not os.path.exists(path):
            raise UserError(f"{path}: no such folder or tar file")
        self._notes: list[str] = []
        self._is_walked = False
        self._progress: Progress | None = None
        super().__init__(path, root="", classes=classes, buffer=buffer)

    @cached_property
    def _text(self) -> Path:
        base, names = shards_of(self._given_path)
        self.root = base
        if names == [INDEX]:
            self.path = _join(base, INDEX)
            return _fetched_index(base) if "://" in base else Path(base, INDEX)
        listed, self._notes = _listed(base, names, self._progress or Terminal())
        self._is_walked = True
        return listed

    def _place(self, line: int) -> str:
        """The shard and the sample, as nobody has written the list that the line is of."""
        if not self._is_walked or line == 1:
            return super()._place(line)
        with open(self._text, encoding="utf-8", newline="") as text:
            header, row = itertools.chain(
                csv.reader(itertools.islice(text, 1)),
                csv.reader(itertools.islice(text, line - 2, line - 1)),
            )
        values = dict(zip(header, row, strict=True))
        return f"{_join(self.root, values['path'])}: {values['id']}"

    def _name_of(self, line: int) -> str:
        return self._place(line) if self._is_walked else super()._name_of(line)

    def materialise(self, progress: Progress) -> None:
        """List what is in the shards, unless that is known; say what is wrong with them."""
        self._progress = progress
        try:
            len(self)
        finally:
            self._progress = None
        if not self._is_walked:
            files = (self.sample(row).media for row in range(len(self)))
            if "://" in (first := next(filter(None, files), "")):
                check_parts(first)
        for note in self._notes[:_NAMED]:
            progress.say(note)
        if len(self._notes) > _NAMED:
            progress.say(f"... and {len(self._notes) - _NAMED:,} more")


# Which shards there are


def shards_of(path: str) -> tuple[str, list[str]]:
    """The folder or URL that names are relative to, and the shards' names or `INDEX` alone.

    Raises:
        UserError: there are none.
    """
    names = list(expand_braces(path))
    for name in names:
        if _COMPRESSED.search(name):
            raise _compressed(name)
    if len(names) == 1 and not names[0].endswith(".tar"):
        base = names[0].rstrip("/")
        names = sorted(_tars_in(base))
        if not names:
            raise UserError(f"{path}: no tar files in it")
        return base, names
    for name in names:
        if not name.endswith(".tar"):
            raise UserError(f"{name}: a shard's name ends in .tar")
    base = names[0].rpartition("/")[0]
    is_folder = base and ("://" in base or "://" not in names[0])
    if not is_folder or any(name.rpartition("/")[0] != base for name in names):
        return "", names
    return base, [name.rpartition("/")[2] for name in names]


def _tars_in(base: str) -> list[str]:
    if "://" in base:
        system, folder = fsspec.core.url_to_fs(base)
        try:
            try:
                persistently(lambda: system.info(f"{folder}/{INDEX}"), _join(base, INDEX))
                return [INDEX]
            except FileNotFoundError:
                paths = persistently(lambda: system.ls(folder, detail=False), base)
        except OSError as error:
            raise UserError(f"{base}: cannot be listed ({_reason(error, base)})") from None
        found = [str(path).rstrip("/").rpartition("/")[2] for path in paths]
    elif os.path.isdir(base):
        found = os.listdir(base)
        if INDEX in found:
            return [INDEX]
    else:
        raise UserError(f"{base}: no such folder, and no .tar")
    if STATE in found:
        raise UserError(
            f"{base}: packing was not finished; run the same command (mmssl data shard) to go on"
        )
    zipped = [name for name in found if _COMPRESSED.search(name)]
    tars = [name for name in found if name.endswith(".tar") and not name.startswith(".")]
    if zipped and not tars:
        raise _compressed(_join(base, min(zipped)))
    return tars


_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$")


def _compressed(name: str) -> UserError:
    return UserError(
        f"{name}: a compressed archive cannot be read in part; unpack it to a .tar (media are "
        "compressed already)"
    )


def expand_braces(text: str) -> Iterator[str]:
    """What a shell makes of ``{00000..00099}`` and ``{a,b}``, in its order; none are nested."""
    parts = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", text)
    # Every second part stood in braces.
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _choices(inside: str) -> Iterable[str]:
    if "," in inside:
        return inside.split(",")
    ends = inside.split("..")
    first, last = map(int, ends)
    padded = any(end.startswith("0") and len(end) > 1 for end in ends)
    width = max(map(len, ends)) if padded else 0
    step = 1 if first <= last else -1
    return (f"{number:0{width}d}" for number in range(first, last + step, step))


def _join(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name


# Lists in the cache


def _cached(key: str) -> Path:
    name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    return cache_folder() / "shards" / f"{name}.csv"


def _write_cached(path: Path, write: Any) -> None:
    try:
        write_atomically(path, write)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}): set MMSSL_CACHE to a folder with room"
        ) from None


def _fetched_index(base: str) -> Path:
    url = _join(base, INDEX)
    archive = _Archive(url)
    copy = _cached(f"{_VERSION} index {archive.state}")
    if not copy.is_file():

        def write(temporary: Path) -> None:
            with archive.open(block=1 << 22) as source, open(temporary, "wb") as target:
                while block := source.read(1 << 22):
                    target.write(block)
            archive.check_unchanged()

        _write_cached(copy, write)
    return copy


def _listed(base: str, names: list[str], progress: Progress) -> tuple[Path, list[str]]:
    """The list of what is in shards, and notes of what is wrong with them.

    What was found in a shard is kept shard by shard, so that a kill costs one at most.
    """
    archives = []
    with (
        progress.task("looking at shards", len(names)) as advance,
        ThreadPoolExecutor(_THREADS) as threads,
    ):
        for archive in threads.map(_Archive, [_join(base, name) for name in names]):
            archives.append(archive)
            advance()
    if "://" in archives[0].name:
        check_parts(archives[0].name)
    states = [f"{_VERSION} {archive.state}" for archive in archives]
    whole = _cached("\n".join([*names, *states]))
    notes = whole.with_suffix(".notes")
    if whole.is_file() and notes.is_file():
        return whole, notes.read_text(encoding="utf-8").splitlines()
    parts = [_cached(state).with_suffix(".jsonl") for state in states]
    missing = [i for i, part in enumerate(parts) if not part.is_file()]
    with progress.task("listing shards", len(parts), len(parts) - len(missing)) as advance:
        for i in missing:
            _write_cached(parts[i], lambda temporary, i=i: _write_part(temporary, archives[i]))
            advance()
    # Base names serve in ids where they tell shards apart.
    short = [os.path.basename(name) for name in names]
    short = short if len(set(short)) == len(short) else names
    found: list[str] = []
    columns = dict.fromkeys(_COLUMNS)
    ids = array("q")
    for shortened, part in zip(short, parts, strict=True):
        with open(part, encoding="utf-8") as lines:
            found.extend(json.loads(next(lines)))
            for line in lines:
                key, row = json.loads(line)
                columns.update(dict.fromkeys(row))
                ids.append(hash(row.get("id", f"{shortened}/{key}")))
    twins = _twins(ids)
    if not ids:
        raise UserError(f"{_join(base, names[0])}: no media files in it, nor in other shards")

    def write(temporary: Path) -> None:
        seen: set[str] = set()
        with open(temporary, "w", encoding="utf-8", newline="") as text:
            writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
            writer.writeheader()
            for name, shortened, part in zip(names, short, parts, strict=True):
                with open(part, encoding="utf-8") as lines:
                    next(lines)
                    for line in lines:
                        key, row = json.loads(line)
                        row = {"path": name, "id": f"{shortened}/{key}", **row}
                        if hash(row["id"]) in twins:
                            if row["id"] in seen:
                                found.append(
                                    f"{_join(base, name)}: {key}: another sample has its id "
                                    f"{row['id']!r}, too; it is called {shortened}/{key}"
                                )
                                row["id"] = f"{shortened}/{key}"
                            seen.add(row["id"])
                        writer.writerow(row)

    _write_cached(whole, write)
    _write_cached(
        notes, lambda temporary: temporary.write_text("".join(f"{n}\n" for n in found), "utf-8")
    )
    return whole, found


def _write_part(path: Path, archive: "_Archive") -> None:
    notes: list[str] = []
    with TemporaryFile("w+", encoding="utf-8") as spool, open(path, "w", encoding="utf-8") as part:
        keys = array("q")
        for key, row in rows_in(archive, notes):
            spool.write(json.dumps([key, row]) + "\n")
            keys.append(hash(key))
        archive.check_unchanged()
        # As when an archive is unpacked, to which `tar -r` has added files that it held already:
        # of each file the last counts.
        twins = _twins(keys)
        merged: dict[str, dict[str, str]] = {}
        spool.seek(0)
        for line in spool if twins else ():
            key, row = json.loads(line)
            if hash(key) in twins:
                name = f"{archive.name}: {key}"
                if key in merged:
                    notes.append(f"{name}: is there more than once; the last is used")
                row = {**merged.get(key, {}), **{c: text for c, text in row.items() if text}}
                merged[key] = _sound(row, name, notes)
        part.write(json.dumps(notes) + "\n")
        spool.seek(0)
        for line in spool:
            if not twins or json.loads(line)[0] not in merged:
                part.write(line)
        for item in merged.items():
            part.write(json.dumps(item) + "\n")


def _twins(hashes: "array[int]") -> set[int]:
    """Those that come more than once."""
    found = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.zeros(0, np.int64)
    return set(found[1:][found[1:] == found[:-1]].tolist())


# What is in a shard


def _reason(error: BaseException, name: str) -> str:
    if isinstance(error, FileNotFoundError) and error.__cause__:
        error = error.__cause__  # where HTTP's says only the name
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(reason).removeprefix(f"{name}: ")


class _Archive:
    """A tar file, local or remote.

    Attributes:
        name: its path or URL.
        size: in bytes.
        state: tells whether it is the same as before.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            if "://" in name:
                self._system, self._path = fsspec.core.url_to_fs(name)
                info = persistently(lambda: self._system.info(self._path), name)
                version = version_of(info)
                self.size = int(info["size"] or 0)
            else:
                local = os.stat(name)
                version = [str(local.st_mtime_ns)]
                self.size = local.st_size
        except Exception as error:  # each store's package has errors of its own
            raise UserError(f"{name}: cannot be opened ({_reason(error, name)})") from None
        self.state = json.dumps([name, self.size, version])

    def check_unchanged(self) -> None:
        """Refuse one that is written while it is read: what was found must not be kept.

        Raises:
            UserError: it is not the same as before.
        """
        if _Archive(self.name).state != self.state:
            raise UserError(f"{self.name}: changes while it is read; start again when it is whole")

    @contextmanager
    def open(self, block: int) -> Iterator[Any]:
        if "://" in self.name:
            with RemotePart(self._system, self._path, 0, self.size, block) as file:
                yield file
        else:
            with open(self.name, "rb") as local:
                yield local


@dataclass(frozen=True)
class _Member:
    """A file in an archive.

    Attributes:
        name: as the archive calls it.
        offset: of its first byte.
        size: in bytes.
    """

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        return split_name(self.name)[0]


def split_name(name: str) -> tuple[str, str]:
    """A member's key, which it shares with the others of its sample, and its ending.

    The key goes to the first dot of the base name; it is empty where that begins with a dot.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem else "", ending.lower())


def rows_in(archive: _Archive, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The key of every sample in an archive, and its row, by column.

    Args:
        archive: the shard.
        notes: what is wrong with it is added to them.

    Raises:
        UserError: it is no tar file, or one that cannot be read in place.
    """
    media: dict[str, _Member] = {}  # those that other samples may refer to
    without = 0
    with archive.open(_HEADERS) as file:
        members = _members(file, archive, notes)
        for key, group in itertools.groupby(members, lambda member: member.key):
            found = list(group) if key else []
            name = f"{archive.name}: {printable(key)}"
            try:
                row = _row(found, file, media) if found else None
            except OSError as error:
                raise UserError(f"{name}: {error}") from None
            except (ValueError, RecursionError) as error:
                notes.append(f"{name}: is passed over, as its .json is none ({error})")
                continue
            if row is None:
                without += len(found)
                continue
            yield printable(key), _sound(row, name, notes)
    if without:
        notes.append(f"{archive.name}: {without:,} files belong to no media and are passed over")


def _members(file: Any, archive: _Archive, notes: list[str]) -> Iterator[_Member]:
    name = archive.name
    count = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them
                if info.issparse():
                    raise UserError(f"{name}: {info.name} is stored as a sparse file; pack it anew")
                if not info.isreg():
                    continue
                if info.offset_data + info.size > archive.size:
                    notes.append(
                        f"{name}: ends within {printable(info.name)}; the {count:,} files before "
                        "it are used"
                    )
                    return
                count += 1
                yield _Member(info.name, info.offset_data, info.size)
            file.seek(tar.offset)
            if any(file.read(512)):
                notes.append(
                    f"{name}: damaged at byte {tar.offset}; the {count:,} files before are used"
                )
    except tarfile.TarError as error:
        if count == 0:
            raise UserError(f"{name}: is no tar file that can be read in part ({error})") from None
        notes.append(f"{name}: {error}; the {count:,} files before are used")
    except OSError as error:
        raise UserError(f"{name}: {error}") from None


def _row(group: list[_Member], file: IO[bytes], media: dict[str, _Member]) -> dict[str, str] | None:
    """The columns of a sample, or None if no media belong to it.

    Raises:
        ValueError: its ``.json`` is none.
    """
    by_ending = {split_name(member.name)[1]: member for member in group}

    def text_of(ending: str) -> str:
        member = by_ending.get(ending)
        if member is None or member.size > _LONGEST_MEMBER:
            return ""
        file.seek(member.offset)
        return file.read(member.size).decode("utf-8", "replace").strip()

    row: dict[str, str] = {}
    if text := text_of("txt"):
        row["txt"] = _in_one_line(text)
    row["label"] = _in_one_line(text_of("cls"))
    if text := text_of("json"):
        entries = json.loads(text)
        if isinstance(entries, dict):
            for name, value in entries.items():
                row[name] = _in_one_line(_plain(value))
    found = next((m for kind in KINDS for m in group if kind_of(m.name) == kind), None)
    referred = row.pop(MEDIA, None)
    if referred is not None:
        found = next((m for m in group if m.name == referred), media.get(referred))
    for name in ("path", "offset", "size"):
        row.pop(name, None)
    if found is None:
        if referred is None:
            return None
        return {**row, "offset": "0", "size": "0"}
    media[found.name] = found
    return {**row, "offset": str(found.offset), "size": str(found.size)}


def _sound(row: dict[str, str], name: str, notes: list[str]) -> dict[str, str]:
    """A row without what would make others refuse the whole list; notes say what that was."""
    renamed = {column: _in_one_line(column) for column in row}
    for column, plain in renamed.items():
        if plain != column:
            notes.append(f"{name}: {column[:40]!r} is no name of a field; is made {plain[:40]!r}")
    row = {renamed[column]: text for column, text in row.items()} | {
        column: text for column, text in row.items() if renamed[column] == column
    }
    row.pop("", None)

    def drop(column: str, reason: str) -> None:
        notes.append(f"{name}: {column} {row.pop(column)[:40]!r} {reason}")

    for column in ("start", "end"):
        if row.get(column) and not _is_time(row[column]):
            drop(column, "is no time in seconds")
    if row.get("end") and float(row["end"]) <= float(row.get("start") or 0):
        drop("end", "is not after start")
    label = row.get("label", "")
    if _NUMBER.fullmatch(label) and not is_index(label):
        number = label.partition(".")
        if is_index(number[0]) and not number[2].strip("0"):
            row["label"] = number[0]  # as some write whole numbers
        else:
            drop("label", "is no class's index")
    if not row.get("id"):
        row.pop("id", None)
    return row


_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _in_one_line(text: str) -> str:
    """As a list can hold it: without line breaks and halves of characters, and not too long."""
    if len(text) > _LONGEST:
        return ""
    return " ".join(text.split("\n")).replace("\r", "").encode("utf-8", "replace").decode()


def _is_time(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False
