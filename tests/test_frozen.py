"""Evaluators of frozen features against loops, scikit-learn and formulas; all of them at work."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from sklearn.svm import LinearSVC
from small_runs import RECIPE, mmssl
from torch.nn.functional import cross_entropy

from mmssl.contracts import IGNORE, Dataset, Evaluation, Evaluator, LabelledFeatures, Sample
from mmssl.errors import UserError
from mmssl_evaluators import knn, labelled, low_rank
from mmssl_evaluators.knn import KNN
from mmssl_evaluators.low_rank import Classifier, LowRank
from mmssl_evaluators.svm import SVM

CPU = torch.device("cpu")


class Labelled(Dataset):
    def __init__(self, labels: Iterable[int], classes: int = 4, multilabel: bool = False) -> None:
        self.classes = [f"class {i}" for i in range(classes)]
        self.multilabel = multilabel
        self._labels = np.array(list(labels))

    def __len__(self) -> int:
        return len(self._labels)

    def sample(self, index: int) -> Sample:
        label = int(self._labels[index])
        return Sample(str(index), None, label=None if label == IGNORE else label)


def balanced(n: int, classes: int = 4) -> Labelled:
    return Labelled((i % classes for i in range(n)), classes)


@dataclass
class Context:
    """Clips' features drawn about a mean for each class; of an untrained encoder, noise."""

    spread: dict[str, float] = field(default_factory=lambda: {"video": 1.0, "audio": 0.3})
    dim: int = 6
    noise: float = 1.0
    factor: float = 1.0
    unreadable: Mapping[str, Sequence[int]] = field(default_factory=dict)
    device: torch.device = CPU
    seed: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, list[int]] = field(default_factory=dict)

    @property
    def modalities(self) -> Sequence[str]:
        return list(self.spread)

    @property
    def components(self) -> dict[str, Any]:
        return dict.fromkeys(self.spread)

    @property
    def progress(self) -> "Context":
        return self

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Any:
        self.done[title] = counts = [done, total]

        def advance(count: int = 1, **figures: str) -> None:
            counts[0] += count

        yield advance

    def features(
        self,
        dataset: Dataset,
        *,
        weights: str = "pretrained",
        read: object = None,
        modalities: Mapping[str, Any] | None = None,
        clips: int = 1,
        crops: int = 1,
        over_views: str = "mean",
    ) -> dict[str, LabelledFeatures]:
        assert read is None
        views = clips * crops
        self.asked.append({"data": dataset, "weights": weights, "over": over_views, "views": views})
        every = dataset.labels().astype(np.int64)
        found = {}
        for name in self.modalities if modalities is None else modalities:
            rows = np.flatnonzero(every != IGNORE)
            rows = rows[~np.isin(rows, self.unreadable.get(name, ()))]
            salt = sum(name.encode())
            means = np.random.default_rng(salt).normal(size=(len(dataset.classes), self.dim))
            noise = np.random.default_rng((salt, len(dataset), weights == "initial"))
            values = self.noise * noise.normal(size=(len(dataset), 64, self.dim))[rows, :views]
            if weights == "pretrained":
                values += self.spread[name] * means[every[rows], None]
            values = (values * self.factor).astype(np.float32)
            labels = every[rows]
            if over_views == "none":
                rows, labels = rows.repeat(views), labels.repeat(views)
                values = values.reshape(-1, self.dim)
            else:
                values = values.mean(axis=1)
            found[name] = LabelledFeatures(rows, values, labels)
        return found


EVALUATORS = {
    "svm": lambda train, test, **more: SVM(train=train, test=test, **{"costs": (0.01,), **more}),
    "knn": lambda train, test, **more: KNN(train=train, test=test, **{"k": (5,), **more}),
    "low_rank": lambda train, test, **more: LowRank(
        train=train, test=test, **{"steps": 300, "lr": 0.01, **more}
    ),
}
each = pytest.mark.parametrize("name", EVALUATORS)


def key(name: str, figure: str, modality: str = "video") -> str:
    return f"{modality}/k5/{figure}" if name == "knn" else f"{modality}/{figure}"


# What all have in common


