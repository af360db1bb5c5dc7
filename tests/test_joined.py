"""Evaluators of frozen features, of several modalities side by side: against rows read one by one.

The encoders stand in another order than the modalities, and their features differ in size.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.svm import LinearSVC
from toys import Perceptron, Rows, Vector

from mmssl.contracts import Dataset, Evaluator, LabelledFeatures
from mmssl.data.draws import derive_seed
from mmssl.data.loading import LoaderSettings, Views
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream
from mmssl.training.kept_features import blocks, labelled
from mmssl.training.progress import Silent
from mmssl_evaluators.knn import KNN
from mmssl_evaluators.labelled import Inputs, Source
from mmssl_evaluators.linear_probe import LinearProbe
from mmssl_evaluators.low_rank import LowRank
from mmssl_evaluators.svm import SVM

DIMS = {"a": 5, "b": 7, "c": 3}
TRAIN = Rows(90, 4, bad={11}, without={"a": {0, 7, 8}, "b": {7, 20, 21, 22}})
TEST = Rows(61, 4, bad={3}, without={"a": {10}, "b": {30, 31}})
# Rows that have both a and b.
BOTH = {
    id(TRAIN): [row for row in range(90) if row not in {11, 0, 7, 8, 20, 21, 22}],
    id(TEST): [row for row in range(61) if row not in {3, 10, 30, 31}],
}


class Far(Vector):
    """Clips of a sample that differ by more than a little."""

    def read(self, media: Any, window: Any, rng: Any) -> torch.Tensor:
        place = np.random.default_rng([sum(self.name.encode()), int(window.start * 1000)])
        moved = torch.from_numpy(place.normal(size=self.shape)).float()
        return super().read(media, window, rng) + 0.5 * moved


def encoders(weights: str, names: str) -> Encoders:
    torch.manual_seed(1 if weights == "initial" else 0)
    networks = {name: Perceptron(8, dim) for name, dim in reversed(DIMS.items())}
    found = Encoders(networks, list(DIMS)).eval()
    return Encoders({name: found.backbones[name] for name in reversed(names)}, list(names))  # type: ignore[misc]


@dataclass
class Context:
    """What a stage lends, without a recipe: features are streamed and kept as there."""

    folder: Path
    names: str = "ab"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Silent = field(default_factory=Silent)
    seed: int = 4
    asked: int = 0

    @property
    def components(self) -> dict[str, Vector]:
        return {name: Far(name, noise=2.5) for name in self.names}

    @property
    def modalities(self) -> list[str]:
        return list(self.names)

    def stream(self, weights: str, names: str) -> FeatureStream:
        return FeatureStream(
            encoders=encoders(weights, names),
            modalities={name: self.components[name] for name in names},
            device=self.device,
            precision="fp32",
            batch_size=7,
            settings=LoaderSettings(),
            seed=0,
            unreadable=lambda split, failure: None,
        )

    def features(
        self,
        dataset: Dataset,
        *,
        weights: str = "pretrained",
        read: Any = None,
        modalities: Mapping[str, Any] | None = None,
        clips: int = 1,
        crops: int = 1,
        over_views: Any = "mean",
    ) -> dict[str, LabelledFeatures]:
        self.asked += 1
        stream = self.stream(weights, "".join(modalities or self.names))
        folder = self.folder / str(self.asked)
        folder.mkdir(parents=True)
        more = {} if read is None else {"read": read}
        files = blocks(
            folder, dataset, stream, views=Views(clips, crops), over_views=over_views,
            progress=Silent(), title="", **more,
        )  # fmt: skip
        return labelled(files)


def by_hand(
    context: Context, data: Rows, weights: str, clips: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Label and views ``[clips, 12]`` of each row that has both, a's features before b's."""
    stream = context.stream(weights, "ab")
    for row in BOTH[id(data)]:
        (batch,) = stream(data, [row], views=Views(clips))  # type: ignore[arg-type]
        assert batch.pooled["a"].shape == (clips, 5)
        yield row % 4, np.hstack([batch.pooled["a"].numpy(), batch.pooled["b"].numpy()])


def means(context: Context, data: Rows, weights: str, clips: int = 2) -> tuple[Any, Any]:
    labels, views = zip(*by_hand(context, data, weights, clips), strict=True)
    return np.stack(views).mean(1), np.array(labels)


def scaled(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    train, test = train.astype(np.float64), test.astype(np.float64)
    mean, std = train.mean(0), train.std(0)
    return (train - mean) / std, (test - mean) / std


def probed(context: Context, weights: str) -> float:
    (x, y), (u, v) = means(context, TRAIN, weights), means(context, TEST, weights)
    x, u = scaled(x, u)
    machine = LogisticRegression(C=1 / (0.01 * len(y)), tol=1e-7, max_iter=10_000).fit(x, y)
    return float((machine.predict(u) == v).mean())


def separated(context: Context, weights: str) -> float:
    (x, y), (u, v) = means(context, TRAIN, weights), means(context, TEST, weights)
    x, u = scaled(x, u)
    machine = LinearSVC(C=0.01, dual=False, tol=1e-8, max_iter=100_000).fit(x, y)
    return float((machine.predict(u) == v).mean())


def nearest(context: Context, weights: str) -> float:
    (x, y), (u, v) = means(context, TRAIN, weights), means(context, TEST, weights)
    return float((y[cosine_similarity(u, x).argmax(1)] == v).mean())


def factored(context: Context, weights: str) -> float:
    """The classifier itself is tested elsewhere: here, that it is given these inputs."""
    (x, y), (u, v) = means(context, TRAIN, weights, clips=1), means(context, TEST, weights)
    seed = derive_seed(4, "low_rank", "a+b")
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    classifier = make("low_rank").fit(inputs, labels, 4, seed, lambda *_: None)
    return float((classifier(torch.from_numpy(u)).argmax(1).numpy() == v).mean())


EVALUATORS: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[[Context, str], float]]]
EVALUATORS = {
    "linear_probe": (LinearProbe, {"regularisation": (0.01,), "clips": 2}, probed),
    "svm": (SVM, {"costs": (0.01,), "clips": 2}, separated),
    "knn": (KNN, {"k": (1,), "clips": 2}, nearest),
    "low_rank": (LowRank, {"steps": 200, "lr": 0.01, "clips": 2}, factored),
}
each = pytest.mark.parametrize("name", EVALUATORS)


