"""``mmssl data index``: what is in a folder, and what its files' headers say."""

import csv
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from media_files import write
from small_runs import Started, mmssl

from mmssl.errors import UserError
from mmssl_media.commands import index as index_module
from mmssl_media.commands.index import index
from mmssl_media.journal import open_journal
from mmssl_media.manifest import Manifest
from mmssl_media.probe import COLUMNS


def noise(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    samples = np.random.default_rng(0).normal(size=(channels, round(seconds * rate)))
    return (0.1 * samples).astype(np.float32)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def keys(journal: Path) -> list[str]:
    """The files that were probed, in the order in which they were."""
    return [json.loads(line)[0] for line in journal.read_text().splitlines()[1:]]


UNEVEN = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 20]

FILES = {
    "a.mp4": (
        {"frames": 30, "size": (64, 48), "sound": noise(1, 44_100), "b_frames": 2},
        ["1.000", "video+audio", "h264", "64", "48", "30", "no", "aac", "44100", "1"],
    ),
    "b.mkv": (
        {"frames": 30, "fps": 60, "sound": noise(0.5, 48_000, 2), "rate": 48_000}
        | {"layout": "stereo", "sound_codec": "flac"},
        ["0.500", "video+audio", "h264", "64", "64", "60", "no", "flac", "48000", "2"],
    ),
    "c.webm": (
        {"frames": 20, "fps": 10, "codec": "libvpx-vp9"},
        ["2.000", "video", "vp9", "64", "64", "10", "no", "", "", ""],
    ),
    "d.avi": (
        {"frames": 25, "fps": 25, "codec": "mpeg4", "sound": noise(1, 22_050), "rate": 22_050}
        | {"sound_codec": "pcm_s16le"},
        ["1.000", "video+audio", "mpeg4", "64", "64", "25", "no", "pcm_s16le", "22050", "1"],
    ),
    "e.mov": (
        {"frames": 15, "fps": 15, "codec": "mjpeg", "size": (130, 70)},
        ["1.000", "video", "mjpeg", "130", "70", "15", "no", "", "", ""],
    ),
    "f.ts": (
        {"frames": 50, "fps": 25, "b_frames": 2},
        ["2.000", "video", "h264", "64", "64", "25", "no", "", "", ""],
    ),
    "g.wav": (
        {"sound": noise(1.5, 8000, 6), "rate": 8000, "layout": "5.1", "sound_codec": "pcm_s16le"},
        ["1.500", "audio", "", "", "", "", "", "pcm_s16le", "8000", "6"],
    ),
    "h.flac": (
        {"sound": noise(1, 96_000), "rate": 96_000, "sound_codec": "flac"},
        ["1.000", "audio", "", "", "", "", "", "flac", "96000", "1"],
    ),
    # 12 frames over 21 steps of 1/30 s.
    "vfr.mp4": (
        {"frames": 12, "times": [step / 30 for step in UNEVEN]},
        ["0.700", "video", "h264", "64", "64", "17.1429", "yes", "", "", ""],
    ),
    "vfr.mkv": (
        {"frames": 12, "times": [step / 30 for step in UNEVEN], "b_frames": 2},
        ["0.700", "video", "h264", "64", "64", "16.5", "yes", "", "", ""],
    ),
}


def test_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (content, _) in FILES.items():
        write(tmp_path / name, **content)  # type: ignore[arg-type]
    assert index(tmp_path, tmp_path / "m.csv") == 0
    found = {row["path"]: row for row in rows(tmp_path / "m.csv")}
    assert list(found) == sorted(FILES)
    for name, (_, values) in FILES.items():
        wanted = dict(zip(COLUMNS, values, strict=False))
        row = found[name]
        assert float(row["duration"]) == pytest.approx(float(wanted.pop("duration")), abs=0.03)
        assert row["bytes"] == str((tmp_path / name).stat().st_size)
        if wanted["variable_fps"] == "yes":
            assert float(row["fps"]) == pytest.approx(float(wanted.pop("fps")), rel=0.03)
        assert {column: row[column] for column in wanted} == wanted, name
    assert not (tmp_path / "m.csv.bad.csv").exists()
    assert "10 rows" in capsys.readouterr().out
    fields = Manifest(path=tmp_path / "m.csv").sample(0).fields
    assert fields["video_codec"] == "h264", "the dataset passes the columns on"


