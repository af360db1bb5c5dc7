"""Measures of clusterings against loops, scikit-learn and hand-made tables."""

import itertools
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

import mmssl_clustering
from mmssl.contracts import IGNORE
from mmssl_clustering import measures

# Pairs of labelings in which either side may be missing.
value = st.integers(0, 5) | st.just(IGNORE)
labelings = st.lists(st.tuples(value, value), min_size=1, max_size=60).map(
    lambda rows: tuple(np.array(rows, np.int32).T)
)


def valid_pairs(clusters: np.ndarray, labels: np.ndarray) -> list[tuple[int, int]]:
    rows = zip(clusters.tolist(), labels.tolist(), strict=True)
    return [(a, b) for a, b in rows if a != IGNORE and b != IGNORE]


def slow_purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    pairs = valid_pairs(clusters, labels)
    if not pairs:
        return math.nan
    hits = 0
    for cluster in {a for a, _ in pairs}:
        hits += max(Counter(b for a, b in pairs if a == cluster).values())
    return hits / len(pairs)


def slow_class_entropy(clusters: np.ndarray, labels: np.ndarray) -> float:
    pairs = valid_pairs(clusters, labels)
    if not pairs:
        return math.nan
    result = 0.0
    for cluster in {a for a, _ in pairs}:
        inside = Counter(b for a, b in pairs if a == cluster)
        size = inside.total()
        result -= size / len(pairs) * sum(c / size * math.log(c / size) for c in inside.values())
    return result


