"""Packing a dataset's files into tar shards, so that a kill at any moment loses one at most.

::

    shard-00000.tar ...   finished shards
    index.csv             the list of all samples; the last thing that is written
    unreadable.csv        the samples whose files could not be read, with reasons
    .shards.json          what is packed and how; who comes with anything else is refused
    .written.json         once all is done: rows, size and unreadable files of every shard
    .shard-00000.jsonl    until then: the same of a finished shard, and its part of the index
"""

import csv
import errno
import fcntl
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmssl import Sample, UserError
from mmssl.data.remote import open_bytes
from mmssl.data.sampling import Permutation
from mmssl.training.checkpoints import write_atomically
from mmssl.training.progress import Progress
from mmssl_media.listing import Unfit, kind_of, look
from mmssl_media.manifest import Listed
from mmssl_media.shards import INDEX, MEDIA, STATE

#: The list of what could not be packed.
UNREADABLE = "unreadable.csv"

_WRITTEN = ".written.json"

_VERSION = 1
_BLOCK = 1 << 20

# The same for all members, so that the same files give the same bytes: the year 2000.
_TIME = 946_684_800

_COLUMNS = ("path", "offset", "size", "id", "label", "start", "end")


@dataclass(frozen=True)
class Packing:
    """What is packed, and how.

    Attributes:
        dataset: a list or a folder.
        folder: where shards go.
        samples: of each shard; None to go by `size`.
        size: bytes of the files in a shard, about, unless one is larger; None to go by `samples`.
        seed: of the order in which samples are packed; None for their own.
    """

    dataset: Listed
    folder: Path
    samples: int | None
    size: int | None
    seed: int | None


class _Unreadable(Exception):
    """A sample's file; with the reason."""


def pack(packing: Packing, progress: Progress) -> tuple[int, list[tuple[str, str]]]:
    """Write the shards that are missing or cut, or have lacked files that are there now.

    A sample whose file cannot be read keeps its row, so that rows mean the same as in the
    dataset, and has no bytes there.

    Returns:
        The number of shards, and the id of each unreadable sample with the reason.

    Raises:
        UserError: the folder belongs to something else, is in use, or is full.
    """
    folder, total = packing.folder, len(packing.dataset)
    with _claimed(packing), _full_disk_is_told(folder):
        index = folder / INDEX
        if index.is_file():
            again = _to_pack_again(packing)
            for name, why in again.items():
                progress.say(f"{name} {why}: it is packed again")
            if again:
                _take_apart(folder, again)
            else:
                progress.say(f"{index} is there already: nothing to do")
        if not index.is_file():
            parts, row, written = _finished_parts(folder)
            with progress.task("packing", total, row) as advance:
                while row < total:
                    part = _part_path(folder, len(parts))
                    before = written

                    def tell(bytes_: int, before: int = before) -> None:
                        advance(written=size_in_words(before + bytes_))

                    if (kept := _header_of(part, row)) is not None:
                        advance(kept["end"] - row)
                        row = kept["end"]
                    else:
                        row = _write_shard(packing, part, row, tell)
                    written += _shard_of(part).stat().st_size
                    parts.append(part)
            _write_lists(packing, parts)
        for part in folder.glob(".shard-*.jsonl"):
            part.unlink()
        shards = _written(folder)
        return len(shards), [(name, why) for shard in shards for _, name, why in shard["bad"]]


@contextmanager
def _claimed(packing: Packing) -> Iterator[None]:
    """Hold the folder, for this list and these settings alone."""
    settings = {
        "version": _VERSION,
        "list": packing.dataset.fingerprint(),
        "samples": packing.samples,
        "size": packing.size,
        "shuffle": packing.seed,
    }
    folder = packing.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Never replaced: who locks it and who reads it must have the same file.
        state = os.open(folder / STATE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"-o {folder}: cannot be written ({error.strerror})") from None
    with open(state, "r+", encoding="utf-8") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"-o {folder}: another process is packing there") from None
        try:
            found = json.loads(lock.read())
        except ValueError:  # empty, or not written to its end: before anything else
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                (folder / STATE).unlink()
                raise UserError(f"-o {folder}: is not empty; choose a new folder") from None
            found = settings
            lock.seek(0)
            lock.truncate()
            lock.write(json.dumps(settings))
            lock.flush()
            os.fsync(lock.fileno())
        if found != settings:
            changed = next(name for name in settings if found.get(name) != settings[name])
            was = "" if changed == "list" else f", {found.get(changed)}"
            what = "list of files, or folder" if changed == "list" else f"--{changed}"
            raise UserError(
                f"-o {folder}: was begun with another {what}{was}; choose another folder, or "
                "delete this one"
            )
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        yield