def make(name: str, **options: Any) -> Any:
    component, usual, _ = EVALUATORS[name]
    return component(**{"train": TRAIN, "test": TEST, **usual, **options})


def test_features_stand_side_by_side_in_the_recipes_order(tmp_path: Path) -> None:
    inputs = Inputs(only=None, joined=True)
    context = Context(tmp_path)
    found = inputs.features(context, "pretrained", Source(TRAIN, 2), Source(TEST, 2, 1, "none"))  # type: ignore[arg-type]
    rows = {name: (train, test) for name, train, test in found}
    assert list(rows) == ["a", "b", "a+b"]
    train, test = rows["a+b"]
    labels, views = zip(*by_hand(context, TRAIN, "pretrained", 2), strict=True)
    assert train.index.tolist() == BOTH[id(TRAIN)]
    assert train.labels.tolist() == list(labels)
    np.testing.assert_allclose(train.pooled, np.stack(views).mean(1), rtol=1e-5, atol=1e-6)
    labels, views = zip(*by_hand(context, TEST, "pretrained", 2), strict=True)
    assert test.index.tolist() == np.repeat(BOTH[id(TEST)], 2).tolist()
    np.testing.assert_allclose(test.pooled, np.concatenate(views), rtol=1e-5, atol=1e-6)


@each
def test_figures_are_those_of_features_put_together_by_hand(name: str, tmp_path: Path) -> None:
    context = Context(tmp_path / "joined")
    result = make(name, joined=True).evaluate(context)
    metrics, table = result.metrics, result.tables[0]
    row = "a+b/k1" if name == "knn" else "a+b"
    for weights, suffix in (("pretrained", ""), ("initial", "_untrained")):
        expected = EVALUATORS[name][2](context, weights)
        assert metrics[f"{row}/top1{suffix}"] == pytest.approx(expected)
    assert 0.35 < metrics[f"{row}/top1"] < 0.99
    assert metrics[f"{row}/train_samples"] == len(BOTH[id(TRAIN)]) == 83
    assert metrics[f"{row}/test_samples"] == len(BOTH[id(TEST)]) == 57
    assert [cells[0] for cells in table.rows] == [row.replace("a+b", n) for n in ("a", "b", "a+b")]
    assert table.rows[2][1] == f"{100 * metrics[f'{row}/top1']:.1f} %"
    ticks = [text.get_text() for text in result.figures[name].axes[0].get_xticklabels()]
    assert ticks == [cells[0] for cells in table.rows]
    # What is measured of each modality does not depend on it.
    alone = make(name).evaluate(Context(tmp_path / "alone")).metrics
    assert metrics == alone | {k: x for k, x in metrics.items() if k.startswith("a+b")}
    one = row.replace("a+b", "a")
    assert (alone[f"{one}/train_samples"], alone[f"{one}/test_samples"]) == (86, 59)


def test_some_of_several(tmp_path: Path) -> None:
    whole = make("knn", joined=True).evaluate(Context(tmp_path / "abc", names="abc")).metrics
    assert {k.partition("/")[0] for k in whole} == {"a", "b", "c", "a+b+c", "chance"}
    assert whole["a+b+c/k1/train_samples"] == 83
    some = make("knn", joined=True, only=["c", "a"])
    found = some.evaluate(Context(tmp_path / "ac", names="abc")).metrics
    assert {k.partition("/")[0] for k in found} == {"a", "c", "a+c", "chance"}
    assert found["a+c/k1/train_samples"] == 86
    assert found["c/k1/train_samples"] == 89


@each
def test_a_single_modality_cannot_be_joined(name: str, tmp_path: Path) -> None:
    message = "joined: there is nothing to put beside 'a': take a second modality, or leave"
    for names, options in (("a", {}), ("ab", {"only": ["a"]}), ("ab", {"only": ["a", "a"]})):
        evaluator: Evaluator = make(name, joined=True, **options)
        for refuse in (
            lambda e=evaluator, n=names: e.check(list(n)),
            lambda e=evaluator, n=names: e.evaluate(Context(tmp_path, n)),
        ):
            with pytest.raises(UserError, match=message) as error:
                refuse()
            assert "\n" not in str(error.value)
    make(name, joined=True).check(["a", "b"])
    make(name).check(["a"])


def test_no_sample_that_has_all(tmp_path: Path) -> None:
    half = {"a": set(range(40)), "b": set(range(40, 90))}
    probe = make("linear_probe", train=Rows(90, 4, without=half), joined=True)
    message = r"too few samples with a\+b could be read \(0 for training, 57 for testing\)"
    with pytest.raises(UserError, match=message):
        probe.evaluate(Context(tmp_path))
