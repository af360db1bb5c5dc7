"""Copies made for training: the same frames at the same times, smaller and quicker to reach."""

import csv
import errno
import functools
import http.server
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import pytest
from media_files import click_times, clicks, number_of, write
from small_runs import Started, mmssl

from mmssl import BadMedia, Media, Sample, UserError, Window
from mmssl_media.commands.transcode import transcode as command
from mmssl_media.decode import frames_from, pcm
from mmssl_media.folder import Folder
from mmssl_media.manifest import Manifest
from mmssl_media.transcode import Settings, transcode
from mmssl_media.video import Video

CLICKS = [0.3, 0.9, 1.7]
SETTINGS = Settings(short_side=64, gop=12, crf=23)


def make(path: Path, **more: Any) -> Path:
    """Two seconds of 128 by 96 pixels with three clicks."""
    rate = more.pop("rate", 48_000)
    values = {"frames": 60, "size": (128, 96), "sound": clicks(CLICKS, 2, rate), **more}
    return write(path, rate=rate, **values)


def copy_of(path: Path, settings: Settings = SETTINGS) -> Path:
    folder = path.parent / "copies"
    return folder / transcode(Sample("a", str(path)), folder, path.name, settings)


def shown(path: Path) -> list[tuple[float, int]]:
    """Times and numbers of all frames, upright."""
    with Media(Sample("a", str(path))) as media:
        return [
            (seconds, number_of(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)))
            for seconds, frame in frames_from(media, -1.0)
        ]


def heard(path: Path) -> list[float]:
    with Media(Sample("a", str(path))) as media:
        return click_times(pcm(media, 0.0, 3 * 48_000, 48_000), 48_000)


