"""Retrieval against a loop, its rule for ties, and embeddings of several spaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Perceptron, Rows, Vector

from mmssl.contracts import Features, LabelledFeatures, Objective, Window
from mmssl.data.loading import LoaderSettings, Views
from mmssl.data.media import Media
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders
from mmssl.training.features import FeatureStream
from mmssl.training.kept_features import blocks, labelled
from mmssl.training.progress import Silent
from mmssl_evaluators import retrieval
from mmssl_evaluators.retrieval import Retrieval, match_ranks

# Small whole numbers: their products are exact, so what ties in a loop ties here.
vector = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
pairs = st.lists(st.tuples(vector, vector), min_size=1, max_size=12)


def slow_ranks(queries: np.ndarray, candidates: np.ndarray) -> list[int]:
    """One plus the others that are not clearly worse."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / lengths) if lengths else 0.0

    places = []
    for i, query in enumerate(queries):
        own = cosine(query, candidates[i])
        others = [cosine(query, c) for j, c in enumerate(candidates) if j != i]
        places.append(1 + sum(other >= own - 1e-6 for other in others))
    return places


def ranks(queries: Any, candidates: Any) -> list[int]:
    parts = match_ranks(torch.as_tensor(queries), torch.as_tensor(candidates))
    return torch.cat(list(parts)).tolist()


def both(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.array(rows, np.float32).transpose(1, 0, 2)
    return one, other


@settings(deadline=None)
@given(pairs)
def test_ranks_are_a_loops(rows: list[tuple[list[int], list[int]]]) -> None:
    one, other = both(rows)
    assert ranks(one, other) == slow_ranks(one.astype(np.float64), other.astype(np.float64))


@settings(deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(rows: list[Any], random: Any) -> None:
    one, other = both(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    assert ranks(one[order], other[order]) == np.array(ranks(one, other))[order].tolist()


@settings(deadline=None)
@given(pairs, st.integers(0, 11))
def test_a_duplicate_of_the_match_comes_before_it(rows: list[Any], which: int) -> None:
    one, other = both(rows)
    which %= len(rows)
    more = ranks(np.vstack([one, one[:1]]), np.vstack([other, other[which : which + 1]]))
    assert more[which] == ranks(one, other)[which] + 1


@settings(deadline=None)
@given(vector, st.integers(1, 40))
def test_collapsed_embeddings_find_at_most_one_in_n(row: list[int], n: int) -> None:
    same = np.array([row] * n, np.float32)
    assert ranks(same, same) == [n] * n
    assert np.mean(np.array(ranks(same, same)) <= 1) <= 1 / n


def test_embeddings_that_collapsed_but_for_rounding_are_ties() -> None:
    rng = np.random.default_rng(0)
    row = rng.normal(size=64)
    one, other = (
        (row * (1 + 1e-7 * rng.normal(size=(200, 64)))).astype(np.float32) for _ in range(2)
    )
    assert set(ranks(one, other)) == {200}


def test_what_is_no_number_finds_nothing() -> None:
    rows = torch.eye(4)
    rows[1] = torch.nan
    found = ranks(rows, torch.eye(4))
    assert (found[0], found[1]) == (1, 4)


def test_perfect_and_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(50, 8)).astype(np.float32)
    assert ranks(one, 3 * one) == [1] * 50
    noisy = one + rng.normal(size=one.shape).astype(np.float32)
    whole = ranks(one, noisy)
    monkeypatch.setattr(retrieval, "_HELD", 130)
    assert len(list(match_ranks(torch.tensor(one), torch.tensor(noisy)))) == 25
    assert ranks(one, noisy) == whole == slow_ranks(one, noisy)


# With encoders


class Louder(Vector):
    """Later clips are much larger, so it matters what is averaged: embeddings, of any length."""

    def read(self, media: Media, window: Window, rng: Any) -> torch.Tensor:
        return super().read(media, window, rng) * (1 + window.start) ** 2


class Aligned(Objective):
    """Spaces by name, the modalities of each, and a linear map of each modality into it."""

    def __init__(self, spaces: Mapping[str, str]) -> None:
        super().__init__()
        self.spaces = spaces

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, torch.Tensor]]:
        return {
            space: {name: features[name].pooled @ self.map(space, name) for name in names}
            for space, names in self.spaces.items()
        }

    def map(self, space: str, name: str) -> torch.Tensor:
        seed = sum(space.encode()) + sum(name.encode())
        return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))


@dataclass
class Context:
    folder: Path
    spaces: Mapping[str, str] | None = field(default_factory=lambda: {"ab": "ab", "bc": "bc"})
    dims: Mapping[str, int] = field(default_factory=lambda: {"a": 6, "b": 6, "c": 6})
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Silent = field(default_factory=Silent)

    def __post_init__(self) -> None:
        self.parts = {name: Louder(name, noise=2.0) for name in self.dims}
        torch.manual_seed(0)
        networks = {name: Perceptron(8, dim) for name, dim in self.dims.items()}
        self.stream = FeatureStream(
            encoders=Encoders(networks, list(networks)),
            modalities=self.parts,
            device=self.device,
            precision="fp32",
            batch_size=5,
            settings=LoaderSettings(),
            seed=0,
            unreadable=lambda split, failure: None,
        )

    @property
    def modalities(self) -> list[str]:
        return list(self.dims)

    def objective(self) -> Objective:
        return Objective() if self.spaces is None else Aligned(self.spaces)

    def features(self, dataset: Any, **asked: Any) -> dict[str, LabelledFeatures]:
        files = blocks(
            self.folder,
            dataset,
            self.stream,
            views=Views(asked["clips"], asked["crops"]),
            read=asked["read"],
            progress=Silent(),
            title="",
        )
        return labelled(files, unlabelled=asked["unlabelled"])


