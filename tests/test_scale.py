"""65 million samples on 64 ranks: XDC's largest run, simulated without media.

The sizes are those of the paper (IG65M, 64 GPUs, 2048 clips a step); the figures of the dry run
are worked out by hand.
"""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from toys import Perceptron, Rows, Vector

from mmssl.contracts import Round, Sample
from mmssl.data import loading
from mmssl.data.loading import ClipReader, LoaderSettings, Part, training_batches
from mmssl.data.sampling import Permutation, Sampler
from mmssl.errors import UserError
from mmssl.pipeline.launchers import Inline
from mmssl.pipeline.plan import Plan, make_plan, quantity
from mmssl.recipe import load
from mmssl.training.encoders import Encoders
from mmssl.training.features import Streamed
from mmssl_clustering.kmeans import Preprocessing
from mmssl_clustering.objectives import CDC, SDC, XDC
from mmssl_clustering.relabel import relabel
from mmssl_media.synthetic import Synthetic

N = 65_000_000
RANKS = 64
BATCH = 2048


def share(start: int, size: int, micro_batches: int, rank: int, ranks: int) -> list[int]:
    """A rank's positions of the batch at ``start``: its part of each micro-batch, cut in order."""
    positions = list(range(start, start + size))
    own = []
    for micro in np.array_split(positions, micro_batches):
        own += np.array_split(micro, ranks)[rank].tolist()
    return own


@contextmanager
def held(most: float) -> Iterator[None]:
    """Fails when Python and numpy take more bytes of memory than ``most``, be it for a moment."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        assert tracemalloc.get_traced_memory()[1] - before < most
    finally:
        tracemalloc.stop()


def label_of(rows: np.ndarray) -> np.ndarray:
    """A cluster of 16 by row, which no other order of rows would give."""
    return (rows * 1_000_003 % 2_147_483_647 % 16).astype(np.int32)


def round_of(folder: Path, *, resumed: bool) -> Round:
    """A round whose features are numbers, each equal to one of the centroids."""

    def features(*, indices: np.ndarray | range, **_: object) -> Iterator[Streamed]:
        for first in range(0, len(indices), 1 << 16):
            index = np.asarray(indices[first : first + (1 << 16)])
            pooled = {"video": torch.from_numpy(label_of(index)[:, None]).float()}
            yield Streamed(index, pooled, {"video": np.ones(len(index), bool)}, index)

    return cast(
        Round,
        SimpleNamespace(
            folder=folder,
            previous=None,
            resumed=resumed,
            number=1,
            seed=0,
            device=torch.device("cpu"),
            sizes={"train": N},
            features=features,
            truth=lambda: None,
            report=lambda figures: None,
        ),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a round that was labelled, with centroids that lay there."""
    folder = tmp_path_factory.mktemp("round-01")
    centroids = np.arange(16, dtype=np.float32)[:, None]
    np.save(folder / "video.centroids.npy", centroids)
    Preprocessing.fit(centroids).save(folder / "video.preprocessing.npz")
    objective = objective_of()
    relabel(round_of(folder, resumed=False), objective.clusterings, objective._method)
    return folder


def objective_of() -> SDC:
    objective = SDC(clusters=16, balance=True)
    objective.build(Encoders({"video": Perceptron()}, ["video"]))
    return objective


def labels_of(folder: Path) -> np.ndarray:
    """The labels as training reads them, in a run that goes on."""
    objective = objective_of()
    objective.begin_round(round_of(folder, resumed=True))
    (labels,) = objective.balanced_over()
    return labels


