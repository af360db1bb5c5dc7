"""SDC, MDC, CDC, XDC: who predicts whose clusters, and that labels stay with their samples."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_round import FakeRound
from sklearn.metrics import homogeneity_score
from torch.nn.functional import log_softmax
from toys import Perceptron

from mmssl.contracts import IGNORE, Batch, Features
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders
from mmssl.training.features import Streamed
from mmssl_clustering.objectives import CDC, MDC, SDC, XDC, DeepClustering

DIMS = {"video": 6, "audio": 4}


def encoders_of(dims: dict[str, int]) -> Encoders:
    return Encoders({name: Perceptron(dim=dim) for name, dim in dims.items()}, list(dims))


def blobs(n: int, k: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of both modalities around k centres far apart, shared by class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n).astype(np.int32)
    data = {}
    for modality, dim in DIMS.items():
        centres = np.random.default_rng(dim).normal(size=(k, dim)) * 20
        data[modality] = (centres[labels] + rng.normal(size=(n, dim))).astype(np.float32)
    return data, labels


def started(
    objective: DeepClustering, tmp_path: Path, n: int = 100, k: int = 4, **fields: object
) -> tuple[DeepClustering, FakeRound]:
    data, labels = blobs(n, k)
    tmp_path.mkdir(exist_ok=True)
    round = FakeRound(tmp_path, {"train": data}, labels=labels, **fields)  # type: ignore[arg-type]
    objective.build(encoders_of(DIMS))
    objective.begin_round(round)
    return objective, round


def batch_of(index: list[int], present: dict[str, list[bool]] | None = None) -> Batch:
    n = len(index)
    masks = present or {m: [True] * n for m in DIMS}
    return Batch(
        index=torch.tensor(index),
        seeds=torch.zeros(n, dtype=torch.int64),
        clips={},
        present={m: torch.tensor(mask) for m, mask in masks.items()},
        labels=torch.full((n,), IGNORE),
    )


def features_of(n: int) -> dict[str, Features]:
    torch.manual_seed(1)
    return {m: Features(torch.randn(n, dim, requires_grad=True)) for m, dim in DIMS.items()}


ROUTES = {
    SDC: {"video": ["video"], "audio": ["audio"]},
    MDC: {"video": ["video", "audio"], "audio": ["video", "audio"]},
    CDC: {"video": ["joint"], "audio": ["joint"]},
    XDC: {"video": ["audio"], "audio": ["video"]},
}


@pytest.mark.parametrize("method", ROUTES)
def test_the_loss_is_the_cross_entropy_with_the_routed_labels(
    method: type[DeepClustering], tmp_path: Path
) -> None:
    objective, round = started(method(clusters=4), tmp_path)
    for head in objective.parameters():
        torch.nn.init.normal_(head)
    index = [3, 99, 40, 0, 12]
    features = features_of(len(index))
    losses = objective.loss(batch_of(index), features)
    expected = 0.0
    for modality, labellings in ROUTES[method].items():
        for name in labellings:
            labels = np.load(round.folder / f"{name}.labels.npy")
            head = objective.heads[modality][name]  # type: ignore[index]
            for i, row in enumerate(index):
                scores = log_softmax(head(features[modality].pooled[i]), dim=0)
                expected -= float(scores[labels[row]].detach()) / len(index)
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ROUTES)
def test_permuting_one_labelling_changes_exactly_the_losses_routed_to_it(
    method: type[DeepClustering], tmp_path: Path
) -> None:
    objective, round = started(method(clusters=4), tmp_path)
    for head in objective.parameters():
        torch.nn.init.normal_(head)
    features, batch = features_of(30), batch_of(list(range(30)))
    before = objective.loss(batch, features).parts
    for name in {name for names in ROUTES[method].values() for name in names}:
        path = round.folder / f"{name}.labels.npy"
        labels = np.load(path)
        np.save(path, (labels + 1) % 4)
        round.resumed = True
        objective.begin_round(round)
        after = objective.loss(batch, features).parts
        np.save(path, labels)
        for key, value in after.items():
            if key.endswith("/loss"):
                modality, _, predicted = key.removesuffix("/loss").partition("<-")
                routed = [predicted] if predicted else ROUTES[method][modality]
                assert (value != before[key]) == (name in routed)


def test_in_xdc_no_gradient_couples_the_encoders(tmp_path: Path) -> None:
    objective, _ = started(XDC(clusters=4), tmp_path)
    features = features_of(10)
    parts = objective.loss(batch_of(list(range(10))), features)
    grads = torch.autograd.grad(parts.total, [f.pooled for f in features.values()])
    alone = features_of(10)
    alone["audio"] = Features(torch.zeros(10, 4))
    total = objective.loss(batch_of(list(range(10))), alone).total
    (video,) = torch.autograd.grad(total, [alone["video"].pooled])
    assert torch.equal(video, grads[0])


def test_labels_stay_with_their_samples_under_any_batch_order(tmp_path: Path) -> None:
    objective, round = started(SDC(clusters=12), tmp_path)
    assert round.labels is not None
    labels = np.load(round.folder / "video.labels.npy")
    # Three clusters for each of four far blobs: every cluster lies in one blob.
    assert homogeneity_score(round.labels, labels) == pytest.approx(1.0)
    order = np.random.default_rng(0).permutation(100)
    targets = objective._targets(batch_of(order.tolist()), "video", "video")
    assert targets.tolist() == labels[order].tolist()


def test_cdc_normalises_each_modality_before_joining(tmp_path: Path) -> None:
    objective, round = started(CDC(clusters=4), tmp_path / "a")
    labels = np.load(round.folder / "joint.labels.npy")
    centroids = np.load(round.folder / "joint.centroids.npy")
    assert centroids.shape == (4, 10)
    units = [
        values / np.linalg.norm(values, axis=1, keepdims=True)
        for values in round.data["train"].values()
    ]
    joined = np.concatenate(units, axis=1)
    distances = ((joined[:, None] - centroids[None]) ** 2).sum(2)
    assert labels.tolist() == distances.argmin(1).tolist()
    # Scaling one modality changes nothing.
    (tmp_path / "b").mkdir()
    scaled = {"video": round.data["train"]["video"] * 1000, "audio": round.data["train"]["audio"]}
    again = FakeRound(tmp_path / "b", {"train": scaled}, labels=round.labels)
    objective.begin_round(again)
    assert np.load(again.folder / "joint.labels.npy").tolist() == labels.tolist()


def test_samples_without_a_modality_are_ignored_and_the_loss_stays_finite(tmp_path: Path) -> None:
    objective, round = started(XDC(clusters=3), tmp_path, absent={"audio": [2, 3]})
    assert np.flatnonzero(np.load(round.folder / "audio.labels.npy") == IGNORE).tolist() == [2, 3]
    assert (np.load(round.folder / "video.labels.npy") >= 0).all()
    features = features_of(3)
    present = {"video": [True, True, True], "audio": [True, False, False]}
    losses = objective.loss(batch_of([1, 2, 3], present), features)
    losses.total.backward()  # type: ignore[no-untyped-call]
    for modality in DIMS:
        grad = features[modality].pooled.grad
        assert grad is not None
        assert grad[1:].eq(0).all()
        assert grad.isfinite().all()
    nothing = {m: [False] * 3 for m in DIMS}
    assert float(objective.loss(batch_of([1, 2, 3], nothing), features_of(3)).total.detach()) == 0


def test_in_cdc_a_sample_needs_all_modalities(tmp_path: Path) -> None:
    _, round = started(CDC(clusters=3), tmp_path, absent={"audio": [2], "video": [5]})
    assert np.flatnonzero(np.load(round.folder / "joint.labels.npy") == IGNORE).tolist() == [2, 5]


def test_new_classifiers_every_round(tmp_path: Path) -> None:
    objective, round = started(XDC(clusters=4), tmp_path / "1")
    first = [p.detach().clone() for p in objective.parameters()]
    (tmp_path / "2").mkdir()
    objective.begin_round(
        FakeRound(tmp_path / "2", round.data, number=2, seed=6, previous=tmp_path / "1")
    )
    second = list(objective.parameters())
    weights = [i for i, p in enumerate(first) if p.ndim == 2]
    assert all(not torch.equal(first[i], second[i]) for i in weights)
    spread = torch.cat([second[i].detach().flatten() for i in weights]).std()
    assert float(spread) == pytest.approx(0.01, rel=0.3)
    assert all(p.eq(0).all() for p in second if p.ndim == 1)


def test_streamed_labels_equal_those_of_kept_features(tmp_path: Path) -> None:
    # 100 samples: 4 clusters on 256 points each keep all features; on 5 points they cannot.
    _objective, round = started(XDC(clusters=4, points_per_centroid=5), tmp_path)
    assert round.passes == ["features to cluster", "features to label"]
    for modality in DIMS:
        labels = np.load(round.folder / f"{modality}.labels.npy")
        centroids = np.load(round.folder / f"{modality}.centroids.npy")
        distances = ((round.data["train"][modality][:, None] - centroids[None]) ** 2).sum(2)
        assert labels.tolist() == distances.argmin(1).tolist()
    _, kept = started(XDC(clusters=4), tmp_path / "kept")
    assert kept.passes == ["features to cluster"]


def test_validation_clips_get_the_nearest_training_centroid(tmp_path: Path) -> None:
    train, validation = blobs(80, 4)[0], blobs(30, 4, seed=9)[0]
    objective = SDC(clusters=4)
    objective.build(encoders_of(DIMS))
    objective.begin_round(FakeRound(tmp_path, {"train": train, "validation": validation}))
    centroids = np.load(tmp_path / "audio.centroids.npy")
    distances = ((validation["audio"][:, None] - centroids[None]) ** 2).sum(2)
    assert np.load(tmp_path / "audio.validation.npy").tolist() == distances.argmin(1).tolist()


def test_health_is_reported(tmp_path: Path) -> None:
    objective, round = started(XDC(clusters=12), tmp_path / "1")
    for modality in DIMS:
        assert round.reported[f"{modality}/purity"] == 1.0
        assert 0.6 < round.reported[f"{modality}/nmi"] < 1.0
        assert round.reported[f"{modality}/used"] == 12
        assert round.reported[f"{modality}/labelled"] == 1.0
    assert 0.6 < round.reported["video-audio/nmi"] < 1.0
    (tmp_path / "2").mkdir()
    second = FakeRound(tmp_path / "2", round.data, number=2, previous=tmp_path / "1")
    objective.begin_round(second)
    assert second.reported["video/changed"] == 0.0  # the same features, the same clusters
    assert "video/purity" not in second.reported  # nothing knows the labels here


def test_clusters_by_labelling(tmp_path: Path) -> None:
    objective, _ = started(XDC(clusters={"video": 4, "audio": 3}), tmp_path)
    assert objective.heads["video"]["audio"].out_features == 3  # type: ignore[index]
    assert objective.heads["audio"]["video"].out_features == 4  # type: ignore[index]
    with pytest.raises(UserError, match="give a number for each of joint, not for video"):
        CDC(clusters={"video": 4}).build(encoders_of(DIMS))


def test_three_modalities() -> None:
    objective = XDC(clusters=4)
    objective.build(encoders_of({"video": 2, "audio": 2, "imu": 2}))
    routes = {m: list(heads) for m, heads in objective.heads.items()}  # type: ignore[call-overload]
    assert routes == {
        "video": ["audio", "imu"],
        "audio": ["video", "imu"],
        "imu": ["video", "audio"],
    }


@pytest.mark.parametrize("method", [MDC, CDC, XDC])
def test_one_modality_is_not_enough(method: type[DeepClustering]) -> None:
    with pytest.raises(UserError, match="needs two modalities or more; sdc works with one"):
        method().build(encoders_of({"video": 3}))


def test_fewer_samples_than_clusters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective.clusters: 101 clusters of video.* only 100"):
        started(XDC(clusters=101), tmp_path)


@pytest.mark.parametrize("balance", [False, True])
def test_balance_offers_the_labellings(balance: bool, tmp_path: Path) -> None:
    objective, round = started(XDC(clusters=4, balance=balance), tmp_path)
    offered = [labels.tolist() for labels in objective.balanced_over()]
    both = [np.load(round.folder / f"{m}.labels.npy").tolist() for m in DIMS]
    assert offered == (both if balance else [])


@pytest.mark.parametrize("reaction", ["warn", "stop"])
def test_collapse_is_noticed_before_anything_is_trained(tmp_path: Path, reaction: str) -> None:
    features = np.zeros((100, 6), np.float32)  # nothing tells the samples apart
    objective = SDC(clusters=2, on_collapse=reaction)  # type: ignore[arg-type]
    objective.build(encoders_of(DIMS))
    data = {"video": features, "audio": blobs(100, 2)[0]["audio"]}
    round = FakeRound(tmp_path, {"train": data})
    text = (
        "the clusters of video have collapsed in round 1: 1 of 2 are used and the largest holds "
        "100% of the samples"
    )
    if reaction == "warn":
        objective.begin_round(round)
        assert round.said == [f"warning: {text}"]
        return
    for _ in range(2):  # starting again is no way around it
        with pytest.raises(UserError, match=text):
            objective.begin_round(round)
    assert not (tmp_path / "health.json").exists()


def test_the_subsample_is_the_same_whichever_centroids_are_there(tmp_path: Path) -> None:
    """A process killed between two labellings of unequal k must not change the second one."""
    clusters = {"video": 5, "audio": 3}
    whole, _ = started(XDC(clusters=clusters, points_per_centroid=6), tmp_path / "whole")
    resumed = XDC(clusters=clusters, points_per_centroid=6)
    resumed.build(encoders_of(DIMS))
    folder = tmp_path / "resumed"
    folder.mkdir()
    for name in ("video.centroids.npy", "video.preprocessing.npz"):
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    data, labels = blobs(100, 4)
    round = FakeRound(folder, {"train": data}, labels=labels)
    rows: list[int] = []
    original = round.features

    def spying(**kwargs: Any) -> Iterator[Streamed]:
        if kwargs["title"] == "features to cluster":
            rows.extend(kwargs["indices"])
        return original(**kwargs)

    round.features = spying  # type: ignore[method-assign]
    resumed.begin_round(round)
    assert len(rows) == 30  # five clusters' worth, though only three are left to fit
    expected = np.load(tmp_path / "whole" / "audio.centroids.npy")
    assert np.array_equal(np.load(folder / "audio.centroids.npy"), expected)
    assert whole.clusterings == resumed.clusterings
