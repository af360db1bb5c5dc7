"""Tar shards: written, killed, read in place, listed when strangers wrote them, streamed."""

import functools
import http.server
import io
import json
import os
import pickle
import re
import string
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import braceexpand
import fsspec
import media_files
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Started, mmssl

from mmssl import BadMedia, Dataset, Media, UserError, Window
from mmssl.contracts import IGNORE
from mmssl.data.loading import ClipReader, LoaderSettings, training_batches
from mmssl.data.remote import open_url
from mmssl.data.sampling import Permutation, Sampler
from mmssl.data.time_limit import time_limit
from mmssl.training.progress import Silent
from mmssl_media.folder import Folder
from mmssl_media.manifest import Manifest
from mmssl_media.packing import Packing, pack
from mmssl_media.shards import Shards, expand_braces, split_name
from mmssl_media.video import Video

VIDEO = Video(frames=2, fps=5, short_side=32, crop=32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos in folders for three classes."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(12):
        path = folder / "abc"[number % 3] / f"{number:02}.mp4"
        path.parent.mkdir(exist_ok=True)
        media_files.write(path, frames=10 + number, fps=10)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def packed(
    source: Path,
    folder: Path,
    samples: int | None = 5,
    size: int | None = None,
    seed: int | None = None,
) -> Path:
    dataset = Folder(path=source) if source.is_dir() else Manifest(path=source)
    pack(Packing(dataset, folder, samples, size, seed), Silent())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def media_of(dataset: Dataset, row: int) -> bytes:
    """The bytes of a sample's file, read plainly."""
    sample = dataset.sample(row)
    assert sample.media is not None
    data = Path(sample.media).read_bytes()
    return data if sample.span is None else data[sample.span[0] :][: sample.span[1]]


def loaded(dataset: Dataset, start: int, count: int, workers: int = 0) -> list[bytes]:
    """Training batches of 4."""
    sampler = Sampler(len(dataset), 3, storage=dataset.storage())
    reader = ClipReader(dataset, {"video": VIDEO}, seed=3, sampler=sampler)
    batches = training_batches(
        reader,
        start=start,
        batch_size=4,
        count=count,
        settings=LoaderSettings(workers=workers, prefetch=2),
    )
    found = []
    for batch in batches:
        assert not batch.unreadable
        rows = batch.batch.index.numpy()
        found.append(rows.tobytes() + batch.batch.clips["video"].numpy().tobytes())
    return found


# Writing


def test_what_is_written(videos: Path, tmp_path: Path) -> None:
    folder = packed(videos, tmp_path / "shards")
    source, shards = Folder(path=videos), Shards(path=str(folder))
    assert shards.digest() == source.digest()
    storage = shards.storage()
    assert storage is not None
    assert storage.groups.tolist() == [5, 5, 2]
    for row in range(len(source)):
        assert media_of(shards, row) == media_of(source, row)
    with tarfile.open(folder / "shard-00001.tar") as tar:
        names = tar.getnames()
        assert names[:3] == ["000000005.mp4", "000000005.json", "000000006.mp4"]
        entries = json.load(tar.extractfile(names[1]))  # type: ignore[arg-type]
    assert entries == {"id": source.sample(5).id, "label": "b"}
    assert sorted(contents(folder)) == [
        ".shards.json", ".written.json", "index.csv",
        "shard-00000.tar", "shard-00001.tar", "shard-00002.tar",
    ]  # fmt: skip
    assert contents(packed(videos, tmp_path / "again")) == contents(folder)


def test_webdataset_reads_what_is_written(videos: Path, tmp_path: Path) -> None:
    folder = packed(videos, tmp_path / "shards")
    source = Folder(path=videos)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    rows = 0
    for row, sample in enumerate(webdataset.WebDataset(urls, shardshuffle=False)):
        assert sample["mp4"] == media_of(source, row)
        entries = json.loads(sample["json"])
        assert entries["id"] == source.sample(row).id
        assert entries["label"] == source.classes[source.sample(row).label or 0]
        rows += 1
    assert rows == len(source)


def test_without_its_index_a_shard_says_the_same(tmp_path: Path) -> None:
    path = media_files.write(tmp_path / "a.mp4", frames=20, fps=10)
    path.rename(tmp_path / "a.Mp4")
    (tmp_path / "noname").write_bytes((tmp_path / "a.Mp4").read_bytes())
    (tmp_path / "list.csv").write_text(
        "id,path,label,start,end,note\n"
        'one,a.Mp4,"dog, big",0.5,1.25,"say ""é"""\n'
        "two,noname,cat,,,\n"
        "three,a.Mp4,,1,,x\n"
        "gone,b.mp4,cat,,,\n"
        "four,a.Mp4,cat,,0.5,\n"
    )
    listed = Manifest(path=tmp_path / "list.csv")
    folder = packed(tmp_path / "list.csv", tmp_path / "shards", samples=4)
    indexed = Shards(path=str(folder))
    expected = [indexed.sample(row) for row in range(5)]
    (folder / "index.csv").unlink()
    (folder / ".shards.json").unlink()
    scanned = Shards(path=str(folder))
    assert [scanned.sample(row) for row in range(5)] == expected
    assert scanned.classes == indexed.classes == listed.classes
    for row, sample in enumerate(expected):
        plain = listed.sample(row)
        assert (sample.id, sample.label, sample.start, sample.end, sample.fields) == (
            plain.id, plain.label, plain.start, plain.end, plain.fields,
        )  # fmt: skip
        if row != 3:
            assert media_of(indexed, row) == media_of(listed, row)
    assert expected[0].span == expected[2].span, "a file is stored once in a shard"
    assert expected[3].span == (0, 0)


def test_shuffled_and_by_size(videos: Path, tmp_path: Path) -> None:
    source = Folder(path=videos)
    largest = max(len(media_of(source, row)) for row in range(12))
    folder = packed(videos, tmp_path / "shards", samples=None, size=3 * largest, seed=4)
    shards = Shards(path=str(folder))
    order = Permutation(12, 4)(np.arange(12))
    assert [shards.sample(i).id for i in range(12)] == [source.sample(int(i)).id for i in order]
    sizes = np.cumsum(shards.storage().groups)  # type: ignore[union-attr]
    assert len(sizes) > 2
    for first, end in zip([0, *sizes[:-1]], sizes, strict=True):
        assert sum(len(media_of(shards, row)) for row in range(first, end)) <= 3 * largest
    # One that is larger than a shard has one to itself.
    folder = packed(videos, tmp_path / "single", samples=None, size=1)
    assert len(list(folder.glob("*.tar"))) == 12


def test_packing_shards_anew(videos: Path, tmp_path: Path) -> None:
    first = packed(videos, tmp_path / "first")
    second = packed(first / "index.csv", tmp_path / "second", samples=4)
    direct = packed(videos, tmp_path / "direct", samples=4)
    assert {k: v for k, v in contents(second).items() if k[0] != "."} == {
        k: v for k, v in contents(direct).items() if k[0] != "."
    }


def test_a_file_that_fails_while_it_is_read(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmssl_media.packing as module

    expected = packed(videos, tmp_path / "whole")
    blocks = module._blocks

    def failing(source: Any, size: int) -> Iterator[bytes]:
        if source.name.endswith("03.mp4"):
            yield source.read(1000)
            # More than is there is asked for: the file became shorter.
            size += 1
        yield from blocks(source, size)

    monkeypatch.setattr(module, "_blocks", failing)
    dataset, folder = Folder(path=videos), tmp_path / "shards"
    _, bad = pack(Packing(dataset, folder, 5, None, None), Silent())
    assert bad == [("a/03.mp4", "became shorter while it was read")]
    shards, whole = Shards(path=str(folder)), Shards(path=str(expected))
    assert shards.digest() == whole.digest()
    for row in range(12):
        lost = shards.sample(row).id == "a/03.mp4"
        assert media_of(shards, row) == (b"" if lost else media_of(whole, row))
    with tarfile.open(folder / "shard-00000.tar") as tar:
        assert len(tar.getnames()) == 9


def test_the_command(videos: Path, tmp_path: Path) -> None:
    rows = [f"{path},{path.parent.name}\n" for path in sorted(videos.rglob("*.mp4"))]
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    rows[4:4] = ["folder.mp4,b\n", "empty.mp4,b\n", "missing.mp4,b\n"]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(rows))
    done = mmssl("data", "shard", "list.csv", "-o", "out", "--samples", "4", cwd=tmp_path)
    assert done.returncode == 1
    assert "consider --shuffle 0" in done.stdout
    assert "15 samples in 4 shards in out, 3 of them without their file" in done.stdout
    assert done.stderr.splitlines() == [
        "unreadable: folder.mp4: a folder with a file's name",
        "unreadable: empty.mp4: the file is empty",
        "unreadable: missing.mp4: no such file",
    ]
    shards = Shards(path=str(tmp_path / "out"))
    assert shards.digest() == Manifest(path=tmp_path / "list.csv").digest()
    with (
        Media(shards.sample(5)) as media,
        pytest.raises(BadMedia, match="the file is empty"),
    ):
        VIDEO.read(media, Window(0, 0.2), None)
    before = contents(tmp_path / "out")
    again = mmssl("data", "shard", "list.csv", "-o", "out", "--samples", "4", cwd=tmp_path)
    assert again.returncode == 1
    assert "nothing to do" in again.stdout
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("cut", [None, 1000, -1])
def test_a_shard_that_is_missing_or_cut_is_written_again(
    videos: Path, tmp_path: Path, cut: int | None
) -> None:
    folder = packed(videos, tmp_path / "shards")
    whole, kept = contents(folder), (folder / "shard-00000.tar").stat().st_mtime_ns
    shard = folder / "shard-00001.tar"
    if cut is None:
        shard.unlink()
    else:
        os.truncate(shard, cut % shard.stat().st_size)
    packed(videos, folder)
    assert contents(folder) == whole
    assert (folder / "shard-00000.tar").stat().st_mtime_ns == kept


def test_a_file_that_was_mended_is_packed(videos: Path, tmp_path: Path) -> None:
    file = tmp_path / "later.mp4"
    rows = [*map(str, sorted(videos.rglob("*.mp4"))), str(file)]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(rows))
    folder = packed(tmp_path / "list.csv", tmp_path / "shards")
    assert "no such file" in (folder / "unreadable.csv").read_text()
    file.write_bytes(b"here")
    packed(tmp_path / "list.csv", folder)
    assert media_of(Shards(path=str(folder)), 12) == b"here"
    assert contents(folder) == contents(packed(tmp_path / "list.csv", tmp_path / "new"))


