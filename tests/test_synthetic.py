"""Made-up videos: real files, the same every time, that share nothing but the class."""

from pathlib import Path

import av
import numpy as np
import pytest

from mmssl.errors import UserError
from mmssl.training.progress import Silent
from mmssl_media.synthetic import Synthetic
from mmssl_media.synthetic_clips import CLASSES, Format, draw_frames, draw_sound, label_of

FORM = Format(side=16, fps=8, seconds=1.0, rate=8000)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path))
    return tmp_path


def small(**fields: object) -> Synthetic:
    return Synthetic(**{"videos": 10, "side": 16, "fps": 8, "seconds": 1.0, **fields})  # type: ignore[arg-type]


def test_nothing_is_written_before_it_is_needed(cache: Path) -> None:
    dataset = small()
    assert len(dataset) == 10
    assert dataset.sample(3).label is not None
    assert list(cache.iterdir()) == []


def test_files_are_h264_and_aac_of_the_given_size(cache: Path) -> None:
    dataset = small()
    dataset.materialise(Silent())
    path = dataset.sample(4).media
    assert path is not None
    with av.open(path) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (16, 16, 8)
        assert audio.codec_context.sample_rate == 16_000
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video)]
    label = label_of(0, 4, len(CLASSES))
    drawn = draw_frames(Format(16, 8, 1.0), 0, 4, label)
    assert len(frames) == len(drawn) == 8
    assert np.abs(np.stack(frames).astype(int) - drawn).mean() < 20  # lossy, but the same picture


def test_only_missing_files_are_written_and_they_come_out_alike(cache: Path) -> None:
    dataset = small()
    dataset.materialise(Silent())
    files = sorted(dataset.folder.iterdir())
    assert len(files) == 10
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    files[3].unlink()
    small().materialise(Silent())
    after = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    assert [b for _, b in before] == [a for _, a in after]
    assert [i for i in range(10) if before[i][0] != after[i][0]] == [3]


def test_splits_seeds_and_formats_have_folders_of_their_own(cache: Path) -> None:
    others = [{}, {"split": "test"}, {"seed": 1}, {"fps": 9}, {"rate": 8000}]
    folders = {small(**fields).folder for fields in others}
    assert len(folders) == len(others)
    assert small(videos=20).folder == small().folder


def test_every_class_stands_once_in_each_run_of_eight() -> None:
    labels = [label_of(3, i, 8) for i in range(80)]
    assert all(sorted(labels[i : i + 8]) == list(range(8)) for i in range(0, 80, 8))
    assert labels[:8] != labels[8:16]


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_drawings_move_and_sounds_are_heard(label: int) -> None:
    frames, sound = draw_frames(FORM, 0, 1, label), draw_sound(FORM, 0, 1, label)
    assert frames.shape == (8, 16, 16, 3)
    assert frames.dtype == np.uint8
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 3
    assert sound.shape == (8000,)
    assert 0.1 < np.abs(sound).max() <= 1
    assert np.array_equal(draw_frames(FORM, 0, 1, label), frames)
    assert not np.array_equal(draw_frames(FORM, 0, 2, label), frames)
    assert not np.array_equal(draw_sound(FORM, 1, 1, label), sound)


def test_sight_and_sound_are_independent_within_a_class() -> None:
    # Brightness and loudness vary from video to video, and know nothing of each other.
    bright = [draw_frames(FORM, 0, i, 0).mean() for i in range(200)]
    loud = [np.log(np.square(draw_sound(FORM, 0, i, 0)).mean()) for i in range(200)]
    assert abs(np.corrcoef(bright, loud)[0, 1]) < 0.2


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set MMSSL_CACHE to a folder that can be written"):
        small().materialise(Silent())