@each
def test_classes_are_found_where_there_are_any(name: str) -> None:
    context = Context()
    result = EVALUATORS[name](balanced(160), balanced(81)).evaluate(context)
    metrics = result.metrics
    assert metrics[key(name, "top1")] > 0.7
    assert metrics[key(name, "top1")] > metrics[key(name, "top1", "audio")] > 0.25
    assert metrics[key(name, "top1_untrained")] < 0.45
    gain = metrics[key(name, "top1")] - metrics[key(name, "top1_untrained")]
    assert metrics[key(name, "gain")] == gain
    assert metrics["chance"] == 21 / 81
    assert metrics[key(name, "train_samples")] == 160
    assert metrics[key(name, "test_samples")] == 81
    assert key(name, "train_samples_untrained") not in metrics
    assert [asked["weights"] for asked in context.asked] == ["pretrained"] * 2 + ["initial"] * 2
    assert len(context.done) == 4  # modalities and encoders
    assert all(done == total for done, total in context.done.values())
    rows = result.tables[0].rows
    assert rows[0][1] == f"{100 * metrics[key(name, 'top1')]:.1f} %"
    assert_png(result, name)


@each
def test_same_figures_again_and_others_of_another_seed(name: str) -> None:
    runs = [
        EVALUATORS[name](balanced(60), balanced(50)).evaluate(Context(seed=seed)).metrics
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert (runs[0] == runs[2]) == (name != "low_rank")


@each
def test_some_modalities_only(name: str) -> None:
    context = Context()
    metrics = (
        EVALUATORS[name](balanced(40), balanced(40), only=["audio"], untrained=False)
        .evaluate(context)
        .metrics
    )
    assert {k.partition("/")[0] for k in metrics} == {"audio", "chance"}
    assert not [k for k in metrics if "untrained" in k or "gain" in k]
    with pytest.raises(UserError, match="only: the recipe has no modality 'text', only 'video'"):
        EVALUATORS[name](balanced(40), balanced(40), only=["text"]).evaluate(context)


@each
def test_data_that_nothing_can_be_measured_on(name: str) -> None:
    def refused(train: Dataset, test: Dataset, message: str, **context: Any) -> None:
        with pytest.raises(UserError, match=message) as error:
            EVALUATORS[name](train, test).evaluate(Context(**context))
        assert "\n" not in str(error.value)

    several = Labelled([IGNORE] * 4, multilabel=True)
    refused(several, several, "of one class each, those of train have several")
    refused(Labelled([1, 1]), Labelled([1]), "at least two classes")
    refused(Labelled([0, 1]), Labelled([0, 1, 2]), "train has no sample of 'class 2'")
    refused(balanced(8), balanced(8, 3), "the same classes")
    unread = {"unreadable": {"audio": range(40)}}
    refused(balanced(40), balanced(40), "too few samples with audio could be read", **unread)
    refused(balanced(40), balanced(40), "not finite.*bf16", factor=math.inf)


@each
def test_a_class_that_could_not_be_read_is_never_right(name: str) -> None:
    # Class 3 is in the list of training samples, but none of its files can be read.
    train, test = balanced(40), Labelled([0, 1, 2, 3] * 10 + [3] * 60)
    unreadable = {"video": [i for i in range(40) if i % 4 == 3]}
    context = Context(spread={"video": 20.0}, unreadable=unreadable)
    metrics = EVALUATORS[name](train, test).evaluate(context).metrics
    assert metrics[key(name, "train_samples")] == 30
    assert metrics[key(name, "test_samples")] == 90  # rows 3, 7, ... below 40 are unreadable
    assert metrics[key(name, "top1")] == 30 / 90
    assert metrics[key(name, "mean_class_accuracy")] == 3 / 4


def test_accuracies_are_sklearns() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(12), rng.integers(0, 12, 300) ** 2 // 12])
    scores = rng.normal(size=(len(labels), 12))
    scores[np.arange(len(labels)), labels] += 1
    figures = labelled.accuracies(scores, labels)
    answers = scores.argmax(axis=1)
    top5 = sklearn.metrics.top_k_accuracy_score(labels, scores, k=5)
    assert figures == {
        "top1": pytest.approx((answers == labels).mean()),
        "top5": pytest.approx(top5),
        "mean_class_accuracy": pytest.approx(
            sklearn.metrics.balanced_accuracy_score(labels, answers)
        ),
    }
    assert "top5" not in labelled.accuracies(scores[:, :9], labels % 9)


def test_a_class_that_was_not_trained_has_the_lowest_score() -> None:
    scores = labelled.of_all_classes(np.array([[-3.0, -1.0]]), np.array([0, 2]), 3)
    assert scores.tolist() == [[-3, -math.inf, -1]]
    assert labelled.accuracies(scores, np.array([1]))["top1"] == 0


def test_mean_of_views_is_a_loops() -> None:
    index = np.array([2, 2, 2, 5, 7, 7])
    values = np.random.default_rng(0).normal(size=(6, 3))
    expected = [values[index == i].mean(axis=0) for i in (2, 5, 7)]
    assert np.allclose(labelled.mean_of_views(index, values), expected)


# Support vector machines


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("normalize", ["standardize", "l2", "none"])
def test_machines_are_sklearns(classes: int, normalize: str) -> None:
    rng = np.random.default_rng(classes)
    labels = np.arange(150) % classes
    pooled = (rng.normal(size=(150, 5)) + np.eye(5)[labels] + 0.3).astype(np.float32)
    train = LabelledFeatures(np.arange(150), pooled, labels)
    inputs = pooled.astype(np.float64)
    if normalize == "standardize":
        inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    if normalize == "l2":
        inputs /= np.sqrt((inputs**2).sum(axis=1, keepdims=True))
    svm = SVM(train=balanced(8, classes), test=balanced(8, classes), normalize=normalize)  # type: ignore[arg-type]
    for cost in (0.001, 0.1, 10.0):
        machines = svm._fit(train, cost)
        theirs = LinearSVC(C=cost, dual=False, tol=1e-8, max_iter=100_000).fit(inputs, labels)
        expected = theirs.decision_function(inputs)
        if classes == 2:
            expected = np.stack([-expected, expected], axis=1)
        scale = np.abs(expected).max()
        scores, found = svm._test(machines, train)
        assert np.allclose(scores, expected, atol=2e-3 * scale)
        assert np.array_equal(found, labels)


@pytest.mark.parametrize("fit_on", ["mean", "clips"])
def test_scores_are_averaged_over_clips(fit_on: str) -> None:
    context = Context(spread={"video": 0.6}, noise=2.0)
    train, test = balanced(60), balanced(203)
    svm = SVM(
        train=train,
        test=test,
        untrained=False,
        clips=4,
        fit_on=fit_on,
        normalize="l2",
        costs=(1,),  # type: ignore[arg-type]
    )
    got = svm.evaluate(context).metrics["video/top1"]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    a = context.features(train, clips=4, over_views="none")["video"]
    b = context.features(test, clips=4, over_views="none")["video"]
    examples, labels = a.pooled, a.labels
    if fit_on == "mean":
        examples, labels = examples.reshape(60, 4, -1).mean(axis=1), labels[::4]
    machine = LinearSVC(C=1, dual=False, tol=1e-8).fit(unit(examples.astype(np.float64)), labels)
    right = 0
    for row in range(203):
        scores = [machine.decision_function(unit(x[None]))[0] for x in b.pooled[b.index == row]]
        right += int(np.mean(scores, axis=0).argmax() == row % 4)
    assert got == pytest.approx(right / 203, abs=1.01 / 203)
    assert 0.4 < got < 0.95
    assert context.asked[0]["over"] == ("none" if fit_on == "clips" else "mean")


def test_the_cost_is_chosen_on_samples_that_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Many noise dimensions and few samples: a high cost overfits.
    context = Context(spread={"video": 0.25}, dim=60)
    train, test = balanced(120), balanced(1000)
    fits: list[tuple[float, np.ndarray]] = []
    original = SVM._fit

    def spy(self: SVM, part: LabelledFeatures, cost: float) -> Any:
        fits.append((cost, part.index))
        return original(self, part, cost)

    monkeypatch.setattr(SVM, "_fit", spy)
    svm = SVM(
        train=train, test=test, untrained=False, clips=3, fit_on="clips", costs=(10.0, 1e-4),
        held_out=0.25,
    )  # fmt: skip
    metrics = svm.evaluate(context).metrics
    assert metrics["video/cost"] == 1e-4
    assert [cost for cost, _ in fits] == [1e-4, 10.0, 1e-4]
    assert [len(rows) for _, rows in fits] == [270, 270, 360]
    for _, rows in fits:  # all clips of a sample, or none
        assert set(np.unique(rows, return_counts=True)[1]) == {3}
    best = {
        cost: SVM(train=train, test=test, untrained=False, costs=(cost,)).evaluate(context).metrics
        for cost in (1e-4, 10.0)
    }
    assert best[1e-4]["video/top1"] > best[10.0]["video/top1"]


def test_equally_good_costs_give_the_smallest() -> None:
    context = Context(spread={"video": 50.0})
    svm = SVM(train=balanced(60), test=balanced(40), costs=(1.0, 0.1, 0.5))
    metrics = svm.evaluate(context).metrics
    assert (metrics["video/top1"], metrics["video/cost"]) == (1, 0.1)


def test_a_choice_of_costs_needs_samples_to_hold_out() -> None:
    with pytest.raises(UserError, match=r"no class has a second training sample.*one value only"):
        SVM(train=balanced(4), test=balanced(4)).evaluate(Context())


# Nearest neighbours


def slow_knn(
    train: LabelledFeatures, test: LabelledFeatures, k: int, temperature: float, classes: int
) -> float:
    """Top-1 by the formula, one test sample at a time."""
    right = 0
    for vector, label in zip(test.pooled.astype(np.float64), test.labels, strict=True):
        cosines = [
            float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other))
            for other in train.pooled.astype(np.float64)
        ]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        scores = [0.0] * classes
        for i in nearest:
            scores[train.labels[i]] += math.exp(cosines[i] / temperature)
        right += all(scores[label] > s for c, s in enumerate(scores) if c != label)
    return right / len(test.labels)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_are_the_formulas(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_HELD", 1000)  # several chunks
    context = Context(spread={"video": 0.5})
    train, test = balanced(90), balanced(101)
    metrics = (
        KNN(train=train, test=test, k=(20, 1, 5, 1000), temperature=temperature)
        .evaluate(context)
        .metrics
    )
    for weights, suffix in (("pretrained", ""), ("initial", "_untrained")):
        a = context.features(train, weights=weights)["video"]
        b = context.features(test, weights=weights)["video"]
        for k in (1, 5, 20, 1000):
            expected = slow_knn(a, b, k, temperature, 4)
            assert metrics[f"video/k{k}/top1{suffix}"] == pytest.approx(expected)
        cosines = sklearn.metrics.pairwise.cosine_similarity(b.pooled, a.pooled)
        order = np.argsort(-cosines, axis=1)
        for n in (1, 5, 10, 20, 50):
            found = (a.labels[order[:, :n]] == b.labels[:, None]).any(axis=1).mean()
            assert metrics[f"video/r@{n}{suffix}"] == pytest.approx(found)


seven = st.lists(st.integers(0, 3), min_size=7, max_size=7)


@settings(deadline=None)
@given(st.lists(seven, min_size=1, max_size=5), st.integers(1, 7))
def test_of_equal_neighbours_the_first_are_taken(scores: list[list[int]], k: int) -> None:
    values, columns = knn._top(torch.tensor(scores, dtype=torch.float32), k)
    for row, got, at in zip(scores, values.tolist(), columns.tolist(), strict=True):
        expected = sorted(range(7), key=lambda i: (-row[i], i))[:k]
        assert at == expected
        assert got == [row[i] for i in expected]


def test_a_low_temperature_does_not_overflow() -> None:
    cosines, classes = np.array([[1.0, 0.5, -1.0]]), np.array([[2, 0, 0]])
    scores = knn.votes(cosines, classes, 3, 1e-4)
    assert scores.tolist() == [[0, 0, 1]]


def test_collapsed_features_tell_nothing() -> None:
    context = Context(spread={"video": 0.0}, noise=0.0)
    metrics = KNN(train=balanced(40), test=balanced(40)).evaluate(context).metrics
    assert metrics["video/k20/top1"] == 0  # every class has five votes


# The low-rank classifier


def evaluator(**fields: Any) -> LowRank:
    return LowRank(train=balanced(8), test=balanced(8), **fields)


def test_components_stand_for_all_on_average() -> None:
    torch.manual_seed(0)
    classifier = Classifier(5, 8, 3, torch.Generator())
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(7, 5)
    whole = (x @ classifier.first + classifier.first_bias) @ classifier.last + classifier.last_bias
    assert torch.allclose(classifier(x), whole, atol=1e-5)
    for parts in (torch.arange(8)[:, None], torch.arange(8).view(2, 4)):
        mean = torch.stack([classifier(x, part) for part in parts]).mean(0)
        assert torch.allclose(mean, whole, atol=1e-5)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_a_step_is_adams_on_the_components_kept(l2: float) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 10), torch.arange(64) % 3
    fields = {"components": 128, "keep": 0.1, "batch_size": 64, "lr": 5e-4, "l2": l2}
    before = Classifier(10, 128, 3, torch.Generator().manual_seed(7))
    after = evaluator(steps=1, **fields).fit(x, y, 3, 7, lambda *_: None)
    # The batch is all 64 rows in some order, so the mean loss does not depend on it.
    moved = (after.first != before.first).any(dim=0)
    part = moved.nonzero().flatten()
    assert len(part) == 13
    hidden = x @ before.first[:, part] + before.first_bias[part]
    logits = 128 / 13 * hidden @ before.last[part] + before.last_bias
    loss = cross_entropy(logits, y) + l2 * (before.last**2).sum()
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    for old, new, g in zip(before.parameters(), after.parameters(), gradients, strict=True):
        # Adam's first step: the mean of gradients over the root of the mean of their squares.
        expected = old - 5e-4 * g / (g.abs() + 1e-8)
        assert torch.allclose(new, expected, atol=1e-6)
    assert (after.last[~moved] != before.last[~moved]).any() == (l2 > 0)


