"""The clusters of a run's last round: their sizes, their classes, and which members to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmssl.contracts import IGNORE
from mmssl.data.draws import derive_seed
from mmssl.report.contents import Cluster

# Of very many clusters so many are listed, from all over their ranking.
_LISTED = 600

# Classes that are named for a cluster.
_LEADING = 5

# Labels that are counted at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Labels:
    """A labeling as it lies in the run's folder.

    Attributes:
        name: the modality that was clustered, or another name where several were.
        round: from 1.
        labels: ``[N]`` int32, a memory map; `IGNORE` for a sample without cluster.
    """

    name: str
    round: int
    labels: np.ndarray


def last_labels(folder: Path, modalities: Sequence[str]) -> tuple[list[Labels], list[str]]:
    """The labelings of the last round that has any, and what could not be read.

    Args:
        folder: the run's, which has ``clusters/round-NN/NAME.labels.npy``.
        modalities: the recipe's, whose labelings come first and in this order.
    """
    rounds: dict[int, list[Path]] = {}
    for path in sorted((folder / "clusters").glob("round-*/*.labels.npy")):
        number = path.parent.name.removeprefix("round-")
        if number.isdecimal():
            rounds.setdefault(int(number), []).append(path)
    found: list[Labels] = []
    trouble = []
    for path in rounds[max(rounds)] if rounds else []:
        name = path.name.removesuffix(".labels.npy")
        try:
            labels = np.load(path, mmap_mode="r", allow_pickle=False)
            if labels.ndim != 1 or labels.dtype.kind != "i":
                raise ValueError(f"{labels.dtype} of shape {list(labels.shape)} are no labels")
            found.append(Labels(name, max(rounds), labels))
        except (OSError, ValueError, EOFError) as error:
            trouble.append(f"{path} cannot be read: {error}")
    order = {name: place for place, name in enumerate(modalities)}
    return sorted(found, key=lambda one: (order.get(one.name, len(order)), one.name)), trouble


def count(
    labels: np.ndarray, truth: np.ndarray | None, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of clusters, and of each cluster's classes.

    Args:
        labels: ``[N]`` integers, `IGNORE` for none.
        truth: ``[N]`` classes, `IGNORE` for none; or None.
        classes: their number.

    Returns:
        ``[k]`` int64, and ``[k, classes]`` int64, which is ``[k, 0]`` without ``truth``.
    """
    k = 1 + max((int(part.max()) for part in _parts(labels)), default=-1)
    k = max(k, 0)
    width = classes if truth is not None else 0
    sizes, table = np.zeros(k, np.int64), np.zeros(k * width, np.int64)
    for start, part in zip(range(0, len(labels), _CHUNK), _parts(labels), strict=True):
        has = part >= 0
        sizes += np.bincount(part[has], minlength=k)
        if truth is not None and width:
            true = truth[start : start + len(part)]
            both = has & (true >= 0)
            pairs = part[both].astype(np.int64) * width + true[both]
            table += np.bincount(pairs, minlength=k * width)
    return sizes, table.reshape(k, width)


def _parts(labels: np.ndarray) -> list[np.ndarray]:
    return [labels[start : start + _CHUNK] for start in range(0, len(labels), _CHUNK)]


def ranked(
    labels: np.ndarray, truth: np.ndarray | None, classes: Sequence[str]
) -> tuple[list[Cluster], int]:
    """Clusters that have members by purity, the purest first, or by size where there is no truth.

    Equal ones stand in the order of size, then of their index. Of very many, some hundreds from
    all over the ranking are returned.

    Args:
        labels: ``[N]`` integers, `IGNORE` for none.
        truth: ``[N]`` indices into ``classes``, `IGNORE` for none; or None.
        classes: their names.

    Returns:
        The clusters, and how many there are.
    """
    sizes, table = count(labels, truth, len(classes))
    used = np.flatnonzero(sizes)
    labelled = table.sum(1)
    most = table.max(1, initial=0)
    purity = np.where(labelled > 0, most / np.maximum(labelled, 1), -1.0)
    order = used[np.lexsort((used, -sizes[used], -purity[used]))]
    clusters = []
    for index in spread(order.tolist(), _LISTED):
        names = np.argsort(-table[index], kind="stable")[:_LEADING]
        clusters.append(
            Cluster(
                index=index,
                size=int(sizes[index]),
                purity=float(purity[index]) if labelled[index] else None,
                leading=[
                    (str(classes[c]), float(table[index, c] / labelled[index]))
                    for c in names
                    if table[index, c]
                ],
            )
        )
    return clusters, len(order)


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most ``most`` items from all over a sequence, both ends among them."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[:most])
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def members_in_random_order(
    labeling: Labels, clusters: Sequence[int], *, most: int, seed: int
) -> Mapping[int, np.ndarray]:
    """At most ``most`` members of each cluster, drawn at random.

    Args:
        labeling: whose clusters.
        clusters: their indices.
        most: how many to draw of each.
        seed: the recipe's.

    Returns:
        By cluster, rows of the dataset in the order in which they were drawn.
    """
    found: dict[int, list[np.ndarray]] = {c: [] for c in clusters}
    for start, part in zip(
        range(0, len(labeling.labels), _CHUNK), _parts(labeling.labels), strict=True
    ):
        for c in clusters:
            found[c].append(np.flatnonzero(part == c) + start)
    drawn = {}
    for c, parts in found.items():
        rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
        rng = np.random.default_rng(derive_seed(seed, "report", labeling.name, c))
        drawn[c] = rows[rng.choice(len(rows), min(most, len(rows)), replace=False)]
    return drawn


def truth_of(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray | None:
    """A dataset's labels, or None where no sample has a single class."""
    return labels if len(classes) and bool((labels != IGNORE).any()) else None