def test_a_half_packed_folder_is_refused(videos: Path, tmp_path: Path) -> None:
    folder = packed(videos, tmp_path / "shards")
    (folder / "index.csv").unlink()
    for path in (str(folder), f"file://{folder}"):
        with pytest.raises(UserError, match="packing was not finished; run the same command"):
            len(Shards(path=path))


def test_two_that_begin_at_once(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other begins while this process looks whether the folder is empty."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from mmssl_media.folder import Folder\n"
        "from mmssl_media.packing import Packing, _claimed\n"
        f"packing = Packing(Folder(path=Path({str(videos)!r})), Path('shards'), 5, None, None)\n"
        "with _claimed(packing):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    others: list[subprocess.Popen[str]] = []
    iterdir = Path.iterdir

    def looked(path: Path) -> Iterator[Path]:
        found = list(iterdir(path))
        monkeypatch.setattr(Path, "iterdir", iterdir)
        command = [sys.executable, "-c", program]
        pipe = subprocess.PIPE
        other = subprocess.Popen(
            command, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        others.append(other)
        inside.append(other.stdout.readline() == "in\n")  # type: ignore[union-attr]
        return iter(found)

    inside: list[bool] = []
    refused = ""
    monkeypatch.setattr(Path, "iterdir", looked)
    try:
        packed(videos, tmp_path / "shards")
        inside.append(True)
    except UserError as error:
        refused = str(error)
    _, said = others[0].communicate()
    assert inside.count(True) == 1
    assert "another process is packing there" in (refused or said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list.csv", "-o", "out", "--samples", "6"], "was begun with another --samples, 5;"),
        (["list.csv", "-o", "out", "--samples", "5", "--shuffle", "1"], "another --shuffle, None"),
        (["b.csv", "-o", "out", "--samples", "5"], "was begun with another list of files"),
        (["list.csv", "-o", "other"], "-o other: is not empty; choose a new folder"),
        (["list.csv", "-o", "list.csv"], "-o list.csv: is a file; name a folder"),
        (["c.csv", "-o", "new"], "c.csv: no such manifest or folder"),
        (["list.csv", "-o", "new", "--size", "many"], "--size many: is no size; write it as 1GB"),
        (["list.csv", "-o", "new", "--size", "1", "--samples", "2"], "give one of them"),
        (["size.csv", "-o", "new"], "rename the column 'size'"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    from mmssl_media.commands.shard import shard

    monkeypatch.chdir(tmp_path)
    for name in ("list.csv", "b.csv"):
        Path(name).write_text(f"path\n{name}\n")
    Path("size.csv").write_text("path,size\na.mp4,1\n")
    packed(Path("list.csv"), Path("out"))
    Path("other").mkdir()
    Path("other/thing").touch()
    values = {"samples": None, "size": None, "shuffle": None, "-o": None}
    source, *rest = arguments
    for name, value in zip(rest[::2], rest[1::2], strict=True):
        name = name.removeprefix("--")
        values[name] = int(value) if name in ("samples", "shuffle") else value  # type: ignore[assignment]
    output = Path(str(values.pop("-o")))
    with pytest.raises(UserError, match=re.escape(message)):
        shard(Path(source), output, **values)  # type: ignore[arg-type]
    assert not Path("new").exists()


def test_killed_and_started_again(videos: Path, tmp_path: Path) -> None:
    files = sorted(videos.rglob("*.mp4"))
    rows = "".join(f"{i},{files[i % 12]},{i / 1e6}\n" for i in range(3000))
    (tmp_path / "list.csv").write_text("id,path,start\n" + rows)
    arguments = ["data", "shard", "list.csv", "--samples", "300"]
    assert mmssl(*arguments, "-o", "whole", cwd=tmp_path).returncode == 0
    out = tmp_path / "out"
    for shards in (1, 7):
        started = Started(*arguments, "-o", "out", cwd=tmp_path)
        temporary = f".shard-{shards:05d}.tar.*"
        started.wait_until(lambda t=temporary: any(out.glob(t)))  # type: ignore[misc]
        started.kill()
        assert not (out / "index.csv").exists()
        finished = len(list(out.glob("shard-*.tar")))
        assert shards <= finished < 10, "killed in the middle"
    kept = (out / "shard-00000.tar").stat().st_mtime_ns
    assert mmssl(*arguments, "-o", "out", cwd=tmp_path).returncode == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "shard-00000.tar").stat().st_mtime_ns == kept


# Reading


def test_training_batches_do_not_depend_on_workers(videos: Path, tmp_path: Path) -> None:
    shards = Shards(path=str(packed(videos, tmp_path / "shards", samples=3)), buffer=5)
    expected = loaded(shards, 0, 6)
    for workers in (1, 2):
        assert loaded(shards, 0, 6, workers) == expected
    assert loaded(shards, 8, 4, workers=1) == expected[2:]
    sampler = Sampler(12, 3, storage=shards.storage())
    rows = sampler.rows(np.arange(12))
    assert sorted(rows) == list(range(12))
    assert len({row // 3 for row in rows[:5]}) == 2, "a buffer of 5 holds rows of two shards"


def write_tar(
    path: Path, members: dict[str, bytes], kind: int = tarfile.GNU_FORMAT, mode: str = "w"
) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode, format=kind) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_a_stranger_wrote(tmp_path: Path, kind: int) -> None:
    long = "x" * 150
    write_tar(
        tmp_path / "s" / "b-0.tar",
        {
            "._k.mp4": b"hidden",
            "dir/k1.jpg": b"picture",
            "dir/k1.left.MP4": b"video",
            "dir/k1.cls": b"3\n",
            "dir/k1.txt": "two\nlines é".encode(),
            f"{long}/k2.wav": b"sound",
            f"{long}/k2.json": b'{"label": 1, "start": 0.5, "end": null, "width": 64, "a": [1]}',
            "readme.md": b"no sample",
        },
        kind,
    )
    write_tar(tmp_path / "s" / "b-1.tar", {"dir/k1.png": b"1", "k5.png": b"22"}, kind)
    data = Shards(path=str(tmp_path / "s"))
    said = Said()
    data.materialise(said)
    assert len(data) == 4
    first, second, third, fourth = (data.sample(i) for i in range(4))
    assert first.id == "b-0.tar/dir/k1"
    assert first.fields == {"txt": "two lines é", "width": "", "a": ""}
    assert (first.label, media_of(data, 0)) == (3, b"video")
    assert second.id == f"b-0.tar/{long}/k2"
    assert (second.label, second.start, second.end) == (1, 0.5, None)
    assert (second.fields["width"], second.fields["a"]) == ("64", "[1]")
    assert media_of(data, 1) == b"sound"
    assert (third.id, third.label) == ("b-1.tar/dir/k1", None)
    assert [media_of(data, i) for i in (2, 3)] == [b"1", b"22"]
    assert fourth.media == str(tmp_path / "s" / "b-1.tar")
    assert data.labels().tolist() == [3, 1, IGNORE, IGNORE]
    assert said.lines == [f"{tmp_path}/s/b-0.tar: 1 files belong to no media and are passed over"]
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert copy.sample(1) == second


def test_odd_members_of_a_stranger(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        {
            "caf\udce9.mp4": b"not UTF-8",
            "b.mp4": b"2",
            "b.json": b'{"start": "00:01:02", "end": 3, "x": "\\ud800", "y": "a\\r\\nb"}',
            "c.mp4": b"3",
            "c.json": json.dumps({"long": "x" * 200_000, "z": "kept"}).encode(),
            "d.mp4": b"4",
            "d.json": b"no JSON",
        },
    )
    data, said = Shards(path=str(tmp_path / "a.tar")), Said()
    data.materialise(said)
    assert [data.sample(i).id for i in range(len(data))] == [
        "a.tar/caf\\xe9",
        "a.tar/b",
        "a.tar/c",
    ]
    assert [media_of(data, i) for i in range(3)] == [b"not UTF-8", b"2", b"3"]
    second = data.sample(1)
    assert (second.start, second.end, second.fields["x"], second.fields["y"]) == (0, 3, "?", "a b")
    assert (data.sample(2).fields["long"], data.sample(2).fields["z"]) == ("", "kept")
    assert len(said.lines) == 2
    assert said.lines[0] == f"{tmp_path}/a.tar: b: start '00:01:02' is no time in seconds"
    assert said.lines[1].startswith(f"{tmp_path}/a.tar: d: is passed over, as its .json is none")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("json", b'{"start": 5, "end": 2}', "end '2' is not after start"),
        ("json", b'{"label": -1}', "label '-1' is no class's index"),
        ("json", b'{"label": 1.0}', ""),
        ("json", b'{"id": null}', ""),
        ("json", b'{"a\\nb": 1}', "is no name of a field"),
        ("json", b'{"\\ud800": 1}', "is no name of a field"),
        ("json", b"[" * 200_000, "is passed over, as its .json is none"),
        ("cls", b"9" * 5000, "is no class's index"),
        ("cls", b"1e3", "is no class's index"),
    ],
)
def test_an_odd_value_of_a_stranger(tmp_path: Path, name: str, text: bytes, said: str) -> None:
    members = {"a.mp4": b"a", f"a.{name}": text, "b.mp4": b"b", "b.cls": b"0"}
    write_tar(tmp_path / "a.tar", members)
    data, listener = Shards(path=str(tmp_path / "a.tar")), Said()
    data.materialise(listener)
    kept = [b"b"] if "passed over" in said else [b"a", b"b"]
    assert [media_of(data, i) for i in range(len(data))] == kept
    label = 1 if b"1.0" in text else IGNORE
    assert data.labels().tolist() == [label, 0][-len(kept) :]
    assert len(listener.lines) == bool(said)
    for line in listener.lines:
        assert line.startswith(f"{tmp_path}/a.tar: a: ")
        assert said in line


def test_names_that_come_twice(tmp_path: Path) -> None:
    same = b'{"id": "3"}'
    write_tar(tmp_path / "s" / "a.tar", {"k.mp4": b"old", "k.cls": b"dog", "x.mp4": b"x"})
    write_tar(tmp_path / "s" / "a.tar", {"k.mp4": b"new"}, mode="a")
    write_tar(tmp_path / "s" / "b.tar", {"y.mp4": b"y", "y.json": same})
    write_tar(tmp_path / "s" / "c.tar", {"z.mp4": b"z", "z.json": same})
    data, said = Shards(path=str(tmp_path / "s")), Said()
    data.materialise(said)
    found = {data.sample(i).id: media_of(data, i) for i in range(len(data))}
    assert found == {"a.tar/x": b"x", "a.tar/k": b"new", "3": b"y", "c.tar/z": b"z"}
    assert data.labels().tolist() == [IGNORE, 0, IGNORE, IGNORE]
    assert said.lines == [
        f"{tmp_path}/s/a.tar: k: is there more than once; the last is used",
        f"{tmp_path}/s/c.tar: z: another sample has its id '3', too; it is called c.tar/z",
    ]
    with pytest.raises(UserError, match=r"/s/a\.tar: a\.tar/k: label: 'dog' is not among"):
        len(Shards(path=str(tmp_path / "s"), classes=["cat"]))


def test_a_shard_that_is_still_written_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmssl_media.shards as module

    path = write_tar(tmp_path / "a.tar", {"a.mp4": b"1"})
    rows_in = module.rows_in

    def growing(archive: Any, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
        yield from rows_in(archive, notes)
        with open(path, "ab") as tar:
            tar.write(bytes(512))

    monkeypatch.setattr(module, "rows_in", growing)
    with pytest.raises(UserError, match=r"a\.tar: changes while it is read"):
        len(Shards(path=str(path)))
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_what_webdataset_writes(videos: Path, tmp_path: Path) -> None:
    source = Folder(path=videos)
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for row in range(12):
            label = source.sample(row).label
            sample = {"__key__": f"s{row}", "mp4": media_of(source, row), "cls": label}
            writer.write({**sample, "json": {"id": source.sample(row).id}})
    data = Shards(path=str(tmp_path / "w.tar"))
    assert data.digest() == source.digest()
    assert data.labels().tolist() == source.labels().tolist()
    assert [media_of(data, row) for row in range(12)] == [media_of(source, r) for r in range(12)]


def test_a_listing_is_kept_until_a_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmssl_media.shards as module

    scanned: list[str] = []
    rows_in = module.rows_in

    def counted(archive: object, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
        scanned.append(Path(archive.name).name)  # type: ignore[attr-defined]
        return rows_in(archive, notes)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "rows_in", counted)
    for name in "ab":
        write_tar(tmp_path / "s" / f"{name}.tar", {f"{name}.mp4": b"1"})
    for _ in range(2):
        assert len(Shards(path=str(tmp_path / "s"))) == 2
    assert scanned == ["a.tar", "b.tar"]
    write_tar(tmp_path / "s" / "b.tar", {"b.mp4": b"1", "c.mp4": b"1"})
    os.utime(tmp_path / "s" / "b.tar", ns=(1, 1))
    assert len(Shards(path=str(tmp_path / "s"))) == 3
    assert scanned == ["a.tar", "b.tar", "b.tar"]


def test_damaged_shards(tmp_path: Path) -> None:
    whole = write_tar(
        tmp_path / "s" / "a.tar", {f"{i}.mp4": bytes([i]) * 1500 for i in range(4)}
    ).read_bytes()
    (tmp_path / "s" / "a.tar").write_bytes(whole[: 2 * 2048 + 2048 + 512 + 700])
    data, said = Shards(path=str(tmp_path / "s")), Said()
    data.materialise(said)
    assert [media_of(data, row) for row in range(len(data))] == [
        bytes([i]) * 1500 for i in (0, 1, 2)
    ]
    assert said.lines == [f"{tmp_path}/s/a.tar: ends within 3.mp4; the 3 files before it are used"]
    torn = bytearray(whole)
    torn[2 * 2048 : 2 * 2048 + 512] = b"\xff" * 512
    (tmp_path / "s" / "a.tar").write_bytes(torn)
    data, said = Shards(path=str(tmp_path / "s")), Said()
    data.materialise(said)
    assert len(data) == 2
    assert said.lines == [f"{tmp_path}/s/a.tar: damaged at byte 4096; the 2 files before are used"]
    # What is known already is said again: it is as wrong as before.
    data, said = Shards(path=str(tmp_path / "s")), Said()
    data.materialise(said)
    assert len(said.lines) == 1


def test_what_cannot_be_read(tmp_path: Path) -> None:
    def refused(message: str, path: str) -> None:
        with pytest.raises(UserError, match=message):
            len(Shards(path=path))

    refused("no such folder or tar file", str(tmp_path / "none"))
    (tmp_path / "s").mkdir()
    refused("no tar files in it", str(tmp_path / "s"))
    zipped = write_tar(tmp_path / "s" / "a.tar.gz", {"a.mp4": b"1"}, mode="w:gz")
    refused("a.tar.gz: a compressed archive cannot be read in part; unpack it", str(zipped))
    refused("a.tar.gz: a compressed archive cannot be read in part", str(tmp_path / "s"))
    zipped.rename(tmp_path / "s" / "a.tar")
    refused("a.tar: is no tar file", str(tmp_path / "s"))
    write_tar(tmp_path / "s" / "a.tar", {"a.md": b"1"})
    refused("no media files in it", str(tmp_path / "s" / "a.tar"))
    refused("b-1.tar: cannot be opened", str(tmp_path / "s" / "b-{1,2}.tar"))
    refused("there is no protocol 'nosuch'", "nosuch://a/b.tar")
    refused("oci://a/b.tar: cannot be opened .* pip install", "oci://a/b.tar")


# Names

words = st.text(string.ascii_letters + string.digits + "_- ", max_size=5)
ranges = st.tuples(st.integers(0, 120), st.integers(0, 120), st.integers(1, 3)).map(
    lambda x: f"{{{x[0]:0{x[2]}d}..{x[1]:0{x[2]}d}}}"
)
lists = st.lists(words, min_size=2, max_size=4).map(lambda x: "{" + ",".join(x) + "}")


@settings(max_examples=150, deadline=None)
@given(st.lists(words | ranges | lists, max_size=4).map("".join))
def test_braces_are_expanded_as_a_shell_does(text: str) -> None:
    assert list(expand_braces(text)) == list(braceexpand.braceexpand(text))


names = st.builds(
    "/".join, st.lists(st.text("ab._-é", min_size=1, max_size=6), min_size=1, max_size=3)
)


@settings(max_examples=200, deadline=None)
@given(names)
def test_keys_are_those_of_webdataset(name: str) -> None:
    from webdataset.tariterators import base_plus_ext

    key, ending = split_name(name)
    expected = base_plus_ext(name)
    if expected[0] and not expected[0].endswith("/") and "." in name.rpartition("/")[2]:
        assert (key, ending) == (expected[0], expected[1].lower())


# Streaming


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, in parts where asked, and counts the bytes."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.sent = 0
        self.fail = 0
        self.hang = 0.0
        self.whole = False
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        if self.server.fail:
            self.server.fail -= 1
            self.send_error(503)
            return
        super().do_HEAD()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        asked = None if self.server.whole else asked
        time.sleep(self.server.hang)
        if self.server.fail:
            self.server.fail -= 1
            self.send_error(503)
            return
        if asked is None or not path.is_file():
            super().do_GET()
            return
        first, last = int(asked[1]), int(asked[2])
        data = path.read_bytes()
        part = data[first : last + 1]
        self.server.sent += len(part)
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "web").mkdir()
    server = Server(tmp_path / "web")
    yield server
    server.shutdown()
    server.server_close()


def test_streaming(videos: Path, tmp_path: Path, server: Server) -> None:
    folder = packed(videos, tmp_path / "web" / "shards", samples=4)
    local = Shards(path=str(folder), buffer=5)
    expected = loaded(local, 0, 3)
    data = Shards(path=f"{server.url}/shards/", buffer=5)
    assert data.digest() == local.digest()
    before = server.sent
    assert loaded(data, 0, 3) == expected
    wanted = sum(data.sample(row).span[1] for row in range(12))  # type: ignore[index]
    assert 0 < server.sent - before <= wanted, "nothing but the samples, and each at most once"
    # Connections of this process do not work in those that are forked from it.
    assert loaded(data, 0, 3, workers=2) == expected
    (folder / "index.csv").unlink()
    before = server.sent
    named = Shards(path=f"{server.url}/shards/shard-{{00000..00002}}.tar", buffer=5)
    assert named.digest() == local.digest()
    assert loaded(named, 4, 2) == expected[1:]
    assert named.sample(0).media == f"{server.url}/shards/shard-00000.tar"


def test_listing_a_remote_shard_fetches_headers_only(tmp_path: Path, server: Server) -> None:
    large = {f"{i}.mp4": bytes(1_000_000) for i in range(6)}
    write_tar(tmp_path / "web" / "a.tar", large)
    data = Shards(path=f"{server.url}/a.tar")
    assert len(data) == 6
    assert server.sent < 600_000


def test_a_clip_of_a_large_file_fetches_little_of_it(tmp_path: Path, server: Server) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 96_000 * 80)).astype(np.float32)
    path = media_files.write(
        tmp_path / "web" / "a.mov",
        frames=800,
        fps=10,
        sound=noise,
        rate=96_000,
        sound_codec="pcm_s16le",
        layout="stereo",
    )
    size = path.stat().st_size
    assert size > 30_000_000
    write_tar(tmp_path / "web" / "a.tar", {"0.mp4": b"1", "1.mov": path.read_bytes()})
    data = Shards(path=f"{server.url}/a.tar")
    sample = data.sample(1)
    server.sent = 0
    with Media(sample) as media:
        clip = Video(frames=5, fps=10, short_side=64, crop=64).read(media, Window(40, 0.5), None)
    assert [media_files.number_of(frame) for frame in clip.numpy()] == [400, 401, 402, 403, 404]
    assert server.sent < size / 6


