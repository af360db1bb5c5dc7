"""``mmssl data check``: every problem under its own name, and no good file accused."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import numbered_frame, write
from small_runs import MMSSL, Started, mmssl

from mmssl import Media, Sample
from mmssl.errors import UserError
from mmssl_media.commands import check as check_module
from mmssl_media.commands.check import check
from mmssl_media.commands.index import index
from mmssl_media.inspection import PROBLEMS
from mmssl_media.journal import Journal
from mmssl_media.manifest import Manifest


def noise(seconds: float, rate: int = 44_100) -> np.ndarray:
    samples = np.random.default_rng(0).normal(size=round(seconds * rate))
    return (0.1 * samples).astype(np.float32)


def both(path: Path, seconds: float = 3.0, **more: object) -> Path:
    """Video and sound, each different at every moment."""
    rate = int(str(more.get("rate", 44_100)))
    return write(  # type: ignore[call-overload]
        path, **{"frames": round(10 * seconds), "fps": 10, "sound": noise(seconds, rate), **more}
    )


def pictures(path: Path, draw: Callable[[int], np.ndarray], frames: int = 30) -> Path:
    """A video of drawn frames, 10 a second, with noise as its sound."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("aac", rate=44_100, layout="mono")
        for number in range(frames):
            out.mux(video.encode(av.VideoFrame.from_ndarray(draw(number), format="rgb24")))
        out.mux(video.encode(None))
        sound = noise(frames / 10)
        for first in range(0, len(sound) - 1024, 1024):
            plane = np.ascontiguousarray(sound[None, first : first + 1024])
            frame = av.AudioFrame.from_ndarray(plane, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44_100, first
            out.mux(audio.encode(frame))
        out.mux(audio.encode(None))
    return path


def image(path: Path) -> Path:
    with av.open(str(path), "w", format="image2") as out:
        stream = out.add_stream("png" if path.suffix == ".png" else "mjpeg", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24" if path.suffix == ".png" else "yuvj420p"
        frame = av.VideoFrame.from_ndarray(numbered_frame(9), format="rgb24")
        out.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def problems(report: Path) -> dict[str, list[str]]:
    """The names of what is wrong, by the file's name."""
    files = json.loads(report.read_text())["files"]
    return {
        os.path.basename(file["path"]): sorted({found["problem"] for found in file["problems"]})
        for file in files
    }


GOOD: dict[str, dict[str, object]] = {
    "good.mp4": {},
    "reordered.mp4": {"b_frames": 3},
    "good.mkv": {"codec": "libx265", "sound_codec": "flac"},
    "good.webm": {"codec": "libvpx-vp9", "sound_codec": "libopus", "rate": 48_000},
    "good.avi": {"codec": "mpeg4", "sound_codec": "mp3"},
    "good.mov": {"codec": "mjpeg", "sound_codec": "pcm_s16le"},
    "good.ts": {"b_frames": 2},
    "av1.mp4": {"codec": "libsvtav1"},
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "index_first.mp4": {"options": {"movflags": "faststart"}},
    "long.mp4": {"seconds": 12, "gop": 250},
    "short.mp4": {"seconds": 0.4},
    "a second late.mp4": {"video_start": 0.9, "sound": noise(3.9)},
    "uneven.mp4": {"times": list(np.cumsum(np.tile([1, 1, 3, 1, 4], 6)) / 20)},
    "upright.mp4": {"rotation": 90},
    "one picture.mp4": {"frames": 1, "fps": 1, "sound": noise(1)},
    "sound.wav": {"frames": 0, "sound_codec": "pcm_s16le"},
    "sound.mp3": {"frames": 0, "sound_codec": "libmp3lame"},
    "sound.flac": {"frames": 0, "sound_codec": "flac"},
    "sound.ogg": {"frames": 0, "sound_codec": "libopus", "rate": 48_000},
    "sound.m4a": {"frames": 0},
}


def test_no_good_file_is_accused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in GOOD.items():
        both(tmp_path / name, **content)  # type: ignore[arg-type]
    for name in ("image.png", "image.jpg"):
        image(tmp_path / name)
    # As telephones write them, and as some tools pad them.
    motion, padded = tmp_path / "motion.jpg", tmp_path / "padded.png"
    video = (tmp_path / "good.mp4").read_bytes()
    motion.write_bytes((tmp_path / "image.jpg").read_bytes() + video)
    padded.write_bytes((tmp_path / "image.png").read_bytes() + bytes(6000))
    # Pictures without a container.
    with av.open(str(tmp_path / "raw.mjpeg"), "w", format="mjpeg") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for number in range(50):
            picture = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    report = tmp_path / "r.json"
    code = check(tmp_path, report=report, good=tmp_path / "good.csv")
    assert problems(report) == {"raw.mjpeg": ["no-audio"]}
    assert code == 1
    with Media(Sample("m", str(tmp_path / "raw.mjpeg"))) as media:
        assert media.length == pytest.approx(2.0)
    assert f"{len(GOOD) + 4} of {len(GOOD) + 5} are good" in capsys.readouterr().out
    listed = Manifest(path=tmp_path / "good.csv")
    assert {listed.sample(row).id for row in range(len(listed))} == {
        *GOOD,
        "image.png",
        "image.jpg",
        "motion.jpg",
        "padded.png",
    }


def test_parts_are_of_the_kind_that_their_ids_or_bytes_say(tmp_path: Path) -> None:
    contents = {
        "a.m4a": both(tmp_path / "a.m4a", frames=0).read_bytes(),
        "b": both(tmp_path / "b.mp3", frames=0, sound_codec="libmp3lame").read_bytes(),
        "c.png": image(tmp_path / "c.png").read_bytes(),
        "d.mp4": both(tmp_path / "d.mp4", frames=0).read_bytes(),
    }
    lines, offset = ["path,id,offset,size"], 0
    for name, content in contents.items():
        lines.append(f"a.tar,{name},{offset},{len(content)}")
        offset += len(content)
    (tmp_path / "a.tar").write_bytes(b"".join(contents.values()))
    (tmp_path / "m.csv").write_text("\n".join(lines))
    assert check(tmp_path / "m.csv", report=tmp_path / "r.json") == 1
    files = json.loads((tmp_path / "r.json").read_text())["files"]
    found = [(file["id"], [p["problem"] for p in file["problems"]]) for file in files]
    assert found == [("d.mp4", ["no-video"])]


def flipped(content: bytes) -> bytes:
    """Some bytes of the middle half are others."""
    rng = np.random.default_rng(0)
    damaged = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(len(content) // 4, 3 * len(content) // 4, 60)
    damaged[places] ^= rng.integers(1, 256, 60).astype(np.uint8)
    return damaged.tobytes()


def make_bad(folder: Path) -> dict[str, list[str]]:
    """Files with one thing wrong each, and what that is."""
    good = both(folder / "good.mp4").read_bytes()
    early = both(folder / "e.mp4", options={"movflags": "faststart"}).read_bytes()
    (folder / "e.mp4").unlink()
    webm = both(folder / "good.webm", **GOOD["good.webm"]).read_bytes()  # type: ignore[arg-type]
    avi = both(folder / "good.avi", **GOOD["good.avi"]).read_bytes()  # type: ignore[arg-type]
    h265 = both(folder / "good.mkv", codec="libx265").read_bytes()
    picture = image(folder / "i.jpg").read_bytes()
    flac = both(folder / "g.flac", frames=0, sound_codec="flac").read_bytes()
    (folder / "g.flac").unlink()
    contents = {
        "cut_10.mp4": good[:10],
        "cut_half.mp4": good[: len(good) // 2],
        "cut_last_byte.mp4": good[:-1],
        "no_index.mp4": good[: good.rindex(b"moov") - 4],
        "cut.jpg": image(folder / "i.jpg").read_bytes()[:-2],
        "cut.png": image(folder / "i.png").read_bytes()[:-20],
        # A preview's end is not the picture's.
        "preview.jpg": b"\xff\xd8\xff\xe1\x00\x06\xff\xd8\xff\xd9" + picture[2:-2],
        "cut_index_first.mp4": early[: len(early) // 2],
        "cut.webm": webm[: len(webm) // 2],
        "cut.avi": avi[: len(avi) // 2],
        "cut.flac": flac[: len(flac) // 2],
    }
    (folder / "i.jpg").unlink()
    (folder / "i.png").unlink()
    wanted = {name: ["truncated"] for name in contents}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "empty.mp4").touch()
    (folder / "flipped.mp4").write_bytes(flipped(good))
    (folder / "flipped.mkv").write_bytes(flipped(h265))
    (folder / "page.mp4").write_text("<html>404 Not Found: é</html>\n" * 20)
    (folder / "webm.mp4").write_bytes(webm)
    (folder / "mp4.avi").write_bytes(good)
    (folder / "mp4.jpg").write_bytes(good)
    for name in ("picture.mp4", "picture.mkv", "picture.mp3"):
        (folder / name).write_bytes(picture)
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    nan = np.where(np.arange(3 * 8000) == 12_000, np.nan, noise(3, 8000))
    both(folder / "nan.wav", frames=0, sound=nan, rate=8000, sound_codec="pcm_f32le")
    both(folder / "silent.mp4", sound=np.zeros(3 * 44_100, np.float32))
    both(folder / "faint.mp4", sound=noise(3) / 2000)
    pictures(folder / "black.mp4", lambda _: np.full((64, 64, 3), 2, np.uint8))
    pictures(folder / "frozen.mp4", lambda _: numbered_frame(77))
    write(folder / "video_only.mp4", frames=30, fps=10)
    write(folder / "sound_only.mp4", sound=noise(3))
    both(folder / "sound_ends_early.mp4", sound=noise(1))
    both(folder / "sound_ends_early.mkv", sound=noise(1))
    both(folder / "video_ends_early.mp4", frames=5)
    both(folder / "much_longer.mkv", frames=200, sound=noise(3))
    both(folder / "sound_begins_late.mp4", seconds=4, sound=noise(2), sound_start=2)
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "two\nlines.mp4").write_bytes(good)
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4"))).write_bytes(good)
    return wanted | {
        "empty.mp4": ["empty"],
        "flipped.mp4": ["corrupt"],
        "flipped.mkv": ["corrupt"],
        "page.mp4": ["wrong-extension"],
        "webm.mp4": ["wrong-extension"],
        "mp4.avi": ["wrong-extension"],
        "mp4.jpg": ["wrong-extension"],
        "picture.mp4": ["wrong-extension"],
        "picture.mkv": ["wrong-extension"],
        "picture.mp3": ["wrong-extension"],
        "random.mp4": ["corrupt"],
        "nan.wav": ["corrupt"],
        "silent.mp4": ["silent"],
        "faint.mp4": ["silent"],
        "black.mp4": ["black"],
        "frozen.mp4": ["frozen"],
        "video_only.mp4": ["no-audio"],
        "sound_only.mp4": ["no-video"],
        "sound_ends_early.mp4": ["different-length"],
        "sound_ends_early.mkv": ["different-length"],
        "video_ends_early.mp4": ["different-length"],
        "much_longer.mkv": ["different-length"],
        "sound_begins_late.mp4": ["different-length"],
        "dangling.mp4": ["dangling-link"],
        "folder.mp4": ["folder"],
        "pipe.mp4": ["not-a-file"],
        "two\\nlines.mp4": ["bad-name"],
        "\\xff.mp4": ["bad-name"],
    }


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "v").mkdir()
    return folder / "v", make_bad(folder / "v")


def test_each_problem_under_its_own_name(
    bad: tuple[Path, dict[str, list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, wanted = bad
    report = tmp_path / "r.json"
    assert check(folder, report=report, good=tmp_path / "good.csv") == 1
    assert problems(report) == wanted
    content = json.loads(report.read_text())
    goods = ["good.avi", "good.mkv", "good.mp4", "good.webm"]
    assert (content["checked"], content["good"]) == (len(wanted) + 4, 4)
    assert content["problems"]["truncated"] == 11
    assert sum(content["problems"].values()) == len(wanted)
    assert {name for names in wanted.values() for name in names} <= set(PROBLEMS)
    assert (tmp_path / "good.csv").read_text().splitlines() == [
        "path",
        *(str(folder / name) for name in goods),
    ]
    out = capsys.readouterr().out
    reasons = {file["path"]: file["problems"][0]["reason"] for file in content["files"]}
    assert len(set(map(tuple, wanted.values()))) == 14
    for name, (problem,) in wanted.items():
        path = f"{folder}/{name}"
        assert f"{path}: {problem}: {reasons[path]}\n" in out
    assert f"4 of {len(wanted) + 4} are good, {len(wanted)} are not" in out


def test_reasons_have_figures(bad: tuple[Path, dict[str, list[str]]], tmp_path: Path) -> None:
    check(bad[0], report=tmp_path / "r.json")
    files = json.loads((tmp_path / "r.json").read_text())["files"]
    reasons = {os.path.basename(f["path"]): f["problems"][0]["reason"] for f in files}
    # AAC begins a frame of 23 ms early, and ends with a whole one.
    assert reasons["sound_begins_late.mp4"] == "the sound begins 1.98 s after the video"
    assert reasons["sound_ends_early.mkv"] == "the sound ends 1.98 s before the video"
    assert reasons["sound_ends_early.mp4"] == "the sound ends 2.00 s before the video"
    assert reasons["video_ends_early.mp4"] == "the sound ends 2.50 s after the video"
    assert reasons["cut_10.mp4"].endswith("but the file ends at 10")
    assert reasons["webm.mp4"] == "named .mp4, but the container is matroska"
    assert "<html>404 Not Found: é</html>" in reasons["page.mp4"]
    assert reasons["no_index.mp4"] == "it lacks the part 'moov', which is written last"
    assert reasons["nan.wav"] == "sound from 1.00 s on: the sound holds what is not a number"
    assert reasons["silent.mp4"] == "digital silence in 3 places"
    assert "nowhere.mp4" in reasons["dangling.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    both(tmp_path / "a.mp4").chmod(0)
    (tmp_path / "closed").mkdir(mode=0)
    assert check(tmp_path, report=tmp_path / "r.json") == 1
    (tmp_path / "closed").chmod(0o700)
    assert problems(tmp_path / "r.json") == {"a.mp4": ["unreadable"], "closed": ["unreadable"]}


@pytest.mark.parametrize("container", ["mp4", "webm", "avi"])
def test_cut_anywhere(tmp_path: Path, container: str) -> None:
    whole = both(tmp_path / f"w.{container}", **GOOD[f"good.{container}"]).read_bytes()  # type: ignore[arg-type]
    (tmp_path / f"w.{container}").unlink()
    rng = np.random.default_rng(0)
    cuts = {1, 4, 8, 9, 12, 100, *rng.integers(1, len(whole), 20).tolist(), len(whole) - 1}
    for cut in cuts:
        (tmp_path / f"{cut}.{container}").write_bytes(whole[:cut])
    assert check(tmp_path, report=tmp_path / "r.json") == 1
    found = problems(tmp_path / "r.json")
    assert len(found) == len(cuts), "none is called good"
    # Of a few bytes nobody can tell what they were to be.
    told = {name: names for name, names in found.items() if int(name.split(".")[0]) >= 12}
    assert set(map(tuple, told.values())) == {("truncated",)}, told


def test_allowed_problems_are_none(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", frames=30, fps=10)
    both(tmp_path / "b.mp4", sound=np.zeros(3 * 44_100, np.float32))
    assert check(tmp_path) == 1
    assert check(tmp_path, allow="silent") == 1
    assert check(tmp_path, allow="silent, no-audio", good=tmp_path / "g.csv") == 0
    assert len(Manifest(path=tmp_path / "g.csv")) == 2


def manifest_of(folder: Path) -> Path:
    """Rows with quirks: segments, quotes, CRLF, an empty line, no line break at the end."""
    both(folder / "b, c.mp4", seconds=6)
    shutil.copy(folder / "b, c.mp4", folder / "d.mp4")
    (folder / "cut.mp4").write_bytes((folder / "d.mp4").read_bytes()[:20_000])
    path = folder / "m.csv"
    path.write_bytes(
        b"label,path,start,end,note\r\n"
        b'x,"b, c.mp4",1,2.5,"say ""so"""\r\n'
        b"\r\n"
        b"y,cut.mp4,,,\r\n"
        b"y,missing.mp4,,,\r\n"
        b'x,"b, c.mp4",3,9,over\r\n'
        b"z,d.mp4,20,30,beyond\r\n"
        b'z,"d.mp4",,,last'
    )
    return path


def test_the_good_manifest_keeps_lines_as_they_are(tmp_path: Path) -> None:
    path = manifest_of(tmp_path)
    report = tmp_path / "r.json"
    assert check(path, report=report, good=tmp_path / "good.csv") == 1
    files = json.loads(report.read_text())["files"]
    found = {file["id"]: [p["problem"] for p in file["problems"]] for file in files}
    assert found == {
        "cut.mp4": ["truncated"],
        "missing.mp4": ["missing"],
        "d.mp4#20-30": ["corrupt"],
    }
    lines = path.read_bytes().splitlines(keepends=True)
    assert (tmp_path / "good.csv").read_bytes() == lines[0] + lines[1] + lines[5] + lines[7] + b"\n"
    (tmp_path / "elsewhere").mkdir()
    check(path, good=tmp_path / "elsewhere" / "good.csv")
    here, there = (Manifest(path=tmp_path / f / "good.csv") for f in ("", "elsewhere"))
    for row in range(len(here)):
        one, other = here.sample(row), there.sample(row)
        assert (one.media, one.start, one.end, one.label, one.fields) == (
            other.media,
            other.start,
            other.end,
            other.label,
            other.fields,
        )


def test_a_parquet_manifest(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    manifest_of(tmp_path)
    paths, starts = ["cut.mp4", "b, c.mp4", "d.mp4"], [None, 1.5, None]
    table = pyarrow.table({"path": paths, "start": starts, "imu": ["x", "y", "z"]})
    parquet.write_table(table, tmp_path / "m.parquet")
    assert check(tmp_path / "m.parquet", good=tmp_path / "g.csv") == 1
    data = Manifest(path=tmp_path / "g.csv")
    assert [data.sample(row).id for row in range(2)] == ["b, c.mp4#1.5-", "d.mp4"]
    assert [data.sample(row).fields for row in range(len(data))] == [{"imu": "y"}, {"imu": "z"}]
    assert index(tmp_path / "m.parquet", tmp_path / "i.csv") == 0
    assert Manifest(path=tmp_path / "i.csv").sample(1).fields["duration"] == "6.000"


def test_known_files_are_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest_of(tmp_path)
    report = tmp_path / "r.json"
    check(path, report=report)
    first = report.read_bytes()
    journal = (tmp_path / ".r.json.check.journal").read_bytes()

    def never(item: object) -> None:
        raise AssertionError("a known file is decoded")

    inspect = check_module._inspect
    monkeypatch.setattr(check_module, "_inspect", never)
    assert check(path, report=report) == 1
    assert report.read_bytes() == first
    assert (tmp_path / ".r.json.check.journal").read_bytes() == journal
    monkeypatch.setattr(check_module, "_inspect", inspect)
    both(tmp_path / "cut.mp4")
    check(path, report=report)
    assert "cut.mp4" not in problems(report)


def test_files_that_hold_or_kill_their_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = both(tmp_path / "a.mp4")
    shutil.copy(good, tmp_path / "kills.mp4")
    shutil.copy(good, tmp_path / "hangs.mp4")
    inspect = check_module._inspect

    def evil(item: tuple[int, object, int, str]) -> object:
        media = item[1].media  # type: ignore[attr-defined]
        if media.endswith("kills.mp4"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if media.endswith("hangs.mp4"):
            time.sleep(1000)
        return inspect(item)  # type: ignore[arg-type]

    monkeypatch.setattr(check_module, "_inspect", evil)
    assert check(tmp_path, report=tmp_path / "r.json", time_limit=3) == 1
    assert problems(tmp_path / "r.json") == {
        "hangs.mp4": ["too-slow"],
        "kills.mp4": ["kills-reader"],
    }


def test_killed_and_started_again(tmp_path: Path) -> None:
    clip = both(tmp_path / "a.mp4", seconds=1)
    (tmp_path / "v").mkdir()
    for number in range(150):
        os.link(clip, tmp_path / "v" / f"{number:03}.mp4")
    (tmp_path / "v" / "x.mp4").write_bytes(clip.read_bytes()[:5000])
    arguments = ["data", "check", "v", "--json", "r.json"]
    journal = tmp_path / ".r.json.check.journal"
    started = Started(*arguments, cwd=tmp_path)
    started.wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 10)
    started.kill()
    assert started.all_gone()
    begun = journal.read_bytes().count(b"\n")
    assert begun < 150
    result = mmssl(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert "150 of 151 are good, 1 are not" in result.stdout
    lines = journal.read_text().splitlines()[1:]
    assert len({json.loads(line)[0] for line in lines}) == len(lines) == 151


def test_more_than_fit_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(60):
        (tmp_path / f"{number:02}.mp4").touch()
    assert check(tmp_path) == 1
    assert "... and 10 more: use --json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere"}, "no such manifest or folder"),
        ({"allow": "quiet"}, "--allow quiet: is no problem's name; there are: missing,"),
        ({"report": "x/r.json"}, "--json"),
        ({"report": "m.csv"}, "is the manifest itself"),
        ({"good": "g.tsv"}, "must end in .csv"),
        ({"good": "g.csv", "report": "g.csv"}, "is the report's file"),
        ({"source": "v"}, "no media files in it"),
        ({"source": "wrong.csv"}, "no column 'path'"),
        ({"source": "l.txt"}, "l.txt -o manifest.csv"),
        ({"source": "x" * 300}, "no such manifest or folder"),
        ({"report": "x" * 300}, "File name too long"),
    ],
)
def test_mistakes(tmp_path: Path, options: dict[str, str], message: str) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "m.csv").write_text("path\na.mp4\n")
    (tmp_path / "wrong.csv").write_text("file\na.mp4\n")
    (tmp_path / "l.txt").write_text("a.mp4\nb.mp4\n")
    source = tmp_path / options.pop("source", "m.csv")
    paths = {name: tmp_path / value for name, value in options.items() if name != "allow"}
    with pytest.raises(UserError) as error:
        check(source, **paths, allow=options.get("allow", ""))  # type: ignore[arg-type]
    assert message in str(error.value)
    assert not (tmp_path / "g.csv").exists()


def test_a_list_that_is_a_pipe_or_changes(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"path\na.mp4\n")
    os.close(writing)
    try:
        with pytest.raises(UserError, match="is no file but a pipe"):
            check(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
    path = tmp_path / "m.csv"
    path.write_text("path\na.mp4\nb.mp4\n")
    data = Manifest(path=path)
    assert len(data) == 2
    path.write_text("path\na.mp4\n")
    with pytest.raises(UserError, match="has changed since it was first read"):
        data.sample(1)


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v").mkdir()
    both(tmp_path / "v" / "a.mp4", seconds=0.5)
    report, good = tmp_path / "r.json", tmp_path / "g.csv"
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[str] = context.SimpleQueue()

    def second(**outputs: Path) -> None:
        try:
            check(tmp_path / "v", **outputs)  # type: ignore[arg-type]
            answers.put("nothing is wrong")
        except UserError as error:
            answers.put(str(error))

    write_folder = check_module._write_folder

    def meanwhile(path: Path, *rest: object) -> None:
        write_folder(path, *rest)  # type: ignore[arg-type]
        for outputs in (
            {"report": report},
            {"good": good},
            {"report": tmp_path / "s", "good": good},
        ):
            process = context.Process(target=second, kwargs=outputs)
            process.start()
            assert "is in use by another process" in answers.get()
            process.join()

    monkeypatch.setattr(check_module, "_write_folder", meanwhile)
    assert check(tmp_path / "v", report=report, good=good) == 0
    assert len(Manifest(path=good)) == 1
    hidden = sorted(path.name for path in tmp_path.glob(".*"))
    assert hidden == [".r.json.check.journal"]
    # What another command knows of the same file is its own.
    monkeypatch.setattr(check_module, "_write_folder", write_folder)
    check(tmp_path / "v", good=good)
    known = (tmp_path / ".g.csv.check.journal").read_bytes()
    assert index(tmp_path / "v", good) == 0
    assert (tmp_path / ".g.csv.check.journal").read_bytes() == known


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both(tmp_path / "a.mp4", seconds=0.5)
    before = set(multiprocessing.active_children())

    def add(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    keep = Journal.add
    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(UserError) as error:
        check(tmp_path, report=tmp_path / "r.json")
    assert "(No space left on device): make room, then run the same command" in str(error.value)
    assert set(multiprocessing.active_children()) == before, "all have gone at once"
    monkeypatch.setattr(Journal, "add", keep)
    assert check(tmp_path, report=tmp_path / "r.json") == 0


def test_progress_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmssl.cli.terminal._LINE_EVERY", 0.0)
    (tmp_path / "a.mp4").touch()
    check(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines[:2]] == [["listing", "1"], ["checking", "1/1"]]


def test_from_a_folder_to_a_run(tmp_path: Path) -> None:
    assert Path(MMSSL).exists()
    (tmp_path / "v" / "dog").mkdir(parents=True)
    both(tmp_path / "v" / "dog" / "a.mp4")
    both(tmp_path / "v" / "dog" / "silent.mp4", sound=np.zeros(3 * 44_100, np.float32))
    indexed = mmssl("data", "index", "v", "-o", "m.csv", "--labels", "folder", cwd=tmp_path)
    assert (indexed.returncode, indexed.stderr) == (0, "")
    found = mmssl("data", "check", "m.csv", "--good", "good.csv", cwd=tmp_path)
    assert found.returncode == 1
    assert "v/dog/silent.mp4: silent: digital silence in 3 places" in found.stdout
    assert mmssl("data", "check", "good.csv", cwd=tmp_path).returncode == 0
    data = Manifest(path=tmp_path / "good.csv")
    assert (len(data), data.classes) == (1, ("dog",))
    assert data.sample(0).fields["rate"] == "44100"
    wrong = mmssl("data", "check", "nowhere", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "mmssl: nowhere: no such manifest or folder\n")
