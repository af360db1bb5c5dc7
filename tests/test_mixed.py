"""Several datasets as one: shares, ids, classes, groups, and modalities of their own."""

import json
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import number_of, write
from small_runs import RECIPE
from toys import Rows, Vector

from mmssl.contracts import IGNORE, Dataset, Modality, Sample, Storage, Window
from mmssl.data.draws import Draws
from mmssl.data.limited import Limited
from mmssl.data.loading import (
    ClipReader,
    LoaderSettings,
    Part,
    Views,
    ordered_batches,
    training_batches,
)
from mmssl.data.media import Media
from mmssl.data.sampling import Sampler
from mmssl.errors import MissingModality, UserError
from mmssl.pretrained.dataset import named_dataset
from mmssl.recipe import load
from mmssl.training.progress import Silent
from mmssl_media.manifest import Manifest
from mmssl_media.mixed import Mixed
from mmssl_media.video import Video


def part_of(sample: Sample) -> str:
    return sample.id.split("/")[0].split(".")[0]


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)
WEIGHTS = st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 7.5])


@settings(deadline=None)
@given(SIZES, st.data())
def test_shares_are_the_weights(sizes: list[int], data: st.DataObject) -> None:
    weights = [data.draw(WEIGHTS) for _ in sizes]
    parts: dict[str, Dataset] = {f"part{i}": Rows(n) for i, n in enumerate(sizes)}
    mixed = Mixed(datasets=parts, weights=dict(zip(parts, weights, strict=True)))
    samples = [mixed.sample(row) for row in range(len(mixed))]
    counts = Counter(part_of(sample) for sample in samples)
    # The unit is what one part's whole size is of its weight, and no part is seen in less.
    unit = max(Fraction(n) / Fraction(w) for n, w in zip(sizes, weights, strict=True))
    for (name, part), weight in zip(parts.items(), weights, strict=True):
        assert abs(counts[name] - unit * Fraction(weight)) <= Fraction(1, 2)
        seen = Counter(s.fields["row"] for s in samples if part_of(s) == name)
        assert len(seen) == len(part)  # every one of its samples
        assert max(seen.values()) - min(seen.values()) <= 1  # equally often, to one
    assert any(counts[name] == len(part) for name, part in parts.items())
    assert len({sample.id for sample in samples}) == len(mixed)
    again = Mixed(datasets=parts, weights=dict(zip(parts, weights, strict=True)))
    assert [again.sample(row) for row in range(len(again))] == samples
    assert again.digest() == mixed.digest()
    assert mixed.labels().tolist() == [s.label for s in samples]


def test_parts_are_equal_by_default() -> None:
    mixed = Mixed(datasets={"large": Rows(100), "small": Rows(7)})
    assert len(mixed) == 200
    assert Counter(map(part_of, map(mixed.sample, range(200)))) == {"large": 100, "small": 100}


def test_ids_name_the_part_and_how_often_it_has_come() -> None:
    mixed = Mixed(datasets={"a": Rows(5), "b": Rows(2)})
    ids = [mixed.sample(row).id for row in range(len(mixed))]
    assert ids == [f"a/row{i}" for i in range(5)] + [
        "b/row0",
        "b/row1",
        "b.2/row0",
        "b.2/row1",
        "b.3/row0",
    ]
    for row in (-1, len(mixed)):
        with pytest.raises(IndexError):
            mixed.sample(row)


def test_classes_where_all_have_the_same() -> None:
    same = Mixed(datasets={"a": Rows(4), "b": Rows(6)})
    assert list(same.classes) == ["class 0", "class 1", "class 2"]
    assert same.sample(5).label == 1
    other = Mixed(datasets={"a": Rows(4), "b": Rows(6, number_of_classes=2)})
    assert list(other.classes) == []
    assert not other.multilabel
    assert {other.sample(row).label for row in range(len(other))} == {None}
    assert other.labels().tolist() == [IGNORE] * len(other)


def test_digests_tell_mixtures_apart() -> None:
    def digest(weight: float = 1.0, size: int = 5, name: str = "b") -> str:
        return Mixed(datasets={"a": Rows(4), name: Rows(size)}, weights={name: weight}).digest()

    assert digest() == digest()
    assert len({digest(), digest(weight=2), digest(size=3), digest(name="c")}) == 4