def by_hand(context: Context, data: Rows, space: str, one: str, other: str) -> np.ndarray:
    """Of each row with both, the mean over two clips of its embeddings, ``[2, rows, 5]``."""
    embedded: dict[str, list[np.ndarray]] = {one: [], other: []}
    for row in range(len(data)):
        (batch,) = context.stream(data, [row], views=Views(2))  # type: ignore[arg-type]
        if all(batch.present[name].all() for name in (one, other)):
            for name in (one, other):
                values = batch.pooled[name] @ Aligned({}).map(space, name)
                embedded[name].append(values.mean(0).double().numpy())
    return np.array([embedded[one], embedded[other]])


def test_figures_are_those_of_a_loop(tmp_path: Path) -> None:
    data = Rows(30, bad={4}, without={"a": {0, 7}, "b": {9}})
    context = Context(tmp_path)
    result = Retrieval(data=data, clips=2, first=(10, 1, 5)).evaluate(context)  # type: ignore[arg-type]
    metrics = result.metrics
    names = {name.partition("/")[0] for name in metrics}
    assert names == {"a-b", "a-to-b", "b-to-a", "b-c", "b-to-c", "c-to-b"}  # a and c share none
    for one, other, samples in (("a", "b", 26), ("b", "c", 28)):
        assert metrics[f"{one}-{other}/samples"] == samples
        found = by_hand(context, data, one + other, one, other)
        for query, match, places in (
            (one, other, slow_ranks(found[0], found[1])),
            (other, one, slow_ranks(found[1], found[0])),
        ):
            for n in (1, 5, 10):
                expected = np.mean([place <= n for place in places])
                assert metrics[f"{query}-to-{match}/r@{n}"] == pytest.approx(expected)
            assert metrics[f"{query}-to-{match}/median_rank"] == np.median(places)
    table = result.tables[0]
    assert list(table.columns)[:5] == ["query to match", "samples", "R@1", "R@5", "R@10"]
    assert [row[:2] for row in table.rows][:2] == [["a to b", 26], ["b to a", 26]]
    assert table.rows[0][-1] == f"{100 / 26:.1f} %"
    assert len(result.figures["retrieval"].axes[0].lines) == 5


def test_a_pair_in_several_spaces_needs_a_choice(tmp_path: Path) -> None:
    data = Rows(20)
    context = Context(tmp_path, spaces={"x": "ab", "y": "ab"})
    with pytest.raises(UserError, match="a and b can be compared in 'x', 'y': choose one"):
        Retrieval(data=data).evaluate(context)  # type: ignore[arg-type]
    results = []
    for space in "xy":
        one = replace(context, folder=tmp_path / space)
        chosen = Retrieval(data=data, space=space, pair=("b", "a"), clips=2)
        metrics = chosen.evaluate(one).metrics  # type: ignore[arg-type]
        found = by_hand(one, data, space, "b", "a")
        assert metrics["b-to-a/median_rank"] == np.median(slow_ranks(found[0], found[1]))
        results.append(metrics)
    assert results[0] != results[1]


def test_pooled_features_of_one_dimension(tmp_path: Path) -> None:
    context = Context(tmp_path, spaces=None, dims={"a": 4, "b": 6, "c": 4})
    metrics = Retrieval(data=Rows(20), space="pooled").evaluate(context).metrics  # type: ignore[arg-type]
    assert metrics["a-c/samples"] == 20
    assert not [name for name in metrics if "b" in name.partition("/")[0]]


@pytest.mark.parametrize(
    ("fields", "spaces", "message"),
    [
        ({}, None, "Objective, aligns no modalities"),
        ({}, {}, "Aligned, aligns no modalities"),
        ({"space": "z"}, {"x": "ab"}, "space: the objective has no 'z', only 'x'"),
        ({"pair": ("a", "c")}, {"x": "ab", "y": "bc"}, "no space has embeddings of a and c"),
        ({"pair": ("a", "d")}, {"x": "ab"}, "pair: the recipe has no modality 'd'"),
        ({"data": Rows(0)}, {"x": "ab"}, "the dataset is empty"),
        ({"data": Rows(3, bad={0, 1, 2})}, {"x": "ab"}, "no sample with both a and b could"),
        ({"data": Rows(3, without={"a": {0}, "b": {1, 2}})}, {"x": "ab"}, "no sample with both"),
    ],
)
def test_what_cannot_be_retrieved(
    fields: dict[str, Any], spaces: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        Retrieval(**{"data": Rows(5), **fields}).evaluate(Context(tmp_path, spaces=spaces))
    assert "\n" not in str(error.value)


def test_a_pair_is_two_modalities() -> None:
    with pytest.raises(UserError, match="two modalities, not 'a' twice"):
        Retrieval(data=Rows(5), pair=("a", "a"))


def test_diverged_embeddings_are_named(tmp_path: Path) -> None:
    context = Context(tmp_path)
    with torch.no_grad():
        for parameter in context.stream.encoders.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(UserError, match="embeddings of a and b are not finite"):
        Retrieval(data=Rows(5)).evaluate(context)  # type: ignore[arg-type]