def test_a_server_that_fails_for_a_moment(tmp_path: Path, server: Server) -> None:
    (tmp_path / "web" / "a.bin").write_bytes(bytes(range(200)))
    url = f"{server.url}/a.bin"
    server.fail = 2
    with open_url(url, (50, 100)) as file:
        assert file.read() == bytes(range(50, 150))
    server.fail = 3
    with open_url(url, (50, 100)) as file, pytest.raises(OSError, match="503"):
        file.read()
    with pytest.raises(FileNotFoundError), open_url(f"{server.url}/b.bin", None):
        pass
    with open_url(url, (150, 100)) as file, pytest.raises(OSError, match="ends at byte 200"):
        file.read()


def test_a_whole_file_is_asked_for_again(tmp_path: Path, server: Server) -> None:
    write_tar(tmp_path / "web" / "a.tar", {"a.mp4": b"1"})
    url = f"{server.url}/a.tar"
    server.fail = 4  # each time by HEAD, then by GET
    with open_url(url, None) as file:
        assert len(file.read()) == (tmp_path / "web" / "a.tar").stat().st_size
    server.fail = 4
    assert len(Shards(path=url)) == 1
    server.fail = 99
    with pytest.raises(OSError, match="503"), open_url(url, None):
        pass
    for path in (url, f"{server.url}/"):
        with pytest.raises(UserError, match="503"):
            len(Shards(path=path))


