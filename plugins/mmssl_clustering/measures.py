"""Measures of clusterings: against labels, against each other, and of their sizes.

Labelings are integer arrays ``[N]`` with values from 0 on; `IGNORE` (-100) stands for a sample
without one. A pair of labelings is compared on the samples that both label; if there are none,
every measure of it is nan.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The value of mmssl.contracts.IGNORE, which cannot be imported without torch; a test holds them
# together.
IGNORE = -100

# Rows at a time, so that memory stays the same for any number of samples.
_CHUNK = 1 << 22


class PurityRow(NamedTuple):
    """One cluster of a purity table.

    Attributes:
        rank: 1 for the purest.
        cluster: its index.
        size: its number of labelled samples.
        purity: the share of its most frequent class.
        leading: its most frequent classes with their shares, at most `top` and none of share 0.
    """

    rank: int
    cluster: int
    size: int
    purity: float
    leading: list[tuple[str, float]]


def contingency(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often each cluster meets each label.

    Args:
        clusters: ``[N]``.
        labels: ``[N]``, in the same order.

    Returns:
        ``[k, c]`` int64, where k and c are one more than the largest values in the arrays.

    Raises:
        ValueError: the arrays differ in length or hold negative values other than `IGNORE`.
    """
    if clusters.shape != labels.shape or clusters.ndim != 1:
        raise ValueError(f"labelings of shapes {clusters.shape} and {labels.shape} do not pair up")
    k = max(0, int(clusters.max(initial=-1)) + 1)
    c = max(0, int(labels.max(initial=-1)) + 1)
    table = np.zeros(k * c, np.int64)
    for start in range(0, len(clusters), _CHUNK):
        a = clusters[start : start + _CHUNK].astype(np.int64)
        b = labels[start : start + _CHUNK].astype(np.int64)
        valid = (a != IGNORE) & (b != IGNORE)
        a, b = a[valid], b[valid]
        if a.min(initial=0) < 0 or b.min(initial=0) < 0:
            raise ValueError(f"a labeling holds a negative value other than {IGNORE}")
        table += np.bincount(a * c + b, minlength=k * c)
    return table.reshape(k, c)