def test_a_limit_keeps_the_shares() -> None:
    mixed = Mixed(datasets={"a": Rows(600), "b": Rows(50)}, weights={"a": 3})
    limited = Limited(mixed, 80)
    counts = Counter(part_of(limited.sample(row)) for row in range(80))
    assert counts == {"a": 60, "b": 20}


def test_batches_mix_all_parts_whatever_the_ranks() -> None:
    mixed = Mixed(datasets={"a": Rows(1000), "b": Rows(20)})
    reader = ClipReader(
        mixed, {"x": Vector("x")}, seed=3, sampler=Sampler(len(mixed), 3, storage=mixed.storage())
    )

    def rows(start: int, count: int, part: Part) -> list[list[int]]:
        batches = training_batches(
            reader, start=start, batch_size=64, count=count, settings=LoaderSettings(), part=part
        )
        return [loaded.batch.index.tolist() for loaded in batches]

    whole = rows(0, 10, Part())
    shares = [sum(row < 1000 for row in batch) for batch in whole]
    assert 270 < sum(shares) < 370
    assert all(15 < share < 49 for share in shares)
    halves = zip(rows(0, 10, Part(0, 2)), rows(0, 10, Part(1, 2)), strict=True)
    assert [first + second for first, second in halves] == whole
    assert rows(64 * 6, 4, Part()) == whole[6:]  # resumed


@dataclass
class Archived(Rows):
    """Rows that lie in groups."""

    groups: list[int] = field(default_factory=list)
    buffer: int = 20

    def storage(self) -> Storage:
        return Storage(np.array(self.groups), self.buffer)


def test_without_archives_any_row_costs_the_same() -> None:
    assert Mixed(datasets={"a": Rows(3), "b": Rows(5)}).storage() is None


def test_groups_are_the_parts_repeated() -> None:
    mixed = Mixed(
        datasets={
            "a": Archived(10, groups=[4, 6], buffer=8),
            "b": Archived(4, groups=[3, 1], buffer=5),
            "c": Rows(70),
        }
    )
    storage = mixed.storage()
    assert storage is not None
    a, b = [4, 6] * 7, [3, 1] * 17 + [2]
    assert storage.groups.tolist() == [*a, *b, 64, 6]
    assert int(storage.groups.sum()) == len(mixed) == 210
    assert storage.buffer == 24  # eight of them are a's
    # A part that has a quarter of all needs four times its buffer.
    mixed = Mixed(
        datasets={"a": Archived(10, groups=[10], buffer=8), "b": Rows(9)}, weights={"b": 3}
    )
    storage = mixed.storage()
    assert storage is not None
    assert storage.buffer == 32


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
    st.integers(1, 60),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_a_pass_over_archives_has_every_row_once(
    groups: list[int], others: int, weight: float
) -> None:
    mixed = Mixed(
        datasets={"a": Archived(sum(groups), groups=groups), "b": Rows(others)},
        weights={"a": weight},
    )
    storage = mixed.storage()
    assert storage is not None
    sampler = Sampler(len(mixed), 0, storage=storage)
    assert sorted(sampler.rows(np.arange(len(mixed)))) == list(range(len(mixed)))


