"""Damaged, empty and odd files: a defined result or `BadMedia`, never anything else."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_files import SIDE, clicks, write
from small_runs import RECIPE, make_videos, mmssl, write_manifest

from mmssl import BadMedia, Media, MissingModality, Modality, Sample, Window
from mmssl.contracts import IGNORE
from mmssl.data.loading import ClipReader, LoaderSettings, ordered_batches, training_batches
from mmssl.data.sampling import Sampler
from mmssl_media.audio import Audio
from mmssl_media.manifest import Manifest
from mmssl_media.video import Video

VIDEO = Video(frames=4, short_side=SIDE, crop=SIDE)
AUDIO = Audio(seconds=0.5)


def outcome(path: Path, modality: Modality, share: float = 0.5) -> str:
    """ "read", or why not. Any exception but the two that are promised passes through."""
    with Media(Sample("x", str(path))) as media:
        try:
            length = media.end
            start = share * max(0.0, length - modality.seconds)
            clip = modality.read(media, Window(start, modality.seconds), np.random.default_rng(0))
        except MissingModality:
            return "missing"
        except BadMedia as error:
            return f"bad: {error}"
    assert clip.shape == modality.empty().shape
    assert clip.dtype == modality.empty().dtype
    if clip.is_floating_point():
        assert torch.isfinite(clip).all()
    return "read"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By container, two seconds with sight and sound."""
    folder = tmp_path_factory.mktemp("media")
    common = {"frames": 60, "sound": clicks([0.5, 1.5], 2.0, 16_000), "rate": 16_000}
    return {
        "mp4": write(folder / "good.mp4", b_frames=2, **common),
        "mkv": write(folder / "good.mkv", b_frames=2, **common),
        "avi": write(folder / "good.avi", codec="mpeg4", sound_codec="pcm_s16le", **common),
    }


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_good_file(good: dict[str, Path], ending: str) -> None:
    assert outcome(good[ending], VIDEO) == outcome(good[ending], AUDIO) == "read"


def test_one_modality_may_lack(tmp_path: Path) -> None:
    silent = write(tmp_path / "silent.mp4", frames=30)
    blind = write(tmp_path / "blind.mp4", sound=clicks([0.5], 1.0, 16_000), rate=16_000)
    assert outcome(silent, VIDEO) == "read"
    assert outcome(silent, AUDIO) == "missing"
    assert outcome(blind, VIDEO) == "missing"
    assert outcome(blind, AUDIO) == "read"


def test_shorter_than_the_window(tmp_path: Path) -> None:
    sound = clicks([0.05], 0.1, 16_000)
    path = write(tmp_path / "short.mp4", frames=1, sound=sound, rate=16_000)
    assert outcome(path, VIDEO) == outcome(path, AUDIO) == "read"


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is no video. " * 500)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert "is a folder" in outcome(tmp_path / "folder.mp4", VIDEO)
    assert "empty" in outcome(tmp_path / "empty.mp4", VIDEO)
    assert "no such file" in outcome(tmp_path / "nothing.mp4", VIDEO)
    assert "nowhere.mp4, which is not there" in outcome(tmp_path / "dangling.mp4", VIDEO)
    for name in ["text.mp4", "noise.mp4"]:
        assert outcome(tmp_path / name, VIDEO).startswith(("bad", "missing"))
        assert outcome(tmp_path / name, AUDIO).startswith(("bad", "missing"))
    if os.getuid() != 0:  # root may read everything
        (tmp_path / "text.mp4").chmod(0)
        assert outcome(tmp_path / "text.mp4", VIDEO).startswith("bad")


def test_no_file_named() -> None:
    with Media(Sample("x", None)) as media, pytest.raises(MissingModality, match="no media file"):
        VIDEO.read(media, Window(0.0, 1.0), None)
    assert Media(Sample("x", None, start=1.0, end=3.0)).end == 3.0


def test_stream_without_any_frame(tmp_path: Path) -> None:
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=30)
        video.width, video.height = SIDE, SIDE
        video.encode(None)
        out.start_encoding()
    assert outcome(path, VIDEO).startswith("bad")
    assert outcome(path, AUDIO).startswith(("bad", "missing"))


def test_sound_that_is_not_a_number(tmp_path: Path) -> None:
    sound = np.zeros(16_000, np.float32)
    sound[8_000] = np.nan
    path = write(tmp_path / "nan.wav", sound=sound, rate=16_000, sound_codec="pcm_f32le")
    assert "not a number" in outcome(path, AUDIO)