def test_what_changed_on_a_server_without_etags(
    videos: Path, tmp_path: Path, server: Server
) -> None:
    for name, when in (("1.mp4", 1_000_000_000), ("2.mp4", 1_000_000_100)):
        shard = write_tar(tmp_path / "web" / "a.tar", {name: b"x"})
        os.utime(shard, (when, when))
        assert Shards(path=f"{server.url}/a.tar").sample(0).id == f"a.tar/{name[0]}"
    index = packed(videos, tmp_path / "web" / "s") / "index.csv"
    for name in ("a/00.mp4", "A/00.mp4"):
        index.write_text(index.read_text().replace("a/00.mp4", name))
        os.utime(index, (1_000_000_000 + ord(name[0]),) * 2)
        assert Shards(path=f"{server.url}/s/").sample(0).id == name


def test_a_server_that_sends_whole_files(videos: Path, tmp_path: Path, server: Server) -> None:
    packed(videos, tmp_path / "web" / "s")
    write_tar(tmp_path / "web" / "a.tar", {"a.mp4": bytes(1 << 16)})
    server.whole = True
    for path in (f"{server.url}/s/", f"{server.url}/a.tar"):
        with pytest.raises(UserError, match="does not give parts of files"):
            Shards(path=path).materialise(Silent())


