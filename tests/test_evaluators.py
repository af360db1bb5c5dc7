"""The linear probe against an independent solver; cluster tables of hand-made label files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.metrics
import torch
from sklearn.preprocessing import StandardScaler

from mmssl.contracts import IGNORE, Dataset, Evaluation, LabelledFeatures, Sample
from mmssl.errors import UserError
from mmssl_evaluators import labelled
from mmssl_evaluators.clusters import Clusters
from mmssl_evaluators.linear_probe import LinearProbe

# A regression that has not converged is not the one that is documented.
pytestmark = pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")

CLASSES = ["cello", "drums", "golf", "yoga"]


class Labelled(Dataset):
    def __init__(self, labels: Sequence[int], classes: Sequence[str] = CLASSES) -> None:
        self.classes = classes
        self._labels = np.asarray(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def sample(self, index: int) -> Sample:
        label = int(self._labels[index])
        return Sample(id=str(index), media=None, label=None if label == IGNORE else label)


@dataclass
class Context:
    """Features drawn about a mean for each class; `spread` is how far apart the means are."""

    spread: dict[str, float] = field(default_factory=lambda: {"video": 2.0, "audio": 0.5})
    run_folder: Path = Path()
    pretraining_data: Dataset = field(default_factory=lambda: Labelled([]))
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dim: int = 6
    unreadable: frozenset[str] = frozenset()
    asked: list[tuple[Dataset, str, int]] = field(default_factory=list)

    @property
    def modalities(self) -> Sequence[str]:
        return list(self.spread)

    def features(
        self,
        dataset: Dataset,
        *,
        weights: str = "pretrained",
        read: object = None,
        modalities: object = None,
        clips: int = 1,
        crops: int = 1,
        over_views: str = "mean",
    ) -> dict[str, LabelledFeatures]:
        assert (read, modalities, over_views) == (None, None, "mean")
        self.asked.append((dataset, weights, clips * crops))
        labels = dataset.labels()
        index = np.flatnonzero(labels != IGNORE)
        labels = labels[index].astype(np.int64)
        found = {}
        for i, (modality, spread) in enumerate(self.spread.items()):
            means = np.random.default_rng(i).normal(size=(len(dataset.classes), self.dim))
            noise = np.random.default_rng((i, len(dataset), weights == "initial"))
            pooled = noise.normal(size=(len(index), self.dim))
            if weights == "pretrained":
                pooled += spread * means[labels]
            pooled = (pooled * 10 ** np.linspace(-3, 3, self.dim) + 5).astype(np.float32)
            n = 0 if modality in self.unreadable else len(index)
            found[modality] = LabelledFeatures(index[:n], pooled[:n], labels[:n])
        return found


def balanced(n: int, classes: int = 4) -> Labelled:
    return Labelled(np.arange(n) % classes, [*CLASSES, *map(str, range(4, classes))][:classes])


def softmax_regression(train: LabelledFeatures, test: LabelledFeatures, strength: float) -> Any:
    """Test scores of the minimiser of mean cross-entropy + strength / 2 · ‖W‖², by scipy."""
    mean = train.pooled.mean(axis=0, dtype=np.float64)
    std = train.pooled.std(axis=0, dtype=np.float64)
    x, y = (train.pooled - mean) / std, train.labels
    classes = y.max() + 1

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(x.shape[1] + 1, classes)
        log_p = scipy.special.log_softmax(x @ w[:-1] + w[-1], axis=1)
        loss = -log_p[np.arange(len(y)), y].mean() + strength / 2 * (w[:-1] ** 2).sum()
        error = (np.exp(log_p) - np.eye(classes)[y]) / len(y)
        return loss, np.vstack([x.T @ error + strength * w[:-1], error.sum(axis=0)]).ravel()

    start = np.zeros((x.shape[1] + 1) * classes)
    w = scipy.optimize.minimize(objective, start, jac=True, method="BFGS").x
    w = w.reshape(x.shape[1] + 1, classes)
    return (test.pooled - mean) / std @ w[:-1] + w[-1]


def test_accuracy_is_an_independent_solvers() -> None:
    context = Context(spread={"video": 0.6, "audio": 0.3})
    train, test = balanced(300), balanced(203)
    for strength in (0.001, 0.3):
        metrics = (
            LinearProbe(train=train, test=test, regularisation=(strength,))
            .evaluate(context)
            .metrics
        )
        for weights, suffix in (("pretrained", ""), ("initial", "_untrained")):
            a, b = context.features(train, weights=weights), context.features(test, weights=weights)
            for modality in ("video", "audio"):
                scores = softmax_regression(a[modality], b[modality], strength)
                expected = (scores.argmax(axis=1) == b[modality].labels).mean()
                # A score on the boundary may fall to either side.
                got = metrics[f"{modality}/top1{suffix}"]
                assert got == pytest.approx(expected, abs=1.01 / 203)
        assert 0.3 < metrics["video/top1"] < 0.95


def test_pretrained_beside_untrained() -> None:
    context = Context()
    train, test = balanced(200), balanced(402)
    result = LinearProbe(train=train, test=test, clips=3).evaluate(context)
    metrics = result.metrics
    assert metrics["video/top1"] > 0.9
    assert metrics["audio/top1"] < metrics["video/top1"]
    assert metrics["video/top1_untrained"] < 0.35
    assert metrics["chance"] == pytest.approx(101 / 402)
    assert metrics["video/train_samples"] == 200
    assert metrics["video/test_samples"] == 402
    for modality in ("video", "audio"):
        gain = metrics[f"{modality}/top1"] - metrics[f"{modality}/top1_untrained"]
        assert metrics[f"{modality}/gain"] == gain
    assert "video/top5" not in metrics
    assert context.asked == [
        (train, "pretrained", 3),
        (test, "pretrained", 3),
        (train, "initial", 3),
        (test, "initial", 3),
    ]

    (table,) = result.tables
    assert table.columns == ["modality", "pretrained", "untrained", "gain (points)", "chance"]
    assert [row[0] for row in table.rows] == ["video", "audio"]
    top1, untrained = metrics["video/top1"], metrics["video/top1_untrained"]
    assert table.rows[0][1:] == [
        f"{100 * top1:.1f} %",
        f"{100 * untrained:.1f} %",
        f"{100 * (top1 - untrained):+.1f}",
        "25.1 %",
    ]
    assert_png(result, "linear_probe")


def test_without_untrained() -> None:
    context = Context()
    probe = LinearProbe(train=balanced(40), test=balanced(40), untrained=False)
    result = probe.evaluate(context)
    assert {weights for _, weights, _ in context.asked} == {"pretrained"}
    assert not [name for name in result.metrics if "untrained" in name or "gain" in name]
    assert result.tables[0].columns == ["modality", "pretrained", "chance"]
    assert_png(result, "linear_probe")


def test_top5_counts_the_five_best() -> None:
    context = Context(spread={"video": 0.5})
    train, test = balanced(600, classes=12), balanced(301, classes=12)
    metrics = LinearProbe(train=train, test=test, regularisation=(0.01,)).evaluate(context).metrics
    a, b = context.features(train)["video"], context.features(test)["video"]
    scores = softmax_regression(a, b, 0.01)
    expected = sklearn.metrics.top_k_accuracy_score(b.labels, scores, k=5)
    assert metrics["video/top5"] == pytest.approx(expected, abs=1.01 / 301)
    assert metrics["video/top1"] < metrics["video/top5"] < 1
    assert 0 < metrics["video/top5_untrained"] < 0.6


def test_same_seed_same_figures() -> None:
    probe = LinearProbe(train=balanced(90), test=balanced(80))
    context = Context(spread={"video": 0.5})
    assert probe.evaluate(context).metrics == probe.evaluate(context).metrics


def test_test_set_is_looked_at_once_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(spread={"video": 1.0})
    train, test = balanced(60), balanced(50)
    rows = {
        tuple(row): name
        for name, data in (("train", train), ("test", test))
        for row in context.features(data)["video"].pooled.astype(np.float64)
    }
    seen: list[tuple[str, set[str], int]] = []
    for method in ("fit", "transform"):
        original = getattr(StandardScaler, method)

        def spy(self: Any, x: Any, *args: Any, method: str = method, original: Any = original):  # noqa: ANN202
            seen.append((method, {rows[tuple(row)] for row in x}, len(x)))
            return original(self, x, *args)

        monkeypatch.setattr(StandardScaler, method, spy)
    LinearProbe(
        train=train, test=test, untrained=False, regularisation=(0.01, 1.0), held_out=0.25
    ).evaluate(context)
    transformed = [(names, n) for method, names, n in seen if method == "transform"]
    train_only = {"train"}
    choice = [(train_only, 45), (train_only, 15)]  # fitted on the rest, measured on the held out
    assert transformed == [*choice, *choice, (train_only, 60), ({"test"}, 50)]
    assert all(names == train_only for method, names, _ in seen if method == "fit")


def test_choice_of_regularisation() -> None:
    # Many noise dimensions and few samples: weak regularisation overfits.
    context = Context(spread={"video": 0.25}, dim=60)
    train, test = balanced(120), balanced(1000)
    accuracies = {
        strength: LinearProbe(train=train, test=test, regularisation=(strength,))
        .evaluate(context)
        .metrics["video/top1"]
        for strength in (1e-5, 1.0)
    }
    assert accuracies[1.0] > accuracies[1e-5]
    chosen = LinearProbe(train=train, test=test, regularisation=(1e-5, 1.0)).evaluate(context)
    assert chosen.metrics["video/regularisation"] == 1.0
    assert chosen.metrics["video/top1"] == accuracies[1.0]


def test_equally_good_strengths_give_the_strongest() -> None:
    context = Context(spread={"video": 50.0})
    probe = LinearProbe(train=balanced(60), test=balanced(40), regularisation=(1e-3, 1e-2, 1e-4))
    metrics = probe.evaluate(context).metrics
    assert metrics["video/top1"] == 1
    assert metrics["video/regularisation"] == 1e-2


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.9])
def test_held_out_part(fraction: float) -> None:
    counts = [100, 50, 10, 1, 2]
    labels = np.repeat(np.arange(5), counts)
    np.random.default_rng(0).shuffle(labels)
    held = labelled.hold_out(labels, fraction, np.random.default_rng(1))
    assert held.sum() == min(round(fraction * len(labels)), len(labels) - 5)
    for label, count in enumerate(counts):
        of_class = held[labels == label].sum()
        assert of_class < count  # every class is still trained on
        assert of_class == pytest.approx(fraction * count, abs=2)
    again = labelled.hold_out(labels, fraction, np.random.default_rng(1))
    other = labelled.hold_out(labels, fraction, np.random.default_rng(2))
    assert (held == again).all()
    assert (held != other).any()


def test_unlabelled_samples_are_left_out() -> None:
    train = Labelled([0, 1, IGNORE] * 20, CLASSES[:2])
    metrics = LinearProbe(train=train, test=train).evaluate(Context()).metrics
    assert metrics["video/train_samples"] == 40
    assert metrics["chance"] == 0.5


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (Labelled([0, 1], []), Labelled([0, 1], []), "has no labels"),
        (Labelled([0, 1], ["a", "b"]), Labelled([0, 1], ["b", "a"]), "same order.*'a', 'b' and"),
        (Labelled([0, 0, 1]), Labelled([0, 1, 3]), "train has no sample of 'yoga'"),
        (Labelled([0, 1, 2]), Labelled([0, 1]), "test has no sample of 'golf'"),
        (Labelled([1, 1]), Labelled([1]), "at least two classes"),
        (Labelled([IGNORE]), Labelled([IGNORE]), "at least two classes"),
        (Labelled([0, 1, 2]), Labelled([0, 1, 2]), "no class has a second training sample"),
    ],
)
def test_datasets_that_do_not_fit(train: Dataset, test: Dataset, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LinearProbe(train=train, test=test).evaluate(Context())


def test_modality_that_cannot_be_read() -> None:
    context = Context(unreadable=frozenset({"audio"}))
    with pytest.raises(UserError, match=r"too few samples with audio could be read \(0 for"):
        LinearProbe(train=balanced(40), test=balanced(40)).evaluate(context)


# Clusters of 12 clips: three of cello, two of drums, four of golf, three of yoga. In round 2 the
# video clusters hold, in this order, ccc | ddg | ggg y | yy, and the audio clusters nothing.
TRUTH = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3]
VIDEO = {
    1: [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3],
    2: [1, 1, 1, 0, 0, 0, 2, 2, 2, 2, 4, 4],
}
AUDIO = {1: [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3], 2: [0, 1] * 6}


@pytest.fixture
def clustered(tmp_path: Path) -> Context:
    for name, rounds in (("video", VIDEO), ("audio", AUDIO)):
        for number, labels in rounds.items():
            write(tmp_path, number, name, labels)
    return Context(run_folder=tmp_path, pretraining_data=Labelled(TRUTH))


def write(run_folder: Path, number: int, name: str, labels: Sequence[int]) -> None:
    folder = run_folder / "clusters" / f"round-{number:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.labels.npy", np.array(labels, np.int32))
    # What else lies in the folder is no labeling of the training data.
    np.save(folder / f"{name}.validation.labels.npy", np.zeros(3, np.int32))
    np.save(folder / f"{name}.centroids.npy", np.zeros((3, 2), np.float32))


def test_clusters_of_the_last_round(clustered: Context) -> None:
    result = Clusters().evaluate(clustered)
    metrics = result.metrics
    assert metrics["round"] == 2
    assert metrics["video/purity"] == pytest.approx((3 + 2 + 3 + 2) / 12)
    assert metrics["video/used_clusters"] == 4
    assert metrics["audio/used_clusters"] == 2
    for name, labels in (("video", VIDEO[2]), ("audio", AUDIO[2])):
        for measure, theirs in (
            ("nmi", sklearn.metrics.normalized_mutual_info_score),
            ("ami", sklearn.metrics.adjusted_mutual_info_score),
            ("ari", sklearn.metrics.adjusted_rand_score),
        ):
            assert metrics[f"{name}/{measure}"] == pytest.approx(theirs(TRUTH, labels))
    mixed = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)) * 3 / 12
    mixed += -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4)) * 4 / 12
    assert metrics["video/class_entropy_nats"] == pytest.approx(mixed)
    # Each cluster counts alike.
    assert metrics["video/mean_purity"] == pytest.approx((1 + 1 + 2 / 3 + 3 / 4) / 4)
    entropies = [0, 0]
    entropies += [-sum(p * np.log(p) for p in (q, 1 - q)) for q in (2 / 3, 3 / 4)]
    assert metrics["video/mean_class_entropy_nats"] == pytest.approx(np.mean(entropies))
    # Each of the four clusters stands for the class that leads in it.
    assert metrics["video/matched_accuracy"] == pytest.approx(10 / 12)
    # Two clusters can stand for two of the four classes only, with two clips each.
    assert metrics["audio/matched_accuracy"] == pytest.approx(4 / 12)
    between = sklearn.metrics.normalized_mutual_info_score(VIDEO[2], AUDIO[2])
    assert metrics["video-audio/nmi"] == pytest.approx(between)

    video, audio = result.tables
    assert "video" in video.title
    assert "audio" in audio.title
    assert video.columns == ["rank", "cluster", "size", "purity", "leading classes"]
    assert video.rows == [
        [1, 1, 3, 1.0, "cello 1.00"],
        [2, 4, 2, 1.0, "yoga 1.00"],
        [3, 2, 4, 0.75, "golf .75, yoga .25"],
        [4, 0, 3, 0.6667, "drums .67, golf .33"],
    ]
    assert_png(result, "clusters")
    assert_png(result, "clusters_rounds")


def test_purity_by_round_is_plotted(clustered: Context) -> None:
    figure = Clusters().evaluate(clustered).figures["clusters_rounds"]
    purities, nmis = (
        {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        for axes in figure.axes
    )
    # Round 1: the three clips of each cluster are of three classes.
    assert purities["video"] == [[1, pytest.approx(1 / 3)], [2, pytest.approx(10 / 12)]]
    expected = sklearn.metrics.normalized_mutual_info_score(TRUTH, AUDIO[2])
    assert nmis["audio"][1] == [2, pytest.approx(expected)]


def test_an_earlier_round_and_both_ends_of_the_ranking(clustered: Context) -> None:
    result = Clusters(round=1).evaluate(clustered)
    assert result.metrics["round"] == 1
    assert result.metrics["video-audio/nmi"] == 1
    rows = Clusters(rows=1, top=1).evaluate(clustered).tables[0].rows
    assert rows == [[1, 1, 3, 1.0, "cello 1.00"], [4, 0, 3, 0.6667, "drums .67"]]


def test_joint_labeling_with_ignored_samples(tmp_path: Path) -> None:
    write(tmp_path, 112, "joint", [0, 0, IGNORE, 1, 1, 1])
    data = Labelled([0, IGNORE, 0, 1, 1, 2])
    result = Clusters().evaluate(Context(run_folder=tmp_path, pretraining_data=data))
    assert result.metrics["round"] == 112
    assert result.metrics["joint/purity"] == 3 / 4
    assert [row[1:3] for row in result.tables[0].rows] == [[0, 1], [1, 3]]
    assert list(result.figures) == ["clusters"]


def test_clusters_of_several_modalities_together(tmp_path: Path) -> None:
    order = ["video", "imu", "video+audio", "imu+audio", "joint"]
    for name in order:
        write(tmp_path, 1, name, VIDEO[2])
    spread = {"video": 1.0, "imu": 1.0, "audio": 1.0}
    context = Context(spread, run_folder=tmp_path, pretraining_data=Labelled(TRUTH))
    result = Clusters().evaluate(context)
    assert [table.title for table in result.tables] == [
        f"Clusters of {name}, ranked by purity" for name in order
    ]
    assert result.metrics["video-imu+audio/nmi"] == pytest.approx(1)


def test_clusters_that_cannot_be_measured(clustered: Context, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no round 3, only rounds 1 to 2"):
        Clusters(round=3).evaluate(clustered)
    clustered.pretraining_data = Labelled([IGNORE] * 12)
    with pytest.raises(UserError, match="needs a pretraining dataset with labels"):
        Clusters().evaluate(clustered)
    clustered.pretraining_data.multilabel = True
    with pytest.raises(UserError, match=r"one class each.*these have several"):
        Clusters().evaluate(clustered)
    clustered.pretraining_data = Labelled(TRUTH[:-1])
    with pytest.raises(UserError, match=r"labels 12 samples, but .* now has 11"):
        Clusters().evaluate(clustered)
    clustered.pretraining_data = Labelled(TRUTH)
    clustered.run_folder = tmp_path / "other"
    found = Clusters().evaluate(clustered)
    assert (found.metrics, found.figures) == ({}, {})
    assert found.tables[0].rows == [["this run's objective makes none"]]


def assert_png(result: Evaluation, name: str) -> None:
    """The figure draws without a display, and something is in it."""
    file = io.BytesIO()
    result.figures[name].savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    assert result.figures[name].axes[0].has_data()