def keyframes(path: Path) -> list[int]:
    """Places of the keyframes among all frames, in the order in which they are shown."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
    order = sorted((p.pts, p.is_keyframe) for p in packets if p.pts is not None)
    return [place for place, (_, key) in enumerate(order) if key] + [len(order)]


CASES: dict[str, dict[str, Any]] = {
    "b_frames.mp4": {"b_frames": 3, "gop": 60},
    "variable.mkv": {"times": [i / 30 + 0.01 * (i % 3) for i in range(60)], "b_frames": 2},
    "turned.mp4": {"rotation": 90},
    "turned_back.mp4": {"rotation": 270},
    "late_sound.mp4": {"sound_start": 0.25},
    "late_video.mkv": {"video_start": 0.4, "sound_codec": "libopus"},
    "late_video.mov": {"video_start": 0.3, "sound_codec": "alac"},
    "late_sound_mp3.mp4": {"sound_start": 0.25, "sound_codec": "libmp3lame", "rate": 44_100},
    "late_flac.mkv": {"sound_start": 0.3, "video_start": 0.1, "sound_codec": "flac"},
    "ten_bit.mp4": {"codec": "libx265", "pixels": "yuv420p10le", "b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9", "sound_codec": "libopus"},
    "mpeg4.avi": {"codec": "mpeg4", "sound_codec": "libmp3lame", "b_frames": 2},
    "mjpeg.avi": {"codec": "mjpeg", "sound_codec": "pcm_s16le"},
    "broadcast.ts": {"codec": "mpeg2video", "b_frames": 2, "sound_codec": "mp2"},
}


@pytest.mark.parametrize("name", CASES)
def test_frames_and_clicks_are_where_they_were(name: str, tmp_path: Path) -> None:
    original = make(tmp_path / name, **CASES[name])
    copy = copy_of(original)
    before, after = shown(original), shown(copy)
    assert [number for _, number in after] == [number for _, number in before]
    assert len({number for _, number in after}) == 60
    assert np.allclose([t for t, _ in after], [t for t, _ in before], atol=1e-3)
    assert np.allclose(heard(copy), heard(original), atol=1e-3)
    assert len(heard(copy)) == 3
    places = keyframes(copy)
    assert places[0] == 0
    assert max(b - a for a, b in pairwise(places)) <= 12
    with av.open(str(copy)) as container:
        video = container.streams.video[0]
        turned = "turned" in name
        assert (video.width, video.height) == ((64, 84) if turned else (84, 64))
        assert (video.codec_context.name, video.pix_fmt) == ("h264", "yuv420p")
        codec = container.streams.audio[0].codec_context.codec.canonical_name
        kept = {"libopus": "opus", "alac": "alac", "libmp3lame": "mp3"}
        assert codec == kept.get(CASES[name].get("sound_codec", ""), "aac")
        # What is read over the network can begin before all of it is there.
        data = copy.read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")


def test_every_frame_can_be_reached_from_its_keyframe(tmp_path: Path) -> None:
    """Closed groups: what is decoded from a seek on is what is decoded from the beginning."""
    copy = copy_of(make(tmp_path / "a.mp4", b_frames=3, gop=60))
    everything = shown(copy)
    for number in range(0, 60, 7):
        with Media(Sample("a", str(copy))) as media:
            time, frame = next(frames_from(media, number / 30))
            assert number_of(frame.to_ndarray(format="rgb24")) == number
            assert (time, number) == pytest.approx(everything[number])


def test_copied_sound_is_the_same_to_the_byte(tmp_path: Path) -> None:
    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.size]

    original = make(tmp_path / "a.mp4")
    assert packets(copy_of(original)) == packets(original)


@pytest.mark.parametrize("size", [(40, 30), (41, 31), (64, 64), (200, 51)])
def test_nothing_is_enlarged(size: tuple[int, int], tmp_path: Path) -> None:
    original = make(tmp_path / "a.mkv", size=size, pixels="yuv444p", frames=5)
    with av.open(str(copy_of(original))) as container:
        video = container.streams.video[0]
        expected = tuple(2 * (side // 2) for side in size)
        assert (video.width, video.height) == expected


@pytest.mark.parametrize(("codec", "pixels"), [("libx264", ""), ("mjpeg", "yuvj420p")])
def test_colours_are_read_as_before(codec: str, pixels: str, tmp_path: Path) -> None:
    """Also where the original uses the full range of values."""
    path = tmp_path / "colours.mkv"
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250], [235, 235, 235]], np.uint8)
    image = np.repeat(np.repeat(colours.reshape(2, 2, 3), 32, 0), 32, 1)
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream(codec, rate=10)
        video.width = video.height = 64
        video.pix_fmt = pixels or "yuv420p"
        for _ in range(4):
            out.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(video.encode(None))

    def corners(path: Path) -> np.ndarray:
        video = Video(frames=1, short_side=64, crop=64)
        with Media(Sample("a", str(path))) as media:
            frame = video.read(media, Window(0.0, 0.0), None).numpy()[0]
        return frame[16::32, 16::32].astype(int)

    assert np.abs(corners(copy_of(path)) - corners(path)).max() <= 6


def test_a_file_without_video_is_copied_as_it_is(tmp_path: Path) -> None:
    sound = write(tmp_path / "a.wav", sound=clicks(CLICKS, 2, 44_100), sound_codec="pcm_s16le")
    copy = copy_of(sound)
    assert copy.suffix == ".wav"
    assert copy.read_bytes() == sound.read_bytes()


def test_a_part_of_an_archive(tmp_path: Path) -> None:
    video = make(tmp_path / "a.mp4")
    data = video.read_bytes()
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"x" * 512 + data + b"y" * 100)
    sample = Sample("a", str(archive), span=(512, len(data)))
    copy = tmp_path / transcode(sample, tmp_path, "copy", SETTINGS)
    assert shown(copy) == shown(video)


def test_nothing_is_left_of_a_file_that_cannot_be_copied(tmp_path: Path) -> None:
    whole = make(tmp_path / "a.mkv", frames=60, sound=None)
    data = whole.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    (tmp_path / "none.mkv").write_bytes(b"nothing" * 100)
    out = tmp_path / "out"
    for name in ("cut.mkv", "none.mkv"):
        with pytest.raises(BadMedia):
            transcode(Sample("b", str(tmp_path / name)), out, "copy", SETTINGS)
    assert not out.exists() or not list(out.iterdir())


def run_here(source: Path, out: Path, **more: Any) -> int:
    """The command in this process, which has imported everything already."""
    values = {"short_side": 48, "gop": 12, "crf": 23, "workers": 2, "time_limit": 60.0, **more}
    return command(source, out, **values)


def test_a_full_disk_is_no_fault_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    make(videos / "a.mp4", frames=5, sound=None)

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mmssl_media.transcode.transcode", full)
        with pytest.raises(UserError, match="cannot be written: No space left"):
            run_here(videos, tmp_path / "out")
    assert run_here(videos, tmp_path / "out") == 0
    assert [row["id"] for row in rows_of(tmp_path / "out" / "manifest.csv")] == ["a.mp4"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_manifest_means_what_the_original_means(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/b.mkv", "c.mp4"):
        make(tmp_path / name, sound=None)
    (tmp_path / "c.mp4").write_bytes(b"no video, this")
    manifest = tmp_path / "list.tsv"
    lines = [
        "path\tlabel\tstart\tend\tid\ttext\twidth",
        "sub/b.mkv\tdog\t0.5\t1.5\t\tfirst, \"quoted\"\t128",
        "a.mp4\tcat\t\t\tmine\t\t128",
        "c.mp4\tcat\t\t\t\t\t128",
        "sub/b.mkv\tdog\t\t0.5\t\t\t128",
        "gone.mp4\t\t\t\t\t\t",
    ]  # fmt: skip
    manifest.write_text("\n".join(line.replace('"', "'") for line in lines) + "\n")
    done = mmssl("data", "transcode", "list.tsv", "-o", "out", "--short-side", "48", cwd=tmp_path)
    assert done.returncode == 1
    assert "left out: c.mp4: " in done.stderr
    assert "left out: gone.mp4: no such file" in done.stderr
    assert "3 rows in out/manifest.csv; 2 left out" in done.stdout
    assert "times as many" in done.stdout
    assert "MB before" in done.stdout
    old, new = Manifest(path=manifest), Manifest(path=tmp_path / "out" / "manifest.csv")
    kept = [old.sample(row) for row in (0, 1, 3)]
    found = [new.sample(row) for row in range(len(new))]
    for before, after in zip(kept, found, strict=True):
        assert after.id == before.id
        assert (after.start, after.end) == (before.start, before.end)
        assert old.classes[before.label or 0] == new.classes[after.label or 0]
        assert after.fields["text"] == before.fields["text"]
        assert after.fields["width"] == "64"
        assert len(shown(Path(after.media or ""))) == 60
    assert found[0].media == found[2].media
    assert len(list((tmp_path / "out" / "files").rglob("*.mp4"))) == 2


def test_of_a_folder_and_anew_only_what_has_changed(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    (videos / "dog").mkdir(parents=True)
    make(videos / "a.mp4", frames=10, sound=None)
    make(videos / "dog" / "b.mp4", frames=10)

    def run(side: int) -> dict[str, int]:
        assert run_here(videos, tmp_path / "out", short_side=side) == 0
        listed = Manifest(path=tmp_path / "out" / "manifest.csv")
        assert [listed.sample(i).id for i in range(2)] == ["a.mp4", "dog/b.mp4"]
        files = [Path(listed.sample(i).media or "") for i in range(2)]
        return {file.name[0]: file.stat().st_mtime_ns for file in files}

    first = run(48)
    assert Folder(path=videos).classes == Manifest(path=tmp_path / "out/manifest.csv").classes
    assert run(48) == first
    os.utime(videos / "a.mp4")
    second = run(48)
    assert (second["a"] != first["a"], second["b"] == first["b"]) == (True, True)
    third = run(32)
    assert all(third[name] != second[name] for name in third)
    assert {size for _, size in sizes(tmp_path / "out")} == {32, 48}, "none is overwritten"
    listed = Manifest(path=tmp_path / "out" / "manifest.csv")
    Path(listed.sample(1).media or "").write_bytes(b"half")
    fourth = run(32)
    assert (fourth["a"] == third["a"], fourth["b"] != third["b"]) == (True, True)


def sizes(out: Path) -> list[tuple[str, int]]:
    """Name and short side of every copy."""
    found = []
    for path in sorted((out / "files").rglob("*.mp4")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            found.append((path.name, min(stream.width, stream.height)))
    return found


def test_names_of_any_letters(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    make(videos / f"{chr(0x1D4D7) * 60}.mp4", frames=3, sound=None)
    assert run_here(videos, tmp_path / "out") == 0
    assert len(rows_of(tmp_path / "out" / "manifest.csv")) == 1


def test_a_url_that_failed_or_changed_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fsspec.filesystem("memory")
    (tmp_path / "list.csv").write_text("path\nmemory://away/a.mp4\n")
    assert run_here(tmp_path / "list.csv", tmp_path / "out") == 1
    copies = []
    for number in (3, 5):
        video = make(tmp_path / f"{number}.mp4", frames=number, sound=None)
        store.pipe_file("/away/a.mp4", video.read_bytes())
        assert run_here(tmp_path / "list.csv", tmp_path / "out") == 0, capsys.readouterr().err
        (row,) = rows_of(tmp_path / "out" / "manifest.csv")
        copies.append(len(shown(tmp_path / "out" / row["path"])))
    assert copies == [3, 5]
    store.rm("/away", recursive=True)


def numbers(manifest: Path) -> list[int]:
    """How many frames each of its files has."""
    return [len(shown(manifest.parent / row["path"])) for row in rows_of(manifest)]


def test_other_settings_leave_the_old_copies_until_their_manifest_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "the out"
    videos.mkdir()
    for name in "ab":
        make(videos / f"{name}.mp4", frames=10, sound=None)
    assert run_here(videos, out, short_side=48) == 0
    manifest = out / "manifest.csv"
    old, text = [out / row["path"] for row in rows_of(manifest)], manifest.read_text()
    data = [path.read_bytes() for path in old]
    assert "older copies" not in capsys.readouterr().out

    def ends_in_the_middle(sample: Sample, *more: Any) -> str:
        if sample.id == "b.mp4":
            raise OSError(errno.ENOSPC, "No space left on device")
        return transcode(sample, *more)

    with monkeypatch.context() as patch:
        patch.setattr("mmssl_media.transcode.transcode", ends_in_the_middle)
        with pytest.raises(UserError, match="No space left"):
            run_here(videos, out, short_side=32, workers=1)
    assert len(list(out.rglob("*.mp4"))) == 3
    assert (manifest.read_text(), [path.read_bytes() for path in old]) == (text, data)

    capsys.readouterr()
    assert run_here(videos, out, short_side=32) == 0
    assert [path.read_bytes() for path in old] == data
    new = [out / row["path"] for row in rows_of(manifest)]
    assert not set(new) & set(old)
    # What it says how to remove is what is not used, and no more.
    said = capsys.readouterr().out
    assert "2 older copies (0.0 MB) are not in the manifest" in said
    command_line = next(line for line in said.splitlines() if "xargs" in line).partition(": ")[2]
    subprocess.run(["bash", "-c", command_line], check=True)
    assert set(out.rglob("*.mp4")) == set(new)
    assert run_here(videos, out, short_side=32) == 0
    assert not (out / "unused.txt").exists()
    assert "older copies" not in capsys.readouterr().out


def test_a_manifest_is_kept_when_nothing_can_be_copied(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    path = make(videos / "a.mp4", frames=5, sound=None)
    assert run_here(videos, out) == 0
    text = (out / "manifest.csv").read_text()
    path.write_bytes(b"no video, this")
    assert run_here(videos, out) == 1
    assert (out / "manifest.csv").read_text() == text


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, or fails."""

    daemon_threads = True
    down = False
    asked = 0


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.server.asked += 1
        self.send_error(503) if self.server.down else super().do_HEAD()

    def do_GET(self) -> None:
        self.send_error(503) if self.server.down else super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "web").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "web"))
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_url_that_failed_is_tried_again_and_one_that_changed_is_copied_anew(
    tmp_path: Path, server: Server
) -> None:
    source, manifest = tmp_path / "list.csv", tmp_path / "out" / "manifest.csv"
    url = f"http://127.0.0.1:{server.server_port}/a.mp4"
    source.write_text(f"path,end\n{url},\n{url},0.3\n")
    path = make(tmp_path / "web" / "a.mp4", frames=10, sound=None)
    os.utime(path, (1e9, 1e9))  # HTTP's times are whole seconds
    server.down = True
    assert run_here(source, tmp_path / "out", workers=1) == 1
    assert not manifest.exists()
    server.down = False
    assert run_here(source, tmp_path / "out", workers=1) == 0
    assert numbers(manifest) == [10, 10]
    copy = tmp_path / "out" / rows_of(manifest)[0]["path"]
    written = copy.stat().st_mtime_ns
    assert run_here(source, tmp_path / "out", workers=1) == 0
    assert copy.stat().st_mtime_ns == written
    # Of the same size, so that only its time tells.
    size = path.stat().st_size
    make(path, frames=7, sound=None)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    assert path.stat().st_size == size
    os.utime(path, (2e9, 2e9))
    assert run_here(source, tmp_path / "out", workers=1) == 0
    assert numbers(manifest) == [7, 7]
    # While it cannot be reached it is left out, and nothing is forgotten.
    text = manifest.read_text()
    server.down = True
    assert run_here(source, tmp_path / "out", workers=1) == 1
    assert manifest.read_text() == text
    server.down = False
    written = copy.stat().st_mtime_ns
    assert run_here(source, tmp_path / "out", workers=1) == 0
    assert copy.stat().st_mtime_ns == written


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\U00020000"])
def test_long_names(letter: str, tmp_path: Path) -> None:
    """As long as file systems allow, in bytes; cut between letters."""
    videos = tmp_path / "videos"
    videos.mkdir()
    name = letter * (250 // len(letter.encode()))
    make(tmp_path / "a.mp4", frames=3, sound=None).rename(videos / f"{name}.mp4")
    assert run_here(videos, tmp_path / "out") == 0
    (row,) = rows_of(tmp_path / "out" / "manifest.csv")
    assert row["id"] == f"{name}.mp4"
    stem = Path(row["path"]).name.rpartition("-")[0]
    assert stem == letter * (100 // len(letter.encode()))


def test_every_row_is_parsed_at_most_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To copy and to list; the first one once more, for its columns."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        make(videos / f"{number}.mp4", frames=3, sound=None)
    parsed: list[int] = []
    original = Folder.sample

    def counted(self: Folder, index: int) -> Sample:
        parsed.append(index)
        return original(self, index)

    monkeypatch.setattr(Folder, "sample", counted)
    assert run_here(videos, tmp_path / "out") == 0
    assert sorted(parsed) == [0, 0, 0, 1, 1, 2, 2]


def test_killed_and_started_again(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        make(videos / f"{number}.mp4", size=(320, 240), frames=50)
    out = tmp_path / "out"
    arguments = ("data", "transcode", "videos", "-o", "out", "--short-side", "64", "--workers", "1")
    started = Started(*arguments, cwd=tmp_path)
    journal = out / ".journal"
    # The first line says what the journal is.
    started.wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3)
    started.kill()
    assert started.all_gone()
    assert not (out / "manifest.csv").exists()
    done = {json.loads(line)[1]["path"] for line in journal.read_text().splitlines()[1:]}
    before = {name: (out / name).stat().st_mtime_ns for name in done}
    again = mmssl(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {name: (out / name).stat().st_mtime_ns for name in done} == before
    assert len(rows_of(out / "manifest.csv")) == 6
    for row in rows_of(out / "manifest.csv"):
        assert [number for _, number in shown(out / row["path"])] == list(range(50))
    assert not list(out.rglob("*.tmp"))


def test_a_file_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("long", "short"):
        make(videos / f"{name}.mp4", frames=3, sound=None)

    def slowly(sample: Sample, *more: Any) -> str:
        if sample.id == "long.mp4":
            time.sleep(600)
        return transcode(sample, *more)

    with monkeypatch.context() as patch:
        patch.setattr("mmssl_media.transcode.transcode", slowly)
        assert run_here(videos, tmp_path / "out", time_limit=3.0) == 1
    assert "left out: long.mp4: took longer than 3 s" in capsys.readouterr().err
    assert [row["id"] for row in rows_of(tmp_path / "out" / "manifest.csv")] == ["short.mp4"]
    # It may have been the machine's fault: the next time it is tried again.
    assert run_here(videos, tmp_path / "out") == 0
    assert len(rows_of(tmp_path / "out" / "manifest.csv")) == 2


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    empty, out = tmp_path / "list.csv", tmp_path / "out"
    empty.write_text("path\n")
    for source, target, side, message in (
        ("none.csv", out, 48, r"none\.csv: no such folder or manifest"),
        (".", out, 48, "copies would be copied"),
        ("list.csv", out, 33, "must be even"),
        ("list.csv", empty, 48, "is a file"),
        ("list.csv", out, 48, "lists no samples"),
    ):
        with pytest.raises(UserError, match=message):
            run_here(Path(source), target, short_side=side)
        assert not out.exists()
    done = mmssl("data", "transcode", "list.csv", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