@contextmanager
def _full_disk_is_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"-o {folder}: {error.strerror}; make room, and run the same command to go on"
        ) from None


def _part_path(folder: Path, number: int) -> Path:
    return folder / f".shard-{number:05d}.jsonl"


def _finished_parts(folder: Path) -> tuple[list[Path], int, int]:
    """The parts of the index, the first row that is not packed, and the shards' bytes."""
    parts: list[Path] = []
    row = written = 0
    while (kept := _header_of(part := _part_path(folder, len(parts)), row)) is not None:
        row = kept["end"]
        written += kept["size"]
        parts.append(part)
    return parts, row, written


def _header_of(part: Path, row: int) -> dict[str, Any] | None:
    """What is known of a finished shard that begins with a row; None if there is none."""
    if not part.is_file():
        return None
    with open(part, encoding="utf-8") as lines:
        header: dict[str, Any] = json.loads(next(lines))
    return header if header["first"] == row and _size(part) == header["size"] else None


def _size(part: Path) -> int | None:
    """Of a part's shard; None if that is missing."""
    try:
        return _shard_of(part).stat().st_size
    except FileNotFoundError:
        return None


def _written(folder: Path) -> list[dict[str, Any]]:
    """What is known of the shards of a folder that is finished."""
    shards: list[dict[str, Any]] = json.loads((folder / _WRITTEN).read_text(encoding="utf-8"))
    return shards


def _to_pack_again(packing: Packing) -> dict[str, str]:
    """The shards that are not as they were written, or could be better now; and why."""
    again: dict[str, str] = {}
    for number, known in enumerate(_written(packing.folder)):
        part = _part_path(packing.folder, number)
        name, size = _shard_of(part).name, _size(part)
        if size is None:
            again[name] = "is missing"
        elif size != known["size"]:
            again[name] = f"has {size:,} bytes, not the {known['size']:,} that were written"
        elif any(_is_readable(packing, row) for row, *_ in known["bad"]):
            again[name] = "lacks files that can be read now"
    return again


def _is_readable(packing: Packing, row: int) -> bool:
    try:
        with _opened(_sample(packing, row)):
            return True
    except _Unreadable:
        return False


def _take_apart(folder: Path, again: Mapping[str, str]) -> None:
    """Make the index parts of one again, but for some shards: as if these were not yet packed."""
    with open(folder / INDEX, encoding="utf-8", newline="") as text:
        rows = csv.reader(text)
        next(rows)
        for number, header in enumerate(_written(folder)):
            part = _part_path(folder, number)
            own = list(itertools.islice(rows, header["end"] - header["first"]))
            if _shard_of(part).name not in again:
                _write_part(part, header, own)
    (folder / INDEX).unlink()


def _write_part(part: Path, header: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> None:
    lines = [json.dumps(header), *map(json.dumps, rows)]
    write_atomically(part, lambda path: path.write_text("".join(f"{line}\n" for line in lines)))


def _shard_of(part: Path) -> Path:
    return part.with_name(f"{part.stem[1:]}.tar")


def _write_shard(packing: Packing, part: Path, first: int, tell: Callable[[int], None]) -> int:
    """Write the shard that begins with a row, then its part of the index.

    ``tell`` hears after each sample how many bytes there are.

    Returns:
        The first row of the next shard.
    """
    shard = _shard_of(part)
    rows: list[list[str]] = []
    bad: list[tuple[int, str, str]] = []

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as tar:
            for _ in _fill(packing, tar, shard.name, first, rows, bad):
                tell(tar.tell())
            # Two empty blocks end an archive, whose length is a whole number of records.
            tar.write(bytes(-(tar.tell() + 1024) % tarfile.RECORDSIZE + 1024))

    write_atomically(shard, write)
    end = first + len(rows)
    _write_part(part, {"first": first, "end": end, "size": _size(part), "bad": bad}, rows)
    return end


def _sample(packing: Packing, row: int) -> Sample:
    """The sample that is packed as a row."""
    total = len(packing.dataset)
    order = None if packing.seed is None else Permutation(total, packing.seed)
    return packing.dataset.sample(row if order is None else int(order(np.array([row]))[0]))


def _fill(
    packing: Packing,
    tar: BinaryIO,
    shard: str,
    first: int,
    rows: list[list[str]],
    bad: list[tuple[int, str, str]],
) -> Iterator[None]:
    """Write samples one by one, and note the rows of the index and what could not be read."""
    dataset = packing.dataset
    total = len(dataset)
    last = total if packing.samples is None else min(total, first + packing.samples)
    # Several samples of one file have it once: its name, offset and size in this shard.
    packed: dict[Any, tuple[str, int, int]] = {}
    for row in range(first, last):
        sample = _sample(packing, row)
        key = f"{row:09d}"
        file = sample.media, sample.span
        place: tuple[str, int, int] | None = packed.get(file)
        begun = tar.tell()
        if sample.media is not None and place is None:
            try:
                with _opened(sample) as (source, size):
                    if packing.size and row > first and begun + size > packing.size:
                        return
                    name = f"{key}{_ending(sample)}"
                    tar.write(_header(name, size))
                    place = packed[file] = name, tar.tell(), size
                    for block in _blocks(source, size):
                        tar.write(block)
                    tar.write(bytes(-size % tarfile.BLOCKSIZE))
            except _Unreadable as error:
                tar.seek(begun)
                tar.truncate()
                bad.append((row, sample.id, str(error)))
                packed.pop(file, None)
                place = "", 0, 0
        entries = _entries(sample, dataset.classes)
        if place is not None and not (place[0].startswith(key) and kind_of(place[0])):
            entries[MEDIA] = place[0]
        text = json.dumps(entries, ensure_ascii=False).encode()
        tar.write(_header(f"{key}.json", len(text)) + text)
        tar.write(bytes(-len(text) % tarfile.BLOCKSIZE))
        path, offset, size_ = ("", "", "") if place is None else (shard, *map(str, place[1:]))
        own = [str(entries.get(name, "")) for name in ("id", "label", "start", "end")]
        rows.append([path, offset, size_, *own, *sample.fields.values()])
        yield


def _entries(sample: Sample, classes: Any) -> dict[str, Any]:
    """What a sample's ``.json`` says."""
    entries: dict[str, Any] = {"id": sample.id}
    if sample.label is not None:
        entries["label"] = classes[sample.label]
    if sample.start:
        entries["start"] = sample.start
    if sample.end is not None:
        entries["end"] = sample.end
    return entries | dict(sample.fields)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, _TIME, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)