def test_progress_without_a_terminal(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmssl.cli.terminal._LINE_EVERY", 0.0)
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_text("no video")
    index(tmp_path, tmp_path / "m.csv")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines[:6]] == [
        ["listing", "1"],
        ["listing", "2"],
        ["probing", "1/2"],
        ["probing", "2/2"],
        ["writing", "1/2"],
        ["writing", "2/2"],
    ]
    assert "bad 1" in lines[3]


def test_an_image(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.png"), "w", format="image2") as out:
        stream = out.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 40, 30, "rgb24"
        out.mux(stream.encode(av.VideoFrame(40, 30, "rgb24")))
        out.mux(stream.encode(None))
    index(tmp_path, tmp_path / "m.csv")
    row = rows(tmp_path / "m.csv")[0]
    described = {name: value for name, value in row.items() if value and name != "bytes"}
    size = {"width": "40", "height": "30"}
    assert described == {"path": "a.png", "streams": "image", "video_codec": "png", **size}
    with pytest.raises(UserError, match="no video or audio files in it"):
        index(tmp_path, tmp_path / "n.csv", kinds="video,audio")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clip") / "a.mp4", frames=4)


NAMES = ["b, c.mp4", 'say "hi".mp4', "ünï cödé 片.mp4", "  spaces .mp4", "#1 100%.MP4", "é.mkv"]


def test_a_folder_of_classes(tmp_path: Path, clip: Path) -> None:
    for place in ("dog", "cat/deep", "", ".hidden"):
        (tmp_path / "v" / place).mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            shutil.copy(clip, tmp_path / "v" / place / name)
    shutil.copy(clip, tmp_path / "v" / ".hidden.mp4")
    (tmp_path / "v" / "link.mp4").symlink_to(clip)
    (tmp_path / "v" / "circle").symlink_to(tmp_path / "v", target_is_directory=True)
    assert index(tmp_path / "v", tmp_path / "m.csv", labels="folder") == 0
    data = Manifest(path=tmp_path / "m.csv")
    samples = [data.sample(row) for row in range(len(data))]
    assert data.classes == ("cat", "dog")
    wanted = {f"v/{name}": None for name in [*NAMES, "link.mp4"]}
    wanted |= {f"v/cat/deep/{name}": 0 for name in NAMES}
    wanted |= {f"v/dog/{name}": 1 for name in NAMES}
    assert {sample.id: sample.label for sample in samples} == wanted
    assert all(os.path.isfile(sample.media or "") for sample in samples)
    # Elsewhere, relative paths would lead nowhere.
    (tmp_path / "lists").mkdir()
    assert index(tmp_path / "v", tmp_path / "lists" / "m.tsv") == 0
    paths = {row["path"] for row in rows(tmp_path / "lists" / "m.tsv")}
    assert paths == {str(tmp_path / path) for path in wanted}
    assert len(Manifest(path=tmp_path / "lists" / "m.tsv")) == len(wanted)


def test_relative_to_the_working_folder(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v").mkdir()
    shutil.copy(clip, tmp_path / "v" / "a.mp4")
    monkeypatch.chdir(tmp_path)
    index(Path("v"), Path("m.csv"))
    assert [row["path"] for row in rows(Path("m.csv"))] == ["v/a.mp4"]
    monkeypatch.chdir(tmp_path / "v")
    index(Path(), Path("m.csv"))
    assert [row["path"] for row in rows(Path("m.csv"))] == ["a.mp4"]


def test_a_list_of_paths(tmp_path: Path, clip: Path) -> None:
    shutil.copy(clip, tmp_path / "b, c.mp4")
    (tmp_path / "list.txt").write_text(f"b, c.mp4\n\n{clip}\r\nb, c.mp4\nmissing.mp4\n")
    assert index(tmp_path / "list.txt", tmp_path / "m.csv") == 0
    assert [row["path"] for row in rows(tmp_path / "m.csv")] == ["b, c.mp4", str(clip)]
    assert rows(tmp_path / "m.csv.bad.csv") == [
        {"path": "b, c.mp4", "reason": "is listed a second time"},
        {"path": "missing.mp4", "reason": "no such file"},
    ]


def test_a_list_keeps_its_columns_and_order(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "media").mkdir()
    for name in ("b.mp4", "a.mp4"):
        shutil.copy(clip, tmp_path / "media" / name)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "segments.tsv").write_text(
        "label\tduration\tpath\tstart\tend\tcaption\n"
        "x\told\t../media/b.mp4\t0\t0.05\tone, two\n"
        "y\told\t../media/a.mp4\t\t\t\n"
        'x\told\t../media/b.mp4\t0.05\t0.1\t"say ""so"""\n'
    )
    assert index(tmp_path / "lists" / "segments.tsv", tmp_path / "m.csv") == 0
    found = rows(tmp_path / "m.csv")
    header = ["label", "path", "start", "end", "caption", *COLUMNS]
    assert list(found[0]) == header
    assert [row["path"] for row in found] == ["media/b.mp4", "media/a.mp4", "media/b.mp4"]
    assert [row["caption"] for row in found] == ["one, two", "", 'say "so"']
    assert {row["duration"] for row in found} == {"0.133"}
    assert len(keys(tmp_path / ".m.csv.index.journal")) == 2, "each file is probed once"
    data = Manifest(path=tmp_path / "m.csv")
    assert data.sample(2).id == "media/b.mp4#0.05-0.1"
    assert (data.sample(2).start, data.sample(2).label) == (0.05, 0)


def test_urls_and_rows_without_a_file(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "l.csv").write_text(
        f"id,path,imu\n1,file://{clip},\n2,,x.npy\n,,y.npy\n4,file:///nowhere.mp4,\n"
    )
    assert index(tmp_path / "l.csv", tmp_path / "m.csv") == 0
    one, two = rows(tmp_path / "m.csv")
    assert (one["path"], one["video_codec"], one["duration"]) == (f"file://{clip}", "h264", "0.133")
    assert {name: value for name, value in two.items() if value} == {"id": "2", "imu": "x.npy"}
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "m.csv.bad.csv")}
    assert reasons[""] == "the row names neither a file nor an id"
    assert "file:///nowhere.mp4" in reasons


