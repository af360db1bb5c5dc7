"""Measures of scores against scikit-learn, slow references and what must change nothing."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mmssl_evaluators import metrics

N, C = 60, 7


def some(seed: int, levels: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, of so many levels if ties are wanted, single labels and several a sample."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(N, C)) if levels is None else rng.integers(levels, size=(N, C)) / 4
    labels = rng.integers(C, size=N)
    truth = (rng.random((N, C)) < 0.2).astype(np.float32)
    truth[0], truth[1] = 0, 1  # no class is without positives or negatives
    return scores.astype(np.float32), labels, truth


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_is_scikit_learns(k: int) -> None:
    scores, labels, _ = some(0)
    expected = sklearn.metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(C))
    assert metrics.top_k(scores, labels, k) == pytest.approx(expected)


def test_a_tie_is_lost() -> None:
    scores = np.array([[1, 1, 0], [2, 0, 0], [0, 1, 1], [0, 0, 0]], np.float32)
    labels = np.array([0, 0, 2, 1])
    assert metrics.top_k(scores, labels, 1) == 0.25
    assert metrics.top_k(scores, labels, 2) == 0.75
    assert metrics.top_k(scores, labels, 3) == 1
    assert metrics.answers(scores, labels).tolist() == [1, 0, 1, 0]
    assert metrics.mean_class_accuracy(scores, labels) == pytest.approx((0.5 + 0 + 0) / 3)
    assert metrics.confusion(scores, labels).tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 0]]


def test_a_collapsed_classifier_is_never_right() -> None:
    _, labels, _ = some(0)
    for value in (0.0, math.nan):
        scores = np.full((N, C), value, np.float32)
        assert metrics.top_k(scores, labels, C - 1) == 0
        assert metrics.mean_class_accuracy(scores, labels) == 0
        assert not np.diag(metrics.confusion(scores, labels)).any()


@pytest.mark.parametrize("levels", [None, 3])
def test_single_class_measures_agree(levels: int | None) -> None:
    scores, labels, _ = some(1, levels)
    chosen = metrics.answers(scores, labels)
    counts = metrics.confusion(scores, labels)
    assert metrics.top_k(scores, labels, 1) == (chosen == labels).mean()
    assert counts.tolist() == sklearn.metrics.confusion_matrix(labels, chosen).tolist()
    expected = sklearn.metrics.balanced_accuracy_score(labels, chosen)
    assert metrics.mean_class_accuracy(scores, labels) == pytest.approx(expected)
    # Slowly: a sample is right among the k best if fewer than k others reach its score.
    for k in (1, 3):
        right = [
            sum(scores[i, c] >= scores[i, labels[i]] for c in range(C) if c != labels[i]) < k
            for i in range(N)
        ]
        assert metrics.top_k(scores, labels, k) == np.mean(right)


def test_classes_without_samples_do_not_count() -> None:
    scores = np.array([[3, 1, 0, 0], [3, 1, 0, 0]], np.float32)
    assert metrics.mean_class_accuracy(scores, np.array([0, 2])) == 0.5


@pytest.mark.parametrize("levels", [None, 3, 1])
def test_average_precision_and_auc_are_scikit_learns(levels: int | None) -> None:
    scores, _, truth = some(2, levels)
    expected = sklearn.metrics.average_precision_score(truth, scores, average=None)
    np.testing.assert_allclose(metrics.average_precision(scores, truth), expected)
    expected = sklearn.metrics.roc_auc_score(truth, scores, average=None)
    np.testing.assert_allclose(metrics.auc(scores, truth), expected)


def test_auc_counts_pairs() -> None:
    scores, _, truth = some(3, 4)
    for c in range(C):
        positive, negative = scores[truth[:, c] > 0, c], scores[truth[:, c] == 0, c]
        won = [float(p > n) + 0.5 * float(p == n) for p, n in itertools.product(positive, negative)]
        assert metrics.auc(scores, truth)[c] == pytest.approx(np.mean(won))


def test_classes_that_cannot_be_measured_are_left_out() -> None:
    scores, _, truth = some(4)
    truth[:, 2], truth[:, 5] = 0, 1
    precisions, areas = metrics.average_precision(scores, truth), metrics.auc(scores, truth)
    assert np.flatnonzero(np.isnan(precisions)).tolist() == [2]
    assert precisions[5] == 1
    assert np.flatnonzero(np.isnan(areas)).tolist() == [2, 5]
    there = [c for c in range(C) if c != 2]
    expected = sklearn.metrics.average_precision_score(truth[:, there], scores[:, there])
    assert metrics.mean_over_classes(precisions) == pytest.approx(expected)
    assert math.isnan(metrics.mean_over_classes(np.array([np.nan])))


def test_d_prime() -> None:
    areas = np.array([0.5, 0.9, 0.974, np.nan])
    expected = [math.sqrt(2) * norm.ppf(area) for area in areas[:3]]
    found = metrics.d_prime(areas)
    np.testing.assert_allclose(found[:3], expected)
    assert math.isnan(found[3])
    # It is averaged over classes, which is not what the mean area has.
    averaged = metrics.mean_over_classes(found)
    assert averaged == pytest.approx(np.mean(expected))
    assert averaged != pytest.approx(metrics.d_prime(areas[:3].mean()), rel=0.01)
    # The papers print a d' of 2.895 beside an AUC of 97.1 %: not that of the mean either.
    assert 2.66 < metrics.d_prime(np.array([0.971]))[0] < 2.70


def test_d_prime_of_perfect_classes_is_finite() -> None:
    low, high = metrics.d_prime(np.array([0.0, 1.0]))
    assert high == pytest.approx(-low)
    assert high == pytest.approx(math.sqrt(2) * norm.ppf(1 - metrics.AUC_MARGIN))
    assert round(high, 2) == 6.72


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([None, 3]))
def test_what_changes_nothing(seed: int, levels: int | None) -> None:
    scores, labels, truth = some(seed, levels)
    rows = np.random.default_rng(seed).permutation(N)
    order = np.random.default_rng(seed + 1).permutation(C)
    scaled = 3 * scores.astype(np.float64) - 1
    for k in (1, 5):
        found = metrics.top_k(scores, labels, k)
        assert metrics.top_k(scores[rows], labels[rows], k) == found
        assert metrics.top_k(scores[:, order], np.argsort(order)[labels], k) == found
        assert metrics.top_k(scaled, labels, k) == found
    accuracy = metrics.mean_class_accuracy(scores, labels)
    assert metrics.mean_class_accuracy(scores[rows], labels[rows]) == pytest.approx(accuracy)
    counts = metrics.confusion(scores, labels)
    assert (metrics.confusion(scores[rows], labels[rows]) == counts).all()
    for measure in (metrics.average_precision, metrics.auc):
        each = measure(scores, truth)
        np.testing.assert_allclose(measure(scores[rows], truth[rows]), each)
        np.testing.assert_allclose(measure(scores[:, order], truth[:, order]), each[order])
        np.testing.assert_allclose(measure(scaled, truth), each)
        assert ((each >= 0) & (each <= 1)).all()
    np.testing.assert_allclose(metrics.auc(-scores, truth), 1 - metrics.auc(scores, truth))