@contextmanager
def _opened(sample: Sample) -> Iterator[tuple[Any, int]]:
    """A sample's bytes as a file, and how many there are.

    Raises:
        _Unreadable: there are none.
    """
    path = sample.media or ""
    with ExitStack() as opened:
        try:
            if "://" not in path:
                look(path)
            source, size = opened.enter_context(open_bytes(sample))
        except Unfit as unfit:
            raise _Unreadable(unfit.reason) from None
        except OSError as error:
            raise _Unreadable(error.strerror or str(error)) from None
        if size == 0 and "://" not in path:
            raise _Unreadable("the file is empty")
        yield source, size


def _blocks(source: Any, size: int) -> Iterator[bytes]:
    left = size
    while left:
        try:
            block = source.read(min(left, _BLOCK))
        except OSError as error:
            raise _Unreadable(error.strerror or str(error)) from None
        if not block:
            raise _Unreadable("became shorter while it was read")
        left -= len(block)
        yield block


def _ending(sample: Sample) -> str:
    """The ending that a sample's file has, or had before it was packed into an archive."""
    name = sample.media or ""
    if sample.span is not None:
        # A member's header is the block before it.
        header = replace(sample, span=(sample.span[0] - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE))
        if sample.span[0] < tarfile.BLOCKSIZE:
            return ".media"
        with _opened(header) as (source, size):
            block = b"".join(_blocks(source, size))
        try:
            name = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").name
        except tarfile.HeaderError:
            return ".media"
    ending = os.path.splitext(name)[1].lower()
    return ending if kind_of(name) else ".media"


def _write_lists(packing: Packing, parts: list[Path]) -> None:
    folder, fields = packing.folder, list(packing.dataset.sample(0).fields)
    shards: list[dict[str, Any]] = []
    for part in parts:
        with open(part, encoding="utf-8") as lines:
            shards.append(json.loads(next(lines)))

    def write_index(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([*_COLUMNS, *fields])
            for part in parts:
                with open(part, encoding="utf-8") as lines:
                    next(lines)
                    writer.writerows(map(json.loads, lines))

    def write_unreadable(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["id", "reason"])
            for shard in shards:
                writer.writerows(bad[1:] for bad in shard["bad"])

    # Packed again, files may be larger than they were, and shards others.
    for surplus in set(folder.glob("shard-*.tar")) - set(map(_shard_of, parts)):
        surplus.unlink()
    if any(shard["bad"] for shard in shards):
        write_atomically(folder / UNREADABLE, write_unreadable)
    else:
        (folder / UNREADABLE).unlink(missing_ok=True)
    text = json.dumps(shards)
    write_atomically(folder / _WRITTEN, lambda path: path.write_text(text, encoding="utf-8"))
    write_atomically(folder / INDEX, write_index)


def size_in_words(count: float) -> str:
    """``1.2 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"