def test_a_part_of_an_archive(tmp_path: Path, clip: Path) -> None:
    content = clip.read_bytes()
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + content + b"y" * 512)
    (tmp_path / "l.csv").write_text(f"path,id,offset,size\na.tar,one,512,{len(content)}\n")
    assert index(tmp_path / "l.csv", tmp_path / "m.csv") == 0
    row = rows(tmp_path / "m.csv")[0]
    assert (row["streams"], row["bytes"]) == ("video", str(len(content)))
    assert (row["id"], row["offset"], row["size"]) == ("one", "512", str(len(content)))


def test_what_no_manifest_can_hold(tmp_path: Path, clip: Path) -> None:
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "l.csv").write_text(
        'path,label,caption\na.mp4,x,"one\r\n\ntwo\n"\n"b\n.mp4",y,\n"file:///c\n.mp4",y,\n'
    )
    assert index(tmp_path / "l.csv", tmp_path / "m.csv") == 0
    data = Manifest(path=tmp_path / "m.csv")
    assert [data.sample(row).fields["caption"] for row in range(len(data))] == ["one two "]
    breaks = "its name holds a line break, so that no list can name it"
    bad = {row["path"]: row["reason"] for row in rows(tmp_path / "m.csv.bad.csv")}
    assert bad == {"b\\n.mp4": breaks, "file:///c\\n.mp4": breaks}
    (tmp_path / "l.txt").write_text("a.mp4\n" + "\n" * 2000 + "zero\0.mp4\n")
    assert index(tmp_path / "l.txt", tmp_path / "n.csv") == 0
    assert rows(tmp_path / "n.csv.bad.csv") == [
        {
            "path": "zero\\x00.mp4",
            "reason": "its name holds a zero byte, so that no list can name it",
        }
    ]
    (tmp_path / "header.csv").write_text('path,"a\nb"\na.mp4,c\n')
    with pytest.raises(UserError, match=r"header\.csv:1: a column's name holds a line break"):
        index(tmp_path / "header.csv", tmp_path / "o.csv")


