"""Deep clustering of three modalities and more: XDC by `routing`, and the other methods."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fake_round import FakeRound
from ranks import on_ranks
from torch.nn.functional import log_softmax
from toy_runs import changed, outcome, pretraining, same_log
from toys import Perceptron, Rows

from mmssl.contracts import IGNORE, Batch, Features
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders
from mmssl.training.log import read_log
from mmssl_clustering.costs import tables
from mmssl_clustering.measures import purity
from mmssl_clustering.objectives import CDC, MDC, SDC, XDC, DeepClustering, Routing

ROUTINGS = get_args(Routing)
DIMS = {"video": 6, "audio": 4, "imu": 3}

# Of three modalities: the labellings, and which of them each encoder predicts.
ROUTES = {
    "others": {"video": ["audio", "imu"], "audio": ["video", "imu"], "imu": ["video", "audio"]},
    "ring": {"video": ["audio"], "audio": ["imu"], "imu": ["video"]},
    "concatenated": {"video": ["audio+imu"], "audio": ["video+imu"], "imu": ["video+audio"]},
}
LABELLINGS = {
    "others": ["video", "audio", "imu"],
    "ring": ["video", "audio", "imu"],
    "concatenated": ["video+audio", "video+imu", "audio+imu"],
}


def built(objective: Any, dims: Mapping[str, int] = DIMS) -> Any:
    backbones = {name: Perceptron(dim=dim) for name, dim in dims.items()}
    objective.build(Encoders(backbones, list(dims)))
    return objective


def routes(objective: XDC) -> dict[str, list[str]]:
    return {m: list(heads) for m, heads in objective.heads.items()}  # type: ignore[call-overload]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_whose_clusters_are_predicted(routing: Routing) -> None:
    objective = built(XDC(routing=routing, clusters=4))
    assert routes(objective) == ROUTES[routing]
    assert [c.name for c in objective.clusterings] == LABELLINGS[routing]
    assert [c.name.split("+") for c in objective.clusterings] == [
        list(c.sources) for c in objective.clusterings
    ]


def test_four_modalities() -> None:
    dims = dict.fromkeys("abcd", 2)
    ring = routes(built(XDC(routing="ring"), dims))
    assert ring == {"a": ["b"], "b": ["c"], "c": ["d"], "d": ["a"]}
    joined = routes(built(XDC(routing="concatenated"), dims))
    assert joined == {"a": ["b+c+d"], "b": ["a+c+d"], "c": ["a+b+d"], "d": ["a+b+c"]}


def test_numbers_of_clusters_by_name() -> None:
    clusters = {"video+audio": 2, "video+imu": 3, "audio+imu": 4}
    objective = built(XDC(routing="concatenated", clusters=clusters))
    assert objective.heads["video"]["audio+imu"].out_features == 4  # type: ignore[index]
    assert objective.heads["imu"]["video+audio"].out_features == 2  # type: ignore[index]
    with pytest.raises(UserError, match=r"each of video\+audio, video\+imu, audio\+imu, not for v"):
        built(XDC(routing="concatenated", clusters={"video": 2, "audio": 2, "imu": 2}))


@pytest.mark.parametrize("routing", ["ring", "concatenated"])
def test_of_two_modalities_all_routings_are_the_same(tmp_path: Path, routing: Routing) -> None:
    """Bit for bit: names, labels, which labelling a position is balanced over, losses."""
    for name in ("others", routing):
        objective = XDC(routing=name, rounds=2, clusters=5, balance=True, normalize="standardize")
        pretraining(tmp_path / name, objective=objective, epochs=1).run()
    assert outcome(tmp_path / routing) == outcome(tmp_path / "others")
    assert "a/loss" in read_log(tmp_path / routing)[1]


def blobs(n: int) -> dict[str, np.ndarray]:
    """Features around four centres that modalities share; of very unequal lengths."""
    rng = np.random.default_rng(0)
    shared = rng.integers(4, size=n)
    return {
        name: (
            (10.0**i) * (rng.normal(size=(4, dim)) * 9)[shared] + rng.normal(size=(n, dim))
        ).astype(np.float32)
        for i, (name, dim) in enumerate(DIMS.items())
    }


ABSENT = {"video": [3], "audio": [7, 8], "imu": [8, 20]}


# All of deep clustering: the objective, its labellings, and which an encoder predicts.
METHODS: dict[str, tuple[DeepClustering, list[str], dict[str, list[str]]]] = {
    "sdc": (SDC(clusters=5), list(DIMS), {name: [name] for name in DIMS}),
    "mdc": (MDC(clusters=5), list(DIMS), {name: list(DIMS) for name in DIMS}),
    "cdc": (CDC(clusters=5), ["joint"], {name: ["joint"] for name in DIMS}),
    **{r: (XDC(clusters=5, routing=r), LABELLINGS[r], ROUTES[r]) for r in ROUTINGS},
}


@pytest.mark.parametrize("method", METHODS)
def test_labels_and_loss_are_those_of_a_slow_reference(tmp_path: Path, method: str) -> None:
    objective, labellings, routed = METHODS[method]
    built(objective)
    data = blobs(60)
    round = FakeRound(tmp_path, {"train": data}, absent=ABSENT)
    objective.begin_round(round)
    expected_labels: dict[str, list[int]] = {}
    for name in labellings:
        centroids = np.load(tmp_path / f"{name}.centroids.npy")
        sources = list(DIMS) if name == "joint" else name.split("+")
        labels = []
        for row in range(60):
            vectors = [data[source][row] for source in sources]
            if len(vectors) > 1:
                vectors = [vector / np.sqrt((vector**2).sum()) for vector in vectors]
            distances = ((np.concatenate(vectors) - centroids) ** 2).sum(1)
            lacks = any(row in ABSENT[source] for source in sources)
            labels.append(IGNORE if lacks else int(distances.argmin()))
        assert np.load(tmp_path / f"{name}.labels.npy").tolist() == labels
        expected_labels[name] = labels

    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter)
    rows = [8, 1, 3, 20, 59, 7]
    batch = Batch(
        index=torch.tensor(rows),
        seeds=torch.zeros(len(rows), dtype=torch.int64),
        clips={},
        present={m: torch.tensor([row not in ABSENT[m] for row in rows]) for m in DIMS},
        labels=torch.full((len(rows),), IGNORE),
    )
    torch.manual_seed(1)
    features = {m: Features(torch.randn(len(rows), d, requires_grad=True)) for m, d in DIMS.items()}
    losses = objective.loss(batch, features)
    expected = 0.0
    for modality, names in routed.items():
        for name in names:
            head = objective.heads[modality][name]  # type: ignore[index]
            each = []
            for i, row in enumerate(rows):
                label = expected_labels[name][row]
                if row not in ABSENT[modality] and label != IGNORE:
                    logits = head(features[modality].pooled[i])
                    each.append(-float(log_softmax(logits, 0)[label].detach()))
            part = f"{modality}/loss" if len(names) == 1 else f"{modality}<-{name}/loss"
            assert float(losses.parts[part]) == pytest.approx(np.mean(each), rel=1e-5)
            assert int(losses.counts[part]) == len(each)
            expected += float(np.mean(each))
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-5)
    losses.total.backward()  # type: ignore[no-untyped-call]
    for modality, found in features.items():
        assert found.pooled.grad is not None
        taught = [
            row not in ABSENT[modality]
            and any(expected_labels[name][row] != IGNORE for name in routed[modality])
            for row in rows
        ]
        assert found.pooled.grad.any(1).tolist() == taught


def test_scaling_a_modality_changes_no_concatenated_labels(tmp_path: Path) -> None:
    objective = built(XDC(routing="concatenated", clusters=4))
    data = blobs(50)
    found = []
    for factor in (1, 1000):
        folder = tmp_path / str(factor)
        folder.mkdir()
        objective.begin_round(FakeRound(folder, {"train": {**data, "imu": data["imu"] * factor}}))
        found.append([np.load(folder / f"{n}.labels.npy").tolist() for n in LABELLINGS["concatenated"]])  # fmt: skip  # noqa: E501
    assert found[0] == found[1]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_health_and_costs_have_each_labelling(tmp_path: Path, routing: Routing) -> None:
    objective = built(XDC(routing=routing, clusters=4))
    round = FakeRound(tmp_path, {"train": blobs(60)}, absent=ABSENT)
    objective.begin_round(round)
    names = LABELLINGS[routing]
    for name in names:
        lacking = set().union(*(ABSENT[source] for source in name.split("+")))
        assert round.reported[f"{name}/labelled"] == pytest.approx(1 - len(lacking) / 60)
    pairs = [f"{names[0]}-{names[1]}", f"{names[0]}-{names[2]}", f"{names[1]}-{names[2]}"]
    assert [k.removesuffix("/nmi") for k in round.reported if k.endswith("/nmi")] == pairs
    labelling, *_ = objective.plan(samples=1000, ranks=2)
    assert labelling.columns == ("", *names)
    dims = next(row for row in labelling.rows if row[0] == "dimensions")
    assert dims[1:] == tuple(sum(DIMS[source] for source in name.split("+")) for name in names)
    assert list(objective.plan(samples=1000, ranks=2)) == tables(
        objective.clusterings, objective._method, dims=DIMS, samples=1000, ranks=2,
        rounds=4, balance=False,
    )  # fmt: skip


# Whole runs. 47 rows, which 2 does not divide; some lack one modality, row 20 lacks two.

DATA = Rows(47, bad=[11], without={"a": [5, 6], "b": [20, 21], "c": [20, 30]})
RUN = changed(batch_size=12, epoch_size=36, accumulate=2, lr_batch=None, checkpoint_steps=2)


class Killed(Exception):
    """As a kill, it leaves no chance to save anything."""


def run(folder: Path, routing: Routing, stop_at: int | None = None) -> dict[str, Any]:
    one = pretraining(
        folder, settings=RUN, data=DATA, dropout=0.0, epochs=1, names="abc",
        objective=XDC(routing=routing, rounds=2, clusters=4, points_per_centroid=6),
    )  # fmt: skip
    step = one.step

    def stepping(batch: Batch, factor: float) -> Any:
        if one.state.global_step == stop_at:
            raise Killed
        return step(batch, factor)

    one.step = stepping  # type: ignore[method-assign]
    try:
        one.run()
    except Killed:
        assert stop_at is not None
    return one.encoders.state_dict()


@pytest.mark.parametrize("routing", ROUTINGS)
def test_two_ranks_train_as_one_and_resuming_changes_nothing(
    tmp_path: Path, routing: Routing
) -> None:
    one = run(tmp_path / "one", routing)
    for stop_at in (1, 4, None):  # in the middle of either round
        resumed = run(tmp_path / "resumed", routing, stop_at)
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "one")
    assert all(torch.equal(resumed[name], value) for name, value in one.items())
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
    for found in on_ranks(2, run, tmp_path / "two", routing):
        close(found, one)
    assert outcome(tmp_path / "two")[1] == outcome(tmp_path / "one")[1]
    same_log(read_log(tmp_path / "two"), read_log(tmp_path / "one"))


@pytest.mark.parametrize("routing", ROUTINGS)
def test_each_routing_learns_what_modalities_share(tmp_path: Path, routing: Routing) -> None:
    objective = XDC(
        routing=routing,
        rounds=3,
        clusters=6,
        balance=True,
        normalize="standardize_l2",
        kmeans_restarts=3,
    )
    data = Rows(480, number_of_classes=4)
    settings = changed(epoch_size=480, batch_size=24, lr_batch=None)
    pretraining(
        tmp_path, settings=settings, data=data, objective=objective, names="abc", noise=1.5
    ).run()
    for name in (clustering.name for clustering in objective.clusterings):
        paths = [tmp_path / f"clusters/round-{n:02}/{name}.labels.npy" for n in (1, 3)]
        first, last = (purity(np.load(path), data.labels()) for path in paths)
        assert last > 0.6, name  # chance is 0.25
        assert last > first + 0.08, name