def test_every_row_is_drawn_before_any_comes_again() -> None:
    draws = low_rank._draws(samples=10, batch_size=4, components=20, kept=3, seed=5)
    first = [next(draws) for _ in range(5)]
    rows = np.concatenate([rows for rows, _ in first])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert all(len(set(part.tolist())) == 3 for _, part in first)
    assert len({tuple(sorted(part)) for _, part in first}) > 1
    again = low_rank._draws(samples=10, batch_size=4, components=20, kept=3, seed=5)
    assert np.array_equal(rows, np.concatenate([next(again)[0] for _ in range(5)]))


def test_standardized_features_may_have_any_scale() -> None:
    figures = [
        LowRank(train=balanced(60), test=balanced(80), standardize=True, steps=200, lr=0.01)
        .evaluate(Context(factor=factor))
        .metrics["video/top1"]
        for factor in (1.0, 2.0**-10)
    ]
    assert figures[0] == figures[1] > 0.6


def test_training_clips_are_examples_and_test_clips_are_averaged() -> None:
    context = Context(spread={"video": 1.0})
    metrics = (
        LowRank(train=balanced(40), test=balanced(20), train_clips=3, steps=50, untrained=False)
        .evaluate(context)
        .metrics
    )
    train, test = context.asked
    assert (train["over"], train["views"]) == ("none", 3)
    assert (test["over"], test["views"]) == ("mean", 4)
    assert metrics["video/train_samples"] == 40