def test_shards_are_looked_at_together(tmp_path: Path, server: Server) -> None:
    class Watched(Silent):
        def task(self, title: str, total: int, done: int = 0) -> Any:
            titles.append((title, total))
            return super().task(title, total, done)

    titles: list[tuple[str, int]] = []
    for number in range(3):
        write_tar(tmp_path / "web" / f"{number}.tar", {"a.mp4": b"1"})
    data = Shards(path=f"{server.url}/{{0..2}}.tar")
    data.materialise(Watched())
    assert [data.sample(i).id for i in range(3)] == [f"{i}.tar/a" for i in range(3)]
    assert titles == [("looking at shards", 3), ("listing shards", 3)]


def test_a_server_that_does_not_answer(tmp_path: Path, server: Server) -> None:
    (tmp_path / "web" / "a.bin").write_bytes(bytes(200))
    server.hang = 2.0
    before = time.monotonic()
    with (
        open_url(f"{server.url}/a.bin", (0, 100)) as file,
        pytest.raises(BadMedia, match=r"longer than 0\.2 s"),
        time_limit(0.2),
    ):
        file.read()
    assert time.monotonic() - before < 1.5, "it was not asked again"


def test_a_protocol_without_its_package(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from mmssl_media.shards import Shards\n"
        "Shards(path='https://host/a.tar')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "UserError: https://host/a.tar: cannot be opened" in done.stderr
    assert "pip install aiohttp" in done.stderr


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 300),
    first=st.integers(0, 100),
    count=st.integers(0, 200),
    block=st.integers(1, 64),
    moves=st.lists(st.tuples(st.integers(0, 220), st.integers(-1, 80)), max_size=12),
)
def test_a_part_reads_as_the_bytes_would(
    size: int, first: int, count: int, block: int, moves: list[tuple[int, int]]
) -> None:
    from mmssl.data.remote import RemotePart

    data = np.random.default_rng(size).bytes(first + count + size)
    system = fsspec.filesystem("memory")
    system.pipe_file("/part", data)
    plain = io.BytesIO(data[first : first + count])
    part = RemotePart(system, "/part", first, count, block)
    for position, length in moves:
        assert part.seek(position) == plain.seek(position)
        assert part.read(length) == plain.read(length)
        assert part.tell() == max(plain.tell(), position)