def test_only_its_own_list_of_bad_files_is_touched(tmp_path: Path, clip: Path) -> None:
    shutil.copy(clip, tmp_path / "a.mp4")
    (tmp_path / "clips.bad.csv").write_text("path\na.mp4\n")
    assert index(tmp_path / "clips.bad.csv", tmp_path / "clips.csv") == 0
    assert (tmp_path / "clips.bad.csv").exists()
    (tmp_path / "l.txt").write_text("a.mp4\nmissing.mp4\n")
    assert index(tmp_path / "l.txt", tmp_path / "clips.tsv") == 0
    assert index(tmp_path / "clips.bad.csv", tmp_path / "clips.csv") == 0
    assert len(rows(tmp_path / "clips.tsv.bad.csv")) == 1


def evil_folder(folder: Path, clip: Path) -> dict[str, str]:
    """Files that cannot be probed, with why."""
    size = clip.stat().st_size
    shutil.copy(clip, folder / "good.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n")
    (folder / "cut.mp4").write_bytes(clip.read_bytes()[:1000])
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "new\nline.mp4").touch()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "notes.txt").touch()
    (folder / "readme").touch()
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4"))).touch()
    return {
        "empty.mp4": "the file is empty",
        "text.mp4": "holds text, not media: 'not a video'",
        "cut.mp4": f"its part 'moov' should end at byte {size:,}, but the file ends at 1,000",
        "dangling.mp4": "links to nowhere.mp4, which is not there",
        "folder.mp4": "a folder with a file's name",
        "new\\nline.mp4": "its name holds a line break, so that no list can name it",
        "pipe.mp4": "a named pipe, not a file",
        "\\xff.mp4": "its name is not UTF-8, so that no list can name it",
    }