def test_parts_are_made_and_announced() -> None:
    made = []

    class Making(Rows):
        def materialise(self, progress: Any) -> None:
            made.append(self.size)

    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    Mixed(datasets={"a": Making(8), "b": Making(2)}).materialise(Listening())
    assert made == [8, 2]
    assert said == [
        "a: 50.0% of a pass, 1 times its 8 samples",
        "b: 50.0% of a pass, 4 times its 2 samples",
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"weights": {"c": 1.0}}, "weights names 'c', but the parts are a, b"),
        ({"modalities": {"c": {}}}, "modalities names 'c', but the parts are a, b"),
    ],
)
def test_parts_that_are_not_there(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixed(datasets={"a": Rows(1), "b": Rows(1)}, **parameters)


def test_shares_that_cannot_be() -> None:
    with pytest.raises(UserError, match="'b' is empty"):
        len(Mixed(datasets={"a": Rows(1), "b": Rows(0)}))
    with pytest.raises(UserError, match="'b' would be repeated"):
        len(Mixed(datasets={"a": Rows(10), "b": Rows(10)}, weights={"a": 1e-13}))


class Sight(Modality):
    """Says when and how long it was read, and by which reader."""

    kind = "sight"

    def __init__(self, mark: float, seconds: float = 1.0, size: int = 3) -> None:
        self.mark = mark
        self.seconds = seconds
        self.shape = (size,)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> torch.Tensor:
        if media.sample.fields.get("blind"):
            raise MissingModality
        values = [self.mark, window.start, window.seconds]
        return torch.tensor((values * 2)[: self.shape[0]])

    def empty(self) -> torch.Tensor:
        return torch.zeros(self.shape)

    def prepare(self, batch: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        return batch


@pytest.mark.parametrize("workers", [0, 1])
def test_parts_are_read_by_their_own(workers: int) -> None:
    mixed = Mixed(
        datasets={"a": Rows(4), "b": Rows(4)}, modalities={"b": {"sight": Sight(2.0, seconds=4.0)}}
    )
    reader = ClipReader(mixed, {"sight": Sight(1.0), "other": Vector("v")}, seed=0)
    batches = ordered_batches(
        reader,
        range(8),
        batch_size=8,
        split="train",
        settings=LoaderSettings(workers=workers),
    )
    (loaded,) = list(batches)
    seen = loaded.batch.clips["sight"]
    # The window is as long as what is read of the sample needs, 2 s for `other`, and central.
    assert seen[:4].tolist() == [[1.0, 4.0, 2.0]] * 4
    assert seen[4:].tolist() == [[2.0, 3.0, 4.0]] * 4
    plain = ClipReader(Rows(4), {"other": Vector("v")}, seed=0)
    expected, _ = plain[0]
    assert torch.equal(loaded.batch.clips["other"][0], expected.tensors["other"])
    # In training, and as one of several views, too.
    trained = ClipReader(mixed, reader.modalities, seed=0, sampler=Sampler(8, 0))
    for position in range(8):
        clip, _ = trained[position]
        assert clip.tensors["sight"][[0, 2]].tolist() == ([1, 2] if clip.row < 4 else [2, 4])
    viewed = ClipReader(mixed, reader.modalities, seed=0, views=Views(clips=3))
    starts = [float(viewed[item][0].tensors["sight"][1]) for item in range(4 * 3, 4 * 3 + 3)]
    assert starts == [0.0, 3.0, 6.0]


def test_readers_of_another_size_are_refused_before_anything_is_read() -> None:
    mixed = Mixed(
        datasets={"a": Rows(4), "b": Rows(4)}, modalities={"b": {"sight": Sight(2.0, size=4)}}
    )
    with pytest.raises(UserError, match=r"'sight'.* 4 float32, the others as 3 float32") as caught:
        ClipReader(mixed, {"sight": Sight(1.0)}, seed=0)
    assert "\n" not in str(caught.value)
    # Who reads something else does not mind.
    ClipReader(mixed, {"other": Vector("v")}, seed=0)
    for whole in (Mixed(datasets={"inner": mixed, "c": Rows(2)}), Limited(mixed, 3)):
        with pytest.raises(UserError, match="'sight'"):
            ClipReader(whole, {"sight": Sight(1.0)}, seed=0)


def test_a_modality_that_the_recipe_does_not_have_is_a_mistake(tmp_path: Path) -> None:
    misspelt = "modalities: {made: {vidoe: {use: video}}}"
    (tmp_path / "a.yaml").write_text(
        RECIPE.replace(
            "{use: synthetic,", f"{{use: mixed, {misspelt}, datasets: {{made: {{use: synthetic,"
        ).replace("seconds: 1}", "seconds: 1}}}")
    )
    with pytest.raises(UserError, match=r"made.vidoe: there is no modality 'vidoe'; did you mean"):
        load(tmp_path / "a.yaml")


def test_readers_of_parts_within_parts_are_kept() -> None:
    inner = Mixed(datasets={"a": Rows(2)}, modalities={"a": {"sight": Sight(2.0)}})
    outer = Mixed(datasets={"in": inner}, modalities={"in": {"other": Vector("v")}})
    assert set(outer.sample(0).readers) == {"sight", "other"}


def test_a_misspelt_modality_of_an_evaluations_data(tmp_path: Path) -> None:
    parts = "{use: mixed, modalities: {made: {vidoe: {use: video}}}, datasets: {made: synthetic}}"
    (tmp_path / "a.yaml").write_text(
        RECIPE + f"evaluations: {{e: {{use: knn, train: synthetic, test: {parts}}}}}\n"
    )
    with pytest.raises(UserError, match=r"made.vidoe: there is no modality 'vidoe'"):
        load(tmp_path / "a.yaml")


def test_a_part_may_lack_modalities() -> None:
    rows = Rows(3, without={"v": range(3)})
    reader = ClipReader(
        Mixed(datasets={"with": Rows(3), "without": rows}),
        {"v": Vector("v"), "w": Vector("w")},
        seed=0,
    )
    (loaded,) = list(
        ordered_batches(reader, range(6), batch_size=6, split="train", settings=LoaderSettings())
    )
    assert loaded.batch.present["v"].tolist() == [True] * 3 + [False] * 3
    assert loaded.batch.present["w"].all()
    assert not loaded.unreadable


def test_videos_of_two_rates_in_one_batch(tmp_path: Path) -> None:
    """HowTo100M at 10 frames per second, AudioSet with every second frame of 25."""
    write(tmp_path / "ten.mp4", frames=40, fps=30)
    write(tmp_path / "twenty-five.mp4", frames=40, fps=25)
    parts: dict[str, Dataset] = {}
    for name in ("ten", "twenty-five"):
        (tmp_path / f"{name}.csv").write_text(f"path\n{name}.mp4\n")
        parts[name] = Manifest(path=tmp_path / f"{name}.csv")
    own = Video(frames=4, stride=2, short_side=32, crop=32)
    mixed = Mixed(datasets=parts, modalities={"twenty-five": {"video": own}})
    reader = ClipReader(mixed, {"video": Video(frames=4, fps=10, short_side=32, crop=32)}, seed=0)
    (loaded,) = list(
        ordered_batches(reader, range(2), batch_size=2, split="train", settings=LoaderSettings())
    )
    numbers = [[number_of(frame.numpy()) for frame in clip] for clip in loaded.batch.clips["video"]]
    assert np.diff(numbers[0]).tolist() == [3, 3, 3]
    assert np.diff(numbers[1]).tolist() == [2, 2, 2]


def test_a_recipe_names_parts(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,text\none,a\ntwo,b\nthree,c\n")
    text = {
        "datasets": {
            "made": {"use": "synthetic", "videos": 6},
            "listed": {"use": "manifest", "path": str(tmp_path / "list.csv")},
        },
        "weights": {"listed": 0.5},
        "modalities": {"made": {"video": {"use": "video", "frames": 4, "fps": 12.5}}},
    }
    spec = named_dataset(["use=mixed", *(f"{k}={json.dumps(v)}" for k, v in text.items())])
    mixed = spec.build()
    assert [part_of(mixed.sample(row)) for row in range(len(mixed))] == ["made"] * 6 + [
        "listed"
    ] * 3
    assert isinstance(mixed.sample(0).readers["video"], Video)
    assert mixed.sample(0).readers["video"].fps == 12.5
    assert mixed.sample(6).readers == {}
    plain = spec.plain()
    assert plain["modalities"]["made"]["video"]["fps"] == 12.5
    assert plain["datasets"]["made"]["videos"] == 6
    for mistake, message in (
        ('datasets={"a b": synthetic}', "letters, digits"),
        ("datasets={}", "length >= 1"),
    ):
        with pytest.raises(UserError, match=message):
            named_dataset(["use=mixed", mistake])
    with pytest.raises(UserError, match=r"weights\.made"):
        named_dataset(["use=mixed", "datasets.made=synthetic", "weights.made=0"])
