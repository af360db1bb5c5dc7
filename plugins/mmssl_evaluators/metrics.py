"""Measures of a classifier's scores.

Shapes: ``N`` samples, ``C`` classes. All take scores of which a larger one speaks for a class,
whatever their scale.
"""

import numpy as np

#: An AUC nearer to 0 or 1 than this is taken to be this far from it: d' would be infinite.
AUC_MARGIN = 1e-6


def answers(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that is chosen for each sample; one that ties with a wrong one loses.

    A classifier that gives all classes the same score is therefore never right, and neither is
    one whose scores are not a number.

    Args:
        scores: ``[N, C]``.
        labels: ``[N]`` integers, the right classes.

    Returns:
        ``[N]`` int64; of wrong classes that tie, the first.
    """
    rows = np.arange(len(labels))
    others = np.array(scores, np.float64)
    own = others[rows, labels]
    others[rows, labels] = -np.inf
    best = others.argmax(1)
    return np.where(others[rows, best] < own, labels, best).astype(np.int64)


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """How often the right class is among the k best; one that ties with wrong ones comes last.

    Args:
        scores: ``[N, C]``, N at least 1.
        labels: ``[N]`` integers.
        k: at least 1.
    """
    own = scores[np.arange(len(labels)), labels]
    worse = (scores < own[:, None]).sum(1)
    return float((scores.shape[1] - worse <= k).mean())


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy within each class that has samples, averaged over these classes.

    Args:
        scores: ``[N, C]``, N at least 1.
        labels: ``[N]`` integers.
    """
    right = answers(scores, labels) == labels
    sizes = np.bincount(labels)
    hits = np.bincount(labels, weights=right)
    there = sizes > 0
    return float((hits[there] / sizes[there]).mean())


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``[C, C]`` int64: samples by right class (row) and chosen class (column).

    Args:
        scores: ``[N, C]``.
        labels: ``[N]`` integers.
    """
    classes = scores.shape[1]
    cells = labels.astype(np.int64) * classes + answers(scores, labels)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The average precision of each class: the sum of precision times the gain in recall.

    Samples whose scores tie are retrieved together, as scikit-learn has it.

    Args:
        scores: ``[N, C]``.
        truth: ``[N, C]``, 1 where a sample has a class, else 0.

    Returns:
        ``[C]`` float64, NaN for a class without positives.
    """
    return np.array([_average_precision(s, t) for s, t in zip(scores.T, truth.T, strict=True)])


def _average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    retrieved = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last of a tie
    hits = np.cumsum(truth[order] > 0)[retrieved]
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / (retrieved + 1)).sum())


def auc(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The area under each class's ROC curve: how often a positive scores above a negative.

    A tie is worth one half.

    Args:
        scores: ``[N, C]``.
        truth: ``[N, C]``, 1 where a sample has a class, else 0.

    Returns:
        ``[C]`` float64, NaN for a class without positives or without negatives.
    """
    from scipy.stats import rankdata

    positive = truth > 0
    count = positive.sum(0).astype(np.float64)
    pairs = count * (len(truth) - count)
    ranks = np.where(positive, rankdata(scores, axis=0), 0).sum(0)
    above = ranks - count * (count + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)


def d_prime(areas: np.ndarray) -> np.ndarray:
    """The distance between two normal distributions of variance 1 that have such areas (`auc`).

    It is ``sqrt(2)`` times the normal quantile of the area, at most 6.72 either way: `AUC_MARGIN`.
    AudioSet's figure is its mean over classes, not that of the mean area.

    Args:
        areas: ``[C]``, from 0 to 1.
    """
    from scipy.special import ndtri

    return np.sqrt(2) * ndtri(np.clip(areas, AUC_MARGIN, 1 - AUC_MARGIN))


def mean_over_classes(values: np.ndarray) -> float:
    """The mean of what is known, NaN where nothing is: ``[C]`` to a number."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