def test_another_store(videos: Path, tmp_path: Path) -> None:
    folder = packed(videos, tmp_path / "shards", samples=4)
    system = fsspec.filesystem("memory")
    system.put(str(folder) + "/", "/bucket/data/", recursive=True)
    data = Shards(path="memory://bucket/data")
    local = Shards(path=str(folder))
    assert data.digest() == local.digest()
    assert loaded(data, 0, 3) == loaded(local, 0, 3)
    (folder / "shard-00002.tar").write_bytes(b"")
    again = packed_from_store(tmp_path)
    assert again == [local.sample(row).id for row in range(12)]


def packed_from_store(tmp_path: Path) -> list[str]:
    """A list of URLs packed into shards on this machine."""
    system = fsspec.filesystem("memory")
    (tmp_path / "list.csv").write_text(
        system.cat_file("/bucket/data/index.csv")
        .decode()
        .replace("shard-", "memory://bucket/data/shard-")
    )
    folder = packed(tmp_path / "list.csv", tmp_path / "copy", samples=4)
    remote = Shards(path="memory://bucket/data")
    copy = Shards(path=str(folder))
    for row in range(12):
        sample = remote.sample(row)
        assert sample.media is not None
        with open_url(sample.media, sample.span) as file:
            assert file.read() == media_of(copy, row)
    return [copy.sample(row).id for row in range(12)]


def test_grouping(tmp_path: Path) -> None:
    """Samples are the runs of members with one key, whatever their order within."""
    rng = np.random.default_rng(0)
    members: dict[str, bytes] = {}
    for number in range(200):
        endings = [e for e in ("mp4", "json", "cls", "txt", "jpg", "md") if rng.random() < 0.5]
        for ending in rng.permutation(endings):
            members[f"{number % 7}/{number}.{ending}"] = b"{}" if ending == "json" else b"1"
    write_tar(tmp_path / "s" / "a.tar", members)
    data = Shards(path=str(tmp_path / "s"))
    keys = {
        key: [name.rpartition(".")[2] for name in group]
        for key, group in groupby(members, lambda name: name.partition(".")[0])
    }
    expected = [key for key, endings in keys.items() if {"mp4", "jpg"} & set(endings)]
    assert [data.sample(i).id for i in range(len(data))] == [f"a.tar/{key}" for key in expected]