def purities(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``[k]`` float64, each cluster's share of its most frequent label; nan where it is empty."""
    table = contingency(clusters, labels)
    with np.errstate(invalid="ignore"):
        return table.max(axis=1, initial=0) / table.sum(axis=1)


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """The clusters' purities, weighted by their sizes: Σ_cluster max_label count / N."""
    table = contingency(clusters, labels)
    total = int(table.sum())
    return int(table.max(axis=1, initial=0).sum()) / total if total else math.nan


def mean_purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the clusters' purities, each counting alike; clusters without labels do not."""
    each = purities(clusters, labels)
    each = each[~np.isnan(each)]
    return float(each.mean()) if len(each) else math.nan


def matched_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy when each cluster stands for one class, and each class for one cluster.

    They are matched such that most samples are right (the Hungarian algorithm). Of more clusters
    than classes, or more classes than clusters, some remain without a partner: their samples are
    wrong.
    """
    from scipy.optimize import linear_sum_assignment

    table = contingency(clusters, labels)
    total = int(table.sum())
    if not total:
        return math.nan
    rows, columns = linear_sum_assignment(table, maximize=True)
    return int(table[rows, columns].sum()) / total


def class_entropy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """H(label | cluster) in nats: the entropy of labels in a cluster, weighted by its size.

    0 where every cluster holds one class; H(label) where clusters tell nothing.
    """
    table = contingency(clusters, labels)
    if not table.sum():
        return math.nan
    return max(0.0, _entropy(table) - _entropy(table.sum(axis=1)))


def mean_class_entropy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """The mean over clusters of the entropy of labels in each, in nats, each counting alike."""
    table = contingency(clusters, labels)
    table = table[table.any(axis=1)]
    return float(np.mean([_entropy(row) for row in table])) if len(table) else math.nan


def nmi(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information, normalised by the arithmetic mean of the two entropies: 0 to 1.

    1 when both labelings have a single value.
    """
    table = contingency(clusters, labels)
    if not table.sum():
        return math.nan
    mean = (_entropy(table.sum(axis=1)) + _entropy(table.sum(axis=0))) / 2
    if mean == 0:
        return 1.0
    # I(A; B) = H(A) + H(B) - H(A, B); rounding may leave it slightly outside its bounds.
    return min(1.0, max(0.0, (2 * mean - _entropy(table)) / mean))


def ami(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Mutual information adjusted for chance (arithmetic mean): about 0 for random, 1 for equal."""
    from sklearn.metrics import adjusted_mutual_info_score

    valid = (clusters != IGNORE) & (labels != IGNORE)
    if not valid.any():
        return math.nan
    return float(adjusted_mutual_info_score(labels[valid], clusters[valid]))


def ari(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of sample pairs that both labelings treat alike, adjusted for chance: -0.5 to 1."""

    def pairs(counts: np.ndarray) -> float:
        return float((counts.astype(np.float64) * (counts - 1)).sum() / 2)

    table = contingency(clusters, labels)
    total = int(table.sum())
    if not total:
        return math.nan
    together = pairs(table)
    in_cluster, in_label = pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    if in_cluster == in_label == together:
        return 1.0  # the same partition, also the ones that leave nothing to adjust
    expected = in_cluster * in_label / (total * (total - 1) / 2)
    return (together - expected) / ((in_cluster + in_label) / 2 - expected)


def change_rate(before: np.ndarray, after: np.ndarray) -> float:
    """Share of samples that changed their cluster between two clusterings.

    k-means numbers its clusters arbitrarily, so clusters are matched first, one to one, such that
    most samples stay (the Hungarian algorithm): a mere renumbering is no change.
    """
    return 1 - matched_accuracy(before, after)


def sizes(clusters: np.ndarray, k: int) -> np.ndarray:
    """``[k]`` int64, the number of samples of each cluster; `IGNORE` counts nowhere."""
    counts = np.zeros(k, np.int64)
    for start in range(0, len(clusters), _CHUNK):
        chunk = clusters[start : start + _CHUNK]
        counts += np.bincount(chunk[chunk != IGNORE], minlength=k)
    return counts


def entropy(clusters: np.ndarray, k: int) -> float:
    """Entropy of the cluster sizes over log k: 1 for equal sizes, 0 where one cluster has all.

    1 for ``k=1``, nan without samples.
    """
    counts = sizes(clusters, k)
    if not counts.sum():
        return math.nan
    return min(1.0, _entropy(counts) / math.log(k)) if k > 1 else 1.0


def largest(clusters: np.ndarray, k: int) -> int:
    """The number of samples of the largest cluster."""
    return int(sizes(clusters, k).max(initial=0))


def used(clusters: np.ndarray, k: int | None = None) -> int:
    """The number of clusters with samples; ``k`` need not be known."""
    k = max(0, int(clusters.max(initial=-1)) + 1) if k is None else k
    return int(np.count_nonzero(sizes(clusters, k)))


def empty(clusters: np.ndarray, k: int) -> int:
    """The number of clusters without samples."""
    return k - used(clusters, k)


def purity_table(
    clusters: np.ndarray, labels: np.ndarray, class_names: Sequence[str], top: int = 3
) -> list[PurityRow]:
    """Clusters ranked by purity, with the classes that lead in each (XDC, tables 5 and 6).

    Args:
        clusters: ``[N]``.
        labels: ``[N]``, indices into `class_names`.
        class_names: names of the classes.
        top: how many leading classes to name.

    Returns:
        A row for each cluster with labelled samples, the purest first; of equally pure ones the
        larger, then the one with the lower index. Classes of equal share stand in their own order.
    """
    table = contingency(clusters, labels)
    counts = table.sum(axis=1)
    filled = np.flatnonzero(counts)
    shares = table[filled] / counts[filled, None]
    order = np.lexsort((filled, -counts[filled], -shares.max(axis=1, initial=0)))
    rows = []
    for rank, at in enumerate(order, start=1):
        leading = [
            (class_names[label], float(shares[at, label]))
            for label in np.argsort(-shares[at], kind="stable")[:top]
            if shares[at, label] > 0
        ]
        cluster = int(filled[at])
        purest = float(shares[at].max())
        rows.append(PurityRow(rank, cluster, int(counts[cluster]), purest, leading))
    return rows


def _entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution that `counts` are proportional to."""
    counts = counts[counts > 0].astype(np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0