def slow_means(clusters: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Purity and entropy of each cluster, averaged."""
    pairs = valid_pairs(clusters, labels)
    purities, entropies = [], []
    for cluster in {a for a, _ in pairs}:
        counts = Counter(b for a, b in pairs if a == cluster).values()
        shares = [count / sum(counts) for count in counts]
        purities.append(max(shares))
        entropies.append(-sum(share * math.log(share) for share in shares))
    if not pairs:
        return math.nan, math.nan
    return sum(purities) / len(purities), sum(entropies) / len(entropies)


def slow_change_rate(before: np.ndarray, after: np.ndarray) -> float:
    """Every one-to-one renumbering is tried."""
    pairs = valid_pairs(before, after)
    if not pairs:
        return math.nan
    names = range(6)
    stays = max(
        sum(renumbered[a] == b for a, b in pairs) for renumbered in itertools.permutations(names)
    )
    return 1 - stays / len(pairs)


@settings(deadline=None)
@given(labelings)
def test_contingency_counts_valid_pairs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    table = measures.contingency(*pair)
    expected = Counter(valid_pairs(*pair))
    assert table.dtype == np.int64
    assert table.shape == tuple(max(0, int(side.max()) + 1) for side in pair)
    assert {cell: n for cell, n in np.ndenumerate(table) if n} == expected


def test_contingency_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    clusters, labels = rng.integers(0, 7, (2, 100)).astype(np.int32)
    whole, sizes = measures.contingency(clusters, labels), measures.sizes(clusters, 7)
    monkeypatch.setattr(measures, "_CHUNK", 9)
    assert (measures.contingency(clusters, labels) == whole).all()
    assert (measures.sizes(clusters, 7) == sizes).all()


def test_contingency_refuses_what_does_not_pair_up() -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        measures.contingency(np.zeros(3, np.int32), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="negative"):
        measures.contingency(np.array([0, -1]), np.array([0, 0]))


@settings(deadline=None)
@given(labelings)
def test_purity_and_class_entropy_equal_loops(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert measures.purity(*pair) == pytest.approx(slow_purity(*pair), nan_ok=True)
    assert measures.class_entropy(*pair) == pytest.approx(
        slow_class_entropy(*pair), nan_ok=True, abs=1e-9
    )
    each, table = measures.purities(*pair), measures.contingency(*pair)
    sizes = table.sum(axis=1)
    assert (np.isnan(each) == (sizes == 0)).all()
    if sizes.sum():
        assert np.nansum(each * sizes) / sizes.sum() == pytest.approx(measures.purity(*pair))


@settings(deadline=None)
@given(labelings)
def test_information_measures_equal_sklearn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    valid = np.array(valid_pairs(*pair)).reshape(-1, 2).T
    for ours, theirs in [
        (measures.nmi, sklearn.metrics.normalized_mutual_info_score),
        (measures.ami, sklearn.metrics.adjusted_mutual_info_score),
        (measures.ari, sklearn.metrics.adjusted_rand_score),
    ]:
        expected = theirs(*valid) if valid.size else math.nan
        assert ours(*pair) == pytest.approx(expected, nan_ok=True, abs=1e-9), ours.__name__


@settings(deadline=None)
@given(labelings)
def test_means_over_clusters_equal_loops(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = measures.mean_purity(*pair), measures.mean_class_entropy(*pair)
    assert found == pytest.approx(slow_means(*pair), nan_ok=True, abs=1e-9)


@settings(deadline=None)
@given(labelings)
def test_matched_accuracy_tries_all_matchings(pair: tuple[np.ndarray, np.ndarray]) -> None:
    # Also for numbers of clusters and classes that differ: labels 0 to 5, some of which are absent.
    expected = 1 - slow_change_rate(*pair)
    assert measures.matched_accuracy(*pair) == pytest.approx(expected, nan_ok=True)


def test_matched_accuracy_by_hand() -> None:
    clusters = np.array([0, 0, 0, 1, 1, 2, 2, 2], np.int32)
    labels = np.array([1, 1, 0, 1, 1, 0, 0, 0], np.int32)
    # 0 and 1 both hold class 1 most often; one of them may stand for it, the other for nothing.
    assert measures.matched_accuracy(clusters, labels) == (2 + 3) / 8
    assert measures.matched_accuracy(labels, clusters) == (2 + 3) / 8
    assert measures.purity(clusters, labels) == 7 / 8


@settings(deadline=None)
@given(labelings)
def test_change_rate_tries_all_matchings(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert measures.change_rate(*pair) == pytest.approx(slow_change_rate(*pair), nan_ok=True)


@settings(deadline=None)
@given(labelings, st.permutations(range(6)))
def test_renumbering_clusters_changes_nothing(
    pair: tuple[np.ndarray, np.ndarray], renumbered: list[int]
) -> None:
    clusters, labels = pair
    other = np.array([IGNORE if a == IGNORE else renumbered[a] for a in clusters], np.int32)
    for measure in (measures.purity, measures.nmi, measures.ami, measures.ari):
        same = pytest.approx(measure(clusters, labels), nan_ok=True, abs=1e-9)
        assert measure(other, labels) == same, measure.__name__
    if (clusters != IGNORE).any():
        assert measures.change_rate(clusters, other) == 0
    assert measures.entropy(other, 6) == pytest.approx(measures.entropy(clusters, 6), nan_ok=True)


@settings(deadline=None)
@given(labelings)
def test_bounds(pair: tuple[np.ndarray, np.ndarray]) -> None:
    if not valid_pairs(*pair):
        return
    classes = len({b for _, b in valid_pairs(*pair)})
    assert 1 / classes - 1e-12 <= measures.purity(*pair) <= 1
    assert 0 <= measures.nmi(*pair) <= 1
    assert -0.5 <= measures.ari(*pair) <= 1
    assert measures.ami(*pair) <= 1
    assert 0 <= measures.change_rate(*pair) < 1
    assert 0 <= measures.entropy(pair[0], 6) <= 1


def test_sizes_of_clusters() -> None:
    clusters = np.array([0, 0, 0, 2, IGNORE, 2, 3], np.int32)
    assert measures.sizes(clusters, 5).tolist() == [3, 0, 2, 1, 0]
    assert measures.largest(clusters, 5) == 3
    assert measures.used(clusters, 5) == measures.used(clusters) == 3
    assert measures.empty(clusters, 5) == 2
    shares = [3 / 6, 2 / 6, 1 / 6]
    expected = -sum(p * math.log(p) for p in shares) / math.log(5)
    assert measures.entropy(clusters, 5) == pytest.approx(expected)


def test_entropy_of_sizes_at_its_ends() -> None:
    assert measures.entropy(np.arange(8, dtype=np.int32).repeat(3), 8) == pytest.approx(1)
    assert measures.entropy(np.full(9, 3, np.int32), 8) == 0
    assert measures.entropy(np.zeros(9, np.int32), 1) == 1
    assert math.isnan(measures.entropy(np.full(9, IGNORE, np.int32), 8))


def test_purity_table_by_hand() -> None:
    counts = {  # cluster: {class: clips}
        0: {"cello": 1, "golf": 1},  # .50 of 2
        1: {"bagpipes": 7, "cello": 2, "golf": 1},  # .70 of 10
        2: {"golf": 2, "cello": 2},  # .50 of 4: larger than 0 and 4
        4: {"bagpipes": 1, "golf": 1},  # .50 of 2: after 0 by its index
        5: {"yoga": 3},  # pure
    }  # 3 is empty
    names = ["bagpipes", "cello", "golf", "yoga"]
    rows = [
        (cluster, names.index(name))
        for cluster, inside in counts.items()
        for name, n in inside.items()
        for _ in range(n)
    ]
    rows += [(IGNORE, 0), (0, IGNORE), (3, IGNORE)]
    np.random.default_rng(0).shuffle(rows)
    clusters, labels = np.array(rows, np.int32).T

    assert measures.purity_table(clusters, labels, names, top=2) == [
        (1, 5, 3, 1.0, [("yoga", 1.0)]),
        (2, 1, 10, 0.7, [("bagpipes", 0.7), ("cello", 0.2)]),
        (3, 2, 4, 0.5, [("cello", 0.5), ("golf", 0.5)]),
        (4, 0, 2, 0.5, [("cello", 0.5), ("golf", 0.5)]),
        (5, 4, 2, 0.5, [("bagpipes", 0.5), ("golf", 0.5)]),
    ]
    assert measures.purity_table(clusters, labels, names)[1].leading[2] == ("golf", 0.1)
    assert measures.purity(clusters, labels) == (1 + 7 + 2 + 1 + 3) / 21


def test_no_labelled_sample_gives_nan_and_no_rows() -> None:
    clusters, labels = np.array([0, IGNORE], np.int32), np.array([IGNORE, 1], np.int32)
    for measure in (
        measures.purity,
        measures.class_entropy,
        measures.mean_purity,
        measures.mean_class_entropy,
        measures.matched_accuracy,
        measures.nmi,
        measures.ami,
        measures.ari,
        measures.change_rate,
    ):
        assert math.isnan(measure(clusters, labels)), measure.__name__
    assert measures.purity_table(clusters, labels, ["a", "b"]) == []


def test_ignore_is_the_contracts() -> None:
    assert measures.IGNORE == IGNORE


def test_exports_are_the_measures() -> None:
    for name in mmssl_clustering.__all__:
        assert getattr(mmssl_clustering, name) is getattr(measures, name)
    with pytest.raises(AttributeError, match="nothing_such"):
        mmssl_clustering.nothing_such  # noqa: B018


def test_importing_the_plugin_is_cheap() -> None:
    code = (
        "import sys, mmssl_clustering\n"
        "assert not {'torch', 'numpy', 'faiss', 'sklearn'} & set(sys.modules)\n"
        "mmssl_clustering.purity\n"
        "assert not {'torch', 'faiss', 'sklearn', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