def test_what_cannot_be_probed_is_named(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v").mkdir()
    evil = evil_folder(tmp_path / "v", clip)
    assert index(tmp_path / "v", tmp_path / "m.csv") == 0
    assert [row["path"] for row in rows(tmp_path / "m.csv")] == ["v/good.mp4"]
    bad = {row["path"]: row["reason"] for row in rows(tmp_path / "m.csv.bad.csv")}
    assert bad == {f"v/{name}": reason for name, reason in evil.items()}
    out, err = capsys.readouterr()
    assert all(f"{name}: {reason}" in err for name, reason in evil.items())
    assert "1 rows" in out
    assert "8 left out" in out
    assert "2 others" in out
    assert ".txt 1" in out
    # Mended files are probed; the list of bad ones goes with the last of them.
    shutil.rmtree(tmp_path / "v")
    (tmp_path / "v").mkdir()
    shutil.copy(clip, tmp_path / "v" / "text.mp4")
    assert index(tmp_path / "v", tmp_path / "m.csv") == 0
    assert [row["path"] for row in rows(tmp_path / "m.csv")] == ["v/text.mp4"]
    assert not (tmp_path / "m.csv.bad.csv").exists()


def test_nothing_good(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    assert index(tmp_path, tmp_path / "m.csv") == 1
    assert not (tmp_path / "m.csv").exists()
    assert len(rows(tmp_path / "m.csv.bad.csv")) == 1


def test_a_file_that_kills_or_holds_its_reader(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mp4", "hangs.mp4", "kills.mp4", "z.mp4"):
        shutil.copy(clip, tmp_path / name)
    probe_file = index_module._probe_file

    def evil(item: tuple[str, str, object]) -> dict[str, str]:
        if item[1].endswith("kills.mp4"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if item[1].endswith("hangs.mp4"):
            time.sleep(1000)
        return probe_file(item)

    monkeypatch.setattr(index_module, "_probe_file", evil)
    assert index(tmp_path, tmp_path / "m.csv", time_limit=1.0) == 0
    assert [row["path"] for row in rows(tmp_path / "m.csv")] == ["a.mp4", "z.mp4"]
    assert {
        os.path.basename(row["path"]): row["reason"] for row in rows(tmp_path / "m.csv.bad.csv")
    } == {
        "hangs.mp4": "took longer than 1 s",
        "kills.mp4": "ended the process that read it (SIGSEGV)",
    }
    # They may have been the machine's fault: another start tries them again.
    monkeypatch.setattr(index_module, "_probe_file", probe_file)
    assert index(tmp_path, tmp_path / "m.csv") == 0
    assert len(rows(tmp_path / "m.csv")) == 4


def test_killed_and_started_again(tmp_path: Path, clip: Path) -> None:
    folder, count = tmp_path / "v", 1500
    folder.mkdir()
    for number in range(count):
        os.link(clip, folder / f"{number:04}.mp4")
    (folder / "bad.mp4").write_text("no video")
    journal = tmp_path / ".m.csv.index.journal"
    arguments = ["data", "index", "v", "-o", "m.csv"]
    for signal_number, many in ((signal.SIGKILL, 100), (signal.SIGINT, 400)):
        started = Started(*arguments, cwd=tmp_path)
        started.wait_until(
            lambda many=many: journal.exists() and journal.read_bytes().count(b"\n") > many
        )
        if signal_number == signal.SIGKILL:
            started.kill()
        else:
            started.signal_all(signal_number)
            assert started.wait() == 130
            assert "run the same command to go on" in started.err.read_text()
        assert started.all_gone()
        assert not (tmp_path / "m.csv").exists()
    before = keys(journal)
    assert 400 <= len(before) < count
    with open(journal, "ab") as file:
        file.write(b'["[\\"torn')
    (tmp_path / ".m.csv.123.tmp").touch()
    (tmp_path / ".m.csv.bad.csv.123.tmp").touch()
    assert mmssl(*arguments, cwd=tmp_path).returncode == 0
    after = keys(journal)
    assert after[: len(before)] == before
    assert len(set(after)) == len(after) == count + 1, "nothing was probed twice"
    resumed = (tmp_path / "m.csv").read_bytes(), (tmp_path / "m.csv.bad.csv").read_bytes()
    for path in (journal, tmp_path / "m.csv", tmp_path / "m.csv.bad.csv"):
        path.unlink()
    assert mmssl(*arguments, "--workers", "3", cwd=tmp_path).returncode == 0
    assert ((tmp_path / "m.csv").read_bytes(), (tmp_path / "m.csv.bad.csv").read_bytes()) == resumed
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == [
        ".m.csv.index.journal"
    ]


def test_only_what_changed_is_probed_again(tmp_path: Path, clip: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, tmp_path / name)
    index(tmp_path, tmp_path / "m.csv")
    first = (tmp_path / "m.csv").read_bytes()
    index(tmp_path, tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == first
    assert len(keys(tmp_path / ".m.csv.index.journal")) == 2
    write(tmp_path / "b.mp4", frames=8)
    shutil.copy(clip, tmp_path / "c.mp4")
    index(tmp_path, tmp_path / "m.csv")
    probed = [json.loads(key)[0] for key in keys(tmp_path / ".m.csv.index.journal")[2:]]
    assert sorted(probed) == [str(tmp_path / "b.mp4"), str(tmp_path / "c.mp4")]
    durations = {row["path"]: row["duration"] for row in rows(tmp_path / "m.csv")}
    assert durations == {"a.mp4": "0.133", "b.mp4": "0.267", "c.mp4": "0.133"}


def test_two_at_once(tmp_path: Path, clip: Path) -> None:
    shutil.copy(clip, tmp_path / "a.mp4")

    def second(answers: "multiprocessing.SimpleQueue[str]") -> None:
        try:
            index(tmp_path, tmp_path / "m.csv")
        except UserError as error:
            answers.put(str(error))

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with open_journal(tmp_path / ".m.csv.index.journal", "probe 1"):
        process = context.Process(target=second, args=(answers,))
        process.start()
        assert "is in use by another process" in answers.get()
        process.join()
    assert index(tmp_path, tmp_path / "m.csv") == 0


def test_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with open_journal(path, "one") as journal:
        journal.add("a", {"x": "é" * 3000})
        journal.add("b", [1])
        journal.add("a", "new")
    with open_journal(path, "one") as journal:
        assert (journal.get("a", None), journal.get("b", None)) == ("new", [1])
        assert journal.get("c", 7) == 7
        journal.add("c", "é" * 3000)
        assert journal.get("c", 7) == "é" * 3000
    whole = path.read_bytes()
    for cut in range(len(whole) - 50, len(whole)):
        path.write_bytes(whole[:cut])
        with open_journal(path, "one") as journal:
            assert "b" in journal
            assert "c" not in journal
    with open_journal(path, "two") as journal:
        assert "a" not in journal
    assert not path.exists(), "nothing is in it"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As a full disk, or a share of it that is used up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "v").mkdir()
    for number in range(9):
        os.link(clip, tmp_path / "v" / f"{number}.mp4")
    message = r"cannot be written any more \(File too large\): make room, then run the same command"
    with files_no_larger_than(1000), pytest.raises(UserError, match=message):
        index(tmp_path / "v", tmp_path / "m.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
    assert index(tmp_path / "v", tmp_path / "m.csv") == 0
    path = tmp_path / "j"
    with pytest.raises(UserError, match="cannot be written any more"):
        fill(path)
    with open_journal(path, "one") as journal:
        known = [number for number in range(20) if f"key {number}" in journal]
    assert known == [0, 1, 2]


def fill(path: Path) -> None:
    """Keep 20 lines of 20 bytes in a journal, whose own line is one of 19, where 80 fit."""
    with files_no_larger_than(80 + 5), open_journal(path, "one") as journal:
        for number in range(20):
            journal.add(f"key {number}", "valu")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere", {}, "no such folder or list"),
        ("v", {"output": "m.json"}, "ends in .csv or .tsv"),
        ("v", {"output": "x/m.csv"}, "there is no folder"),
        ("v", {"kinds": "video,sound"}, "'sound' is none of video, audio, image"),
        ("v", {}, "no video or audio or image files in it"),
        ("l.csv", {}, "l.csv:1: no column 'path'"),
        ("short.csv", {}, "short.csv:3: 1 values for 2 columns"),
        ("l.csv", {"output": "l.csv"}, "is the list itself"),
        ("l.csv", {"labels": "folder"}, "is for a folder"),
        ("empty.txt", {}, "lists no files"),
        ("a.mp4", {}, "is no text"),
        ("latin.csv", {}, "latin.csv:3: is not UTF-8 text"),
        ("x" * 300, {}, "no such folder or list"),
        ("v", {"output": "x" * 300 + ".csv"}, "File name too long"),
        ("v.csv.bad.csv", {"output": "v.csv"}, "v.csv.bad.csv is written beside it"),
    ],
)
def test_mistakes(
    tmp_path: Path, clip: Path, source: str, options: dict[str, str], message: str
) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "notes.txt").touch()
    (tmp_path / "l.csv").write_text("file,label\na.mp4,b\n")
    (tmp_path / "short.csv").write_text("path,label\na.mp4,b\nb.mp4\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.csv").write_bytes("path,label\na.mp4,b\na.mp4,Männer\n".encode("latin-1"))
    (tmp_path / "v.csv.bad.csv").write_text("path\na.mp4\n")
    shutil.copy(clip, tmp_path / "a.mp4")
    output = tmp_path / options.pop("output", "m.csv")
    with pytest.raises(UserError) as error:
        index(tmp_path / source, output, **options)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "m.csv").exists()
    assert not list(tmp_path.glob(".*")), "no journal of nothing"


def test_help_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for words in (["data"], ["data", "index"], ["data", "check"]):
        result = mmssl(*words, "--help", cwd=tmp_path, env=env)
        assert (result.returncode, result.stderr) == (0, "")
