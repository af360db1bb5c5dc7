"""`data.limit`: some of the training data, spread evenly over it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import RECIPE, make_videos, mmssl, outcome, write_manifest
from toys import Rows

from mmssl.contracts import Storage
from mmssl.data.limited import Limited
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import Recipe, load
from mmssl.training.progress import Progress, Silent


@given(size=st.integers(1, 300), share=st.floats(0, 1))
def test_rows_are_spread_evenly(size: int, share: float) -> None:
    limit = max(1, round(share * size))
    whole = Rows(size)
    part = Limited(whole, limit)
    ids = [part.sample(i).id for i in range(len(part))]
    rows = [int(name.removeprefix("row")) for name in ids]
    assert len(rows) == len(part) == limit
    gaps = np.diff([*rows, size])
    assert rows[0] == 0
    assert 1 <= gaps.min() <= gaps.max() <= gaps.min() + 1
    assert part.classes == whole.classes
    assert part.labels().tolist() == whole.labels()[rows].tolist()


def test_a_list_by_class_keeps_its_classes() -> None:
    @dataclass
    class Ordered(Rows):
        def sample(self, index: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
            sample = super().sample(index)
            return type(sample)(sample.id, None, label=index * 3 // self.size)

    assert np.bincount(Limited(Ordered(9000), 30).labels()).tolist() == [10, 10, 10]


def test_rows_beyond_the_limit_are_refused() -> None:
    part = Limited(Rows(10), 3)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"row {index} of 3"):
            part.sample(index)
    for limit in (0, 11):
        with pytest.raises(ValueError, match="of 10"):
            Limited(Rows(10), limit)


def test_the_digest_tells_how_much_is_used_and_of_what() -> None:
    digests = [Rows(100).digest(), Rows(99).digest()]
    digests += [Limited(Rows(size), n).digest() for size in (99, 100) for n in (50, 99)]
    assert len(set(digests)) == len(digests)
    assert Limited(Rows(100), 50).digest() == Limited(Rows(100), 50).digest()


@dataclass
class Stored(Rows):
    """Rows in shards, that notes when it is asked to write."""

    groups: list[int] = field(default_factory=list)
    asked: list[Progress] = field(default_factory=list)

    def storage(self) -> Storage:
        return Storage(np.array(self.groups), 7)

    def materialise(self, progress: Progress) -> None:
        self.asked.append(progress)


@given(
    groups=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum), share=st.floats(0, 1)
)
def test_storage_counts_the_rows_that_are_left_in_each_group(
    groups: list[int], share: float
) -> None:
    size = sum(groups)
    limit = max(1, round(share * size))
    part = Limited(Stored(size, groups=groups), limit)
    group_of = np.repeat(np.arange(len(groups)), groups)
    rows = [int(part.sample(i).id.removeprefix("row")) for i in range(limit)]
    storage = part.storage()
    assert storage is not None
    assert storage.groups.tolist() == np.bincount(group_of[rows], minlength=len(groups)).tolist()
    assert storage.buffer == 7


def test_storage_of_many_rows_is_exact() -> None:
    groups = [1000] * 65_000
    storage = Limited(Stored(65_000_000, groups=groups), 64_999_999).storage()
    assert storage is not None
    assert storage.groups.sum() == 64_999_999
    assert sorted(set(storage.groups.tolist())) == [999, 1000]


def test_without_storage_there_is_none() -> None:
    assert Limited(Rows(10), 3).storage() is None


def test_the_whole_is_written() -> None:
    whole, progress = Stored(10, groups=[10]), Silent()
    Limited(whole, 3).materialise(progress)
    assert whole.asked == [progress]


# The recipe's field


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "small.yaml"
    path.write_text(RECIPE)
    return load(str(path), list(overrides))


@pytest.mark.parametrize(("limit", "samples"), [("", 48), ("47", 47), ("48", 48), ("1000", 48)])
def test_a_recipe_limits_its_training_data_only(tmp_path: Path, limit: str, samples: int) -> None:
    validation = "data.validation={use: synthetic, videos: 60, split: test}"
    train, other = assembly.build_datasets(recipe(tmp_path, f"data.limit={limit}", validation))
    assert other is not None
    assert (len(train), len(other)) == (samples, 60)
    whole, _ = assembly.build_datasets(recipe(tmp_path))
    assert (train.digest() == whole.digest()) == (samples == 48)


@pytest.mark.parametrize("limit", ["0", "-3", "1.5", "all"])
def test_a_limit_that_is_no_number_of_samples_is_refused(tmp_path: Path, limit: str) -> None:
    with pytest.raises(UserError, match=r"data\.limit"):
        recipe(tmp_path, f"data.limit={limit}")


def test_another_limit_is_another_run(tmp_path: Path) -> None:
    def fingerprint(*overrides: str) -> str:
        return RunFolder(recipe(tmp_path, *overrides)).fingerprint("pretrain")

    prints = [fingerprint(), fingerprint("data.limit=20"), fingerprint("data.limit=21")]
    assert len(set(prints)) == 3
    assert fingerprint("data.limit=20", "data.workers=0") == prints[1]


def test_a_limited_run_is_a_run_on_a_shorter_list(tmp_path: Path) -> None:
    """The same clips, clusters and encoders as with a list of just those videos."""
    videos = make_videos(tmp_path / "videos", 32)
    whole = write_manifest(tmp_path / "whole.csv", videos)
    short = write_manifest(tmp_path / "short.csv", videos[::2])
    found = []
    (tmp_path / "small.yaml").write_text(
        RECIPE + "evaluations: {clusters: {use: clusters, rows: 1}}\n"
    )
    for name, path, limit in (("limited", whole, "16"), ("short", short, "")):
        done = mmssl(
            *("run", "small.yaml", f"name={name}", f"data.limit={limit}"),
            *(f"data.train={{use: manifest, path: {path}}}", "training.epoch_size=16"),
            *("training.epochs=1", "objective.on_collapse=warn"),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        found.append(outcome(tmp_path / "runs" / name))
    limited, other = found
    assert len(limited["clusters"]["clusters/round-01/video.labels.npy"]) == 16
    assert limited == other