# On several ranks, and through the command line


def measured() -> list[dict[str, float]]:
    context = Context(spread={"video": 0.5})
    evaluators = [make(balanced(24), balanced(20)) for make in EVALUATORS.values()]
    return [evaluator.evaluate(context).metrics for evaluator in evaluators]


def test_ranks_agree_with_one_process() -> None:
    one, two = on_ranks(2, measured)
    assert one == two == measured()


TRAIN = "{use: synthetic, videos: 24, side: 32, fps: 8, seconds: 1}"
TEST = "{use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1, split: test}"
EVALUATIONS = f"""\
evaluations:
  low_rank: {{use: low_rank, train: {TRAIN}, test: {TEST}, clips: 2, components: 16, steps: 40}}
  svm:
    {{use: svm, train: {TRAIN}, test: {TEST}, clips: 2, fit_on: clips, only: [audio]}}
  knn: {{use: knn, train: {TRAIN}, test: {TEST}, k: [1, 3], untrained: false, joined: true}}
  retrieval: {{use: retrieval, data: {TEST}, clips: 2, space: pooled}}
  clusters: {{use: clusters}}
  filters: {{use: filters}}
"""


def test_all_of_them_through_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("rounds: 2", "rounds: 1") + EVALUATIONS)
    done = mmssl("run", "recipe.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"
    found = {
        path.parent.name: json.loads(path.read_text())
        for path in run.glob("evaluations/*/metrics.json")
    }
    expected = {
        "low_rank": "video/top1",
        "svm": "audio/cost",
        "knn": "video+audio/k3/top1",
        "retrieval": "video-to-audio/r@5",
        "clusters": "video/matched_accuracy",
        "filters": "video/change",
    }
    assert set(found) == set(expected)
    for name, figure in expected.items():
        assert 0 <= found[name][figure] <= 1
        assert list((run / "evaluations" / name).glob("*.png"))
        assert not list((run / "evaluations" / name).glob("features-*"))
    assert found["filters"]["audio/change"] > 0
    assert found["retrieval"]["video-audio/samples"] == 16
    assert not any(name.startswith("video") for name in found["svm"])

    # What cannot be measured is one line; pretraining is not repeated for it.
    failed = mmssl("run", "recipe.yaml", "evaluations.retrieval.space=null", cwd=tmp_path)
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert "evaluations.retrieval: the objective of this run, XDC, aligns no modalities" in line


def assert_png(result: Evaluation, name: str) -> None:
    file = io.BytesIO()
    result.figures[name].savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    assert result.figures[name].axes[0].has_data()


def test_evaluators_are_evaluators() -> None:
    for make in EVALUATORS.values():
        assert isinstance(make(balanced(4), balanced(4)), Evaluator)
