"""Made-up recordings: beside any videos, made once, and telling the class alone."""

from pathlib import Path

import numpy as np
import pytest

from mmssl import Dataset, Sample, UserError
from mmssl.training.progress import Silent
from mmssl_imu.beside import Beside
from mmssl_imu.motions import MOTIONS, draw_motion
from mmssl_imu.recording import read_recording


class Videos(Dataset):
    """Rows of some classes, without files."""

    def __init__(self, size: int, classes: int = 8, label: int | None = None) -> None:
        self.classes = [f"class {i}" for i in range(classes)]
        self.size = size
        self.label = label

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int) -> Sample:
        label = index % 8 if self.label is None else self.label
        return Sample(f"video {index}", None, label=label, fields={"text": "a"}, end=2.5)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path))
    return tmp_path


def recordings(dataset: Beside) -> list[np.ndarray]:
    dataset.materialise(Silent())
    return [read_recording(dataset.sample(i).fields["imu"])[1] for i in range(len(dataset))]


def test_every_video_has_a_recording_that_is_made_once(cache: Path) -> None:
    dataset = Beside(videos=Videos(10), seconds=1, rate=50)
    first = recordings(dataset)
    files = sorted(cache.rglob("*.npz"))
    assert len(files) == 10
    assert dataset.sample(3).fields["text"] == "a"
    assert list(dataset.labels()) == [i % 8 for i in range(10)]
    files[4].unlink()
    made = [file.stat().st_mtime_ns for file in files if file.exists()]
    again = recordings(Beside(videos=Videos(10), seconds=1, rate=50))
    assert [file.stat().st_mtime_ns for file in files if file != files[4]] == made
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(cache.rglob("*.tmp"))


def test_other_videos_classes_and_seeds_have_other_recordings(cache: Path) -> None:
    """Also where ids are the same, as those of the two splits of made-up videos are."""
    kinds = [
        Beside(videos=Videos(4)),
        Beside(videos=Videos(4), seed=1),
        Beside(videos=Videos(4, label=2)),
        Beside(videos=Videos(5)),
    ]
    assert len({dataset.digest() for dataset in kinds}) == 4
    # Row 2 has the same class in all of them.
    third = [recordings(dataset)[2] for dataset in kinds]
    assert len({one.tobytes() for one in third}) == 4


@pytest.mark.parametrize("classes", [0, 9])
def test_videos_whose_classes_no_motions_tell(classes: int, cache: Path) -> None:
    with pytest.raises(UserError, match=f"have {classes} classes"):
        Beside(videos=Videos(3, classes=classes)).materialise(Silent())


def test_a_motion_is_irregular_covers_its_seconds_and_feels_gravity() -> None:
    for kind in range(len(MOTIONS)):
        time, values = draw_motion(kind, 2.5, 100, np.random.default_rng(kind))
        assert (np.diff(time) > 0).all()
        assert np.diff(time).std() > 1e-3
        assert time[0] < 0 < 2.5 < time[-1]
        assert values.shape == (len(time), 6)
        assert 7 < np.linalg.norm(values[:, :3].mean(0)) < 13