def test_truncated_after_its_header(tmp_path: Path) -> None:
    whole = write(
        tmp_path / "whole.mp4",
        frames=150,
        gop=12,
        sound=clicks([0.5, 4.5], 5.0, 16_000),
        rate=16_000,
        options={"movflags": "faststart"},
    )
    data = whole.read_bytes()
    path = tmp_path / "half.mp4"
    path.write_bytes(data[: len(data) // 2])
    # The header still promises five seconds.
    with Media(Sample("x", str(path))) as media:
        assert media.end == pytest.approx(5.0)
    assert outcome(path, VIDEO, share=0.0) == "read"
    assert outcome(path, VIDEO, share=1.0) != "read"


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("seed", range(16))
def test_truncated_anywhere(tmp_path: Path, good: dict[str, Path], ending: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = good[ending].read_bytes()
    path = tmp_path / f"cut.{ending}"
    path.write_bytes(data[: rng.integers(1, len(data))])
    for share in [0.0, 1.0]:
        outcome(path, VIDEO, share)
        outcome(path, AUDIO, share)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("seed", range(16))
def test_flipped_bytes(tmp_path: Path, good: dict[str, Path], ending: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = np.frombuffer(good[ending].read_bytes(), np.uint8).copy()
    # Half of the damage near the ends, where headers are.
    count = int(rng.integers(1, 30))
    places = rng.integers(0, len(data), count)
    near = rng.integers(0, min(2000, len(data)), count)
    places = np.where(rng.random(count) < 0.25, near, places)
    places = np.where(rng.random(count) < 0.25, len(data) - 1 - near, places)
    data[places] ^= rng.integers(1, 256, count).astype(np.uint8)
    path = tmp_path / f"flipped.{ending}"
    path.write_bytes(data.tobytes())
    for share in [0.0, 1.0]:
        outcome(path, VIDEO, share)
        outcome(path, AUDIO, share)


def test_frames_of_impossible_proportions(tmp_path: Path) -> None:
    path = write(tmp_path / "ribbon.mp4", frames=3, size=(2048, 16))
    assert "2048 by 16 pixels" in outcome(path, VIDEO)


DAMAGED = {
    2: ("empty", b""),
    3: ("cut", 2_000),
    7: ("text", b"This is no video. " * 100),
    11: ("noise", np.random.default_rng(0).bytes(3_000)),
    13: ("playlist", b"#EXTM3U\n#EXTINF:1,\nother.ts\n"),
    17: ("gone", None),
    19: ("folder", None),
}


def with_damage(folder: Path) -> list[tuple[str, int]]:
    """Files and classes of 24 videos, seven of them damaged."""
    videos = make_videos(folder, 24)
    for row, (kind, data) in DAMAGED.items():
        path = Path(videos[row][0])
        if isinstance(data, bytes):
            path.write_bytes(data)
        elif isinstance(data, int):
            path.write_bytes(path.read_bytes()[:data])
        else:
            path.unlink()
            if kind == "folder":
                path.mkdir()
    return videos


def test_loader_names_damaged_files_and_gives_every_batch(tmp_path: Path) -> None:
    dataset = Manifest(path=write_manifest(tmp_path / "list.csv", with_damage(tmp_path / "v")))
    modalities = {
        "video": Video(frames=2, fps=4, short_side=20, crop=16),
        "audio": Audio(seconds=0.5, mels=16),
    }
    settings = LoaderSettings(workers=2)
    ordered = list(
        ordered_batches(
            ClipReader(dataset, modalities, seed=1),
            range(24),
            batch_size=5,
            split="train",
            settings=settings,
        )
    )
    found = [failure for loaded in ordered for failure in loaded.unreadable]
    assert [failure.row for failure in found] == sorted(DAMAGED)
    assert all(failure.reason for failure in found)
    absent = [
        row
        for loaded in ordered
        for row, here in zip(loaded.batch.index, loaded.batch.present["video"], strict=True)
        if not here
    ]
    assert absent == sorted(DAMAGED)
    reader = ClipReader(dataset, modalities, seed=1, sampler=Sampler(24, seed=1))
    training = list(training_batches(reader, start=0, batch_size=6, count=16, settings=settings))
    assert [len(loaded.batch.index) for loaded in training] == [6] * 16
    assert not set(DAMAGED) & {int(row) for loaded in training for row in loaded.batch.index}
    named = {failure.row for loaded in training for failure in loaded.unreadable}
    assert named == set(DAMAGED)


def test_damaged_files_are_named_once_and_have_no_label(tmp_path: Path) -> None:
    write_manifest(tmp_path / "list.csv", with_damage(tmp_path / "videos"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = mmssl(
        "run",
        "recipe.yaml",
        "data.train={use: manifest, path: list.csv}",
        "data.max_bad=0.5",
        "data.workers=2",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "runs/small"
    records = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert sorted(record["row"] for record in records) == sorted(DAMAGED)
    assert all(record["reason"] for record in records)
    labellings = sorted(run.glob("clusters/*/*.labels.npy"))
    assert len(labellings) == 4  # of two modalities in two rounds
    for path in labellings:
        assert np.flatnonzero(np.load(path) == IGNORE).tolist() == sorted(DAMAGED)


def test_memory_does_not_grow(good: dict[str, Path], tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(good["mkv"].read_bytes()[:6000])
    files = [*good.values(), cut]
    for k in range(100):
        outcome(files[k % len(files)], VIDEO)
        outcome(files[k % len(files)], AUDIO)
    before = resident()
    for k in range(400):
        outcome(files[k % len(files)], VIDEO)
        outcome(files[k % len(files)], AUDIO)
    assert resident() - before < 8 * 2**20