# One pass


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_the_ranks_parts_make_the_batch(micro_batches: int) -> None:
    for step in (0, 1, N // BATCH, 10**6, 10**9):
        start = step * BATCH
        parts = [share(start, BATCH, micro_batches, rank, RANKS) for rank in range(RANKS)]
        assert all(len(part) == BATCH // RANKS for part in parts)
        assert sorted(p for part in parts for p in part) == list(range(start, start + BATCH))
        # Each micro-batch is one stretch, of which every rank has as much.
        size = BATCH // micro_batches
        for micro in range(micro_batches):
            own = size // RANKS
            together = [p for part in parts for p in part[micro * own : (micro + 1) * own]]
            assert together == list(range(start + micro * size, start + (micro + 1) * size))


@pytest.mark.parametrize(("size", "micro_batches", "ranks"), [(2048, 1, 64), (2048, 4, 64),
    (2048, 32, 64), (48, 2, 3), (7, 1, 1), (30, 5, 6)])  # fmt: skip
def test_what_a_rank_loads_is_its_part(size: int, micro_batches: int, ranks: int) -> None:
    begun, steps = 12_345 * size, 10**9
    for rank in {0, 1 % ranks, ranks // 2, ranks - 1}:
        with held(1e6):
            loaded = loading._Share(begun, size, steps, Part(rank, ranks, micro_batches))
            found = {step: loaded[step] for step in (0, 1, 10**6, steps - 1)}
        assert len(loaded) == steps
        for step, positions in found.items():
            expected = share(begun + step * size, size, micro_batches, rank, ranks)
            assert positions == expected


def test_a_pass_draws_every_sample_once_on_64_ranks(store: Path) -> None:
    """And each sample comes with its own label, from the file that all ranks share."""
    with held(2e6):
        labels = labels_of(store)
        samplers = [Sampler(N, 7) for _ in range(RANKS)]
        samplers[0].rows(np.arange(BATCH))  # before 64 of them take the machine's memory
    assert isinstance(labels, np.memmap)
    assert labels.flags.writeable is False
    offsets = [np.array(share(0, BATCH, 2, rank, RANKS)) for rank in range(RANKS)]
    seen = np.zeros(N, bool)
    drawn = 0
    many = 1024  # steps at a time
    for first in range(0, N, many * BATCH):
        starts = first + BATCH * np.arange(many)[:, None]
        for sampler, own in zip(samplers, offsets, strict=True):
            positions = (starts + own).ravel()
            rows = sampler.rows(positions[positions < N])  # what follows is the next pass
            seen[rows] = True
            drawn += len(rows)
            assert np.array_equal(labels[rows[::16]], label_of(rows[::16]))
    assert drawn == N
    assert seen.all()


def test_a_rank_holds_no_table(store: Path) -> None:
    with held(1e6):  # a permutation's table has 260 MB, or 520
        sampler = Sampler(N, 7)
        rows = sampler.rows(np.array(share(10**6 * BATCH, BATCH, 1, 5, RANKS)))
    with held(1e6):
        found = labels_of(store)[rows]
    assert np.array_equal(found, label_of(rows))


# Any position at once


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many elements every call of the Feistel network permutes."""
    counts: list[int] = []
    network = Permutation._network

    def counted(self: Permutation, x: np.ndarray) -> np.ndarray:
        counts.append(x.size)
        return network(self, x)

    monkeypatch.setattr(Permutation, "_network", counted)
    return counts


def test_every_position_takes_one_evaluation(evaluations: list[int]) -> None:
    """Where the number of samples is a power of four, so that none falls outside."""
    sampler = Sampler(4**13, 7)
    for position in (0, 1, 4**13 - 1, 4**13, 10**9, 2**50):
        evaluations.clear()
        sampler.rows(np.array([position]))
        assert evaluations == [1]


@pytest.mark.parametrize("step", [0, 1, 1000, N // BATCH, 10**6, 10**9])
def test_a_batch_takes_as_many_evaluations_at_any_step(step: int, evaluations: list[int]) -> None:
    """4^13 elements are permuted for 65 M, so a position takes 1.03 on average."""
    Sampler(N, 7).rows(step * BATCH + np.arange(BATCH))
    assert sum(evaluations) / BATCH == pytest.approx(4**13 / N, abs=0.02)


def test_a_resumed_rank_touches_its_own_positions_only(
    evaluations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, step = 41, 10**6
    asked: list[int] = []
    sample = Rows.sample

    def noted(self: Rows, index: int) -> Sample:
        asked.append(index)
        return sample(self, index)

    monkeypatch.setattr(Rows, "sample", noted)
    reader = ClipReader(Rows(N), {"a": Vector("a")}, seed=1, sampler=Sampler(N, 7))
    batches = training_batches(
        reader,
        start=step * BATCH,
        batch_size=BATCH,
        count=10**6,
        settings=LoaderSettings(workers=0),
        part=Part(rank, RANKS, 2),
    )
    first = next(batches).batch
    batches.close()
    assert sum(evaluations) <= 2 * BATCH // RANKS
    own = Sampler(N, 7).rows(np.array(share(step * BATCH, BATCH, 2, rank, RANKS)))
    assert first.index.tolist() == own.tolist() == asked


# The dry run

# What recipes/xdc_ig65m.yaml is told: as many samples, of which none is looked at.
OVERRIDES = [f"data.train={{use: synthetic, videos: {N}}}", "evaluations=null"]


@pytest.fixture
def dry_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Plan]:
    """A recipe's plan on so many ranks."""

    def of_no_row(self: Synthetic, index: int) -> Sample:
        raise AssertionError(f"row {index} was looked at")

    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Synthetic, "sample", of_no_row)

    def run(ranks: int, *overrides: str, name: str = "xdc_ig65m") -> Plan:
        monkeypatch.setattr(Inline, "ranks", ranks)
        return make_plan(load(name, [*OVERRIDES, *overrides], environ={"IG65M_TRAIN": "none"}))

    return run


def table(plan: Plan, title: str) -> dict[str, list[Any]]:
    """A table's rows by their first cell; the titles of columns under the empty string."""
    (found,) = (t for t in plan.tables if t.title == title)
    rows = {str(row[0]): list(row[1:]) for row in found.rows}
    assert len(rows) == len(found.rows)
    return rows | {"": list(found.columns[1:])}


def test_figures_of_the_flagship(dry_run: Callable[..., Plan]) -> None:
    plan = dry_run(64)
    assert table(plan, "training") == {
        "": [""],
        "optimizer": ["sgd lr=0.01 weight_decay=0.0001"],
        "schedule": ["step step_epochs=3.0 warmup_epochs=1.0"],
        "schedule of the last round": ["step step_epochs=9.0"],
        "an epoch": ["4,883 steps"],
        "precision": ["fp32"],
        "ranks": ["64"],
        "clips of a step, a rank": ["32"],
        # 8 x 224 x 224 x 3 bytes, and 2 s of 16 kHz in float32.
        "decoded clips of a step": ["video 2.47 GB, audio 262 MB"],
        "decoded clips of a step, a rank": ["video 38.5 MB, audio 4.10 MB"],
    }
    both = {
        "clusters": 2048,
        "dimensions": 512,
        "points that centroids are fitted on": 524_288,
        "features of these points": "1.07 GB",
        "k-means, an iteration": "1.10 TFLOP",
        "k-means, 25 iterations": "27.5 TFLOP",
        "nearest centroids of all samples": "136 TFLOP",
        "nearest centroids of a rank's share": "2.13 TFLOP",
        "labels of all samples": "260 MB",
        "features of all, if they were held": "133 GB",
        "features of a rank, if they were held": "2.08 GB",
    }
    assert table(plan, "clustering, each round") == {
        "": ["video", "audio"],
        **{title: [figure, figure] for title, figure in both.items()},
    }
    assert table(plan, "reading and writing, each round") == {
        "": ["in all", "a rank"],
        "clips read to fit centroids": [524_288, 8192],
        "clips read to label": [65_000_000, 1_015_625],
        "labels on disk": ["520 MB", None],
        "labels of 4 rounds": ["2.08 GB", None],
    }
    assert table(plan, "memory besides networks and clips, at most") == {
        "": ["rank 0", "other ranks"],
        "features of the subsample": ["33.6 MB", "33.6 MB"],  # 8192 clips of two modalities
        "copies to fit centroids on": ["1.09 GB", "16.8 MB"],
        "a tile of distances": ["67.1 MB", "67.1 MB"],
        "labels, a mapped file that processes share": ["520 MB", "520 MB"],
    }


def test_one_process_has_no_ranks(dry_run: Callable[..., Plan]) -> None:
    plan = dry_run(1)
    assert not {"ranks", "clips of a step, a rank"} & table(plan, "training").keys()
    assert "nearest centroids of a rank's share" not in table(plan, "clustering, each round")
    assert table(plan, "reading and writing, each round")["clips read to label"] == [N]
    memory = table(plan, "memory besides networks and clips, at most")
    assert memory["features of the subsample"] == ["2.15 GB"]
    assert memory["copies to fit centroids on"] == ["1.07 GB"]


def test_a_limit_lowers_the_costs(dry_run: Callable[..., Plan]) -> None:
    plan = dry_run(64, "data.limit=1000000")
    assert table(plan, "data")["train"][1] == 1_000_000
    assert table(plan, "clustering, each round")["labels of all samples"] == ["4.00 MB"] * 2
    # Where the subsample is all there is, it is not read a second time.
    plan = dry_run(64, "data.limit=500000")
    read = table(plan, "reading and writing, each round")
    assert read["clips read to fit centroids"] == [500_000, 7813]
    assert read["clips read to label"] == [0, 0]


def test_costs_of_the_other_ways_to_cluster() -> None:
    encoders = Encoders({"a": Perceptron(dim=6), "b": Perceptron(dim=4)}, ["a", "b"])

    def figures(objective: Any, ranks: int = 2) -> list[dict[str, list[Any]]]:
        objective.build(encoders)
        found = objective.plan(samples=1001, ranks=ranks)
        plan = Plan("", list(found))
        return [table(plan, t.title) for t in found]

    each, read, memory = figures(CDC(clusters=5, points_per_centroid=10))
    assert each[""] == ["joint"]
    assert each["dimensions"] == [10]
    assert each["k-means, an iteration"] == ["5.00 kFLOP"]  # 2 · 50 · 5 · 10
    assert each["nearest centroids of all samples"] == ["100 kFLOP"]
    assert each["nearest centroids of a rank's share"] == ["50.1 kFLOP"]  # of 501
    assert read["clips read to label"] == [1001, 501]
    assert memory["features of the subsample"] == ["1.00 kB", "1.00 kB"]
    # Of 25 samples: both modalities, the same normalised, and joined. Then rank 0 has all 50.
    assert memory["copies to fit centroids on"] == ["5.00 kB", "3.00 kB"]
    (_, _, memory) = figures(CDC(clusters=5, points_per_centroid=10), ranks=1)
    assert memory["copies to fit centroids on"] == ["6.00 kB"]

    clusters = {"a": 5, "b": 20}
    each, read, memory = figures(
        XDC(clusters=clusters, points_per_centroid=10, pca=3, kmeans_restarts=4, balance=True)
    )
    assert each["clusters"] == [5, 20]
    assert each["dimensions"] == [3, 3]
    assert each["points that centroids are fitted on"] == [50, 200]
    assert each["k-means, 100 iterations"] == ["150 kFLOP", "2.40 MFLOP"]
    assert each["PCA of all samples"] == ["36.0 kFLOP", "24.0 kFLOP"]  # 2 · 1001 · 6 · 3
    assert read["clips read to fit centroids"] == [200, 100]
    assert memory["features of the subsample"] == ["4.00 kB", "4.00 kB"]
    # 200 samples of b: 4 numbers, the same without their mean, 3 components; 100 of its own.
    assert memory["copies to fit centroids on"] == ["10.4 kB", "1.60 kB"]
    assert memory["rows by cluster, to balance"] == ["8.01 kB"] * 2
    assert memory["sorting them, for a moment"] == ["42.0 kB"] * 2


def test_balancing_takes_the_memory_that_is_planned() -> None:
    labels = label_of(np.arange(1_000_000))
    with held(42e6 + 1e5):
        sampler = Sampler(len(labels), 7, [labels])
        rows = sampler.rows(np.arange(100))
    tracemalloc.start()
    again = Sampler(len(labels), 7, [labels])
    assert tracemalloc.get_traced_memory()[0] < 4e6 + 1e5
    tracemalloc.stop()
    assert again.rows(np.arange(100)).tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("ranks", "accumulate", "way_out"),
    [(3, 1, "3 ranks: take 2046 or 2049"), (96, 2, "micro-batches each: take 1920 or 2112"),
     (4096, 1, "4096 ranks: take 4096,")],
)  # fmt: skip
def test_a_batch_that_the_ranks_cannot_share_is_refused(
    ranks: int, accumulate: int, way_out: str, dry_run: Callable[..., Plan]
) -> None:
    with pytest.raises(UserError, match=way_out) as error:
        dry_run(ranks, f"training.accumulate={accumulate}")
    assert "training.batch_size" in str(error.value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"),
     (999_500, "1.00 MB"), (260e6, "260 MB"), (133.12e9, "133 GB"), (1.0995e12, "1.10 TB"),
     (49.9e18, "49.9 EB")],
)  # fmt: skip
def test_quantities_have_three_digits(value: float, shown: str) -> None:
    assert quantity(value, "B") == shown
