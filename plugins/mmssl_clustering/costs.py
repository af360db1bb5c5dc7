"""What clustering costs in a round, by formula: known before anything is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmssl.contracts import Table
from mmssl.pipeline.plan import quantity
from mmssl_clustering.kmeans import _TILE
from mmssl_clustering.relabel import Clustering, Method

# Bytes of a feature's float32, and of a label's int32.
_FLOAT = 4
_LABEL = 4

# Bytes a sample while rows are sorted by cluster, one labelling after the other (measured).
_SORTING = 42


@dataclass(frozen=True)
class _Labelling:
    """One labelling: centroids are fitted on ``points`` samples.

    Attributes:
        name: as `Clustering.name`.
        k: number of clusters.
        raw: dimensions of the features.
        d: dimensions that k-means sees: fewer after PCA.
        points: samples in the subsample.
        joint: is it made of several modalities?
    """

    name: str
    k: int
    raw: int
    d: int
    points: int
    joint: bool


def tables(
    clusterings: Sequence[Clustering],
    method: Method,
    *,
    dims: Mapping[str, int],
    samples: int,
    ranks: int,
    rounds: int,
    balance: bool,
) -> list[Table]:
    """Tables for a dry run: each labelling, the clips read for all of them, and memory.

    Args:
        clusterings: the labellings.
        method: how they are made.
        dims: D by modality.
        samples: N, the number of samples that get labels.
        ranks: processes that stream features together.
        rounds: how often all of it happens; labels of every round are kept.
        balance: is training balanced over the clusters?
    """
    labellings = []
    for c in clusterings:
        raw = sum(dims[source] for source in c.sources)
        points = min(samples, c.k * method.points_per_centroid)
        d = raw if method.pca is None else min(raw, method.pca)
        labellings.append(_Labelling(c.name, c.k, raw, d, points, len(c.sources) > 1))
    return [
        _labellings(labellings, method, samples, ranks),
        _reading(labellings, samples, ranks, rounds),
        _memory(labellings, method, sum(dims.values()), samples, ranks, balance),
    ]


def _labellings(
    labellings: Sequence[_Labelling], method: Method, samples: int, ranks: int
) -> Table:
    """What each labelling takes, in a column of its own."""
    share = -(-samples // ranks)
    steps = method.iterations * method.restarts
    rows: list[Sequence[Any]] = []

    def row(title: str, figure: Callable[[_Labelling], Any]) -> None:
        rows.append((title, *(figure(labelling) for labelling in labellings)))

    # A distance is a multiplication and an addition in each dimension.
    def distances(count: int) -> Callable[[_Labelling], str]:
        return lambda c: quantity(2 * count * c.k * c.d, "FLOP")

    row("clusters", lambda c: c.k)
    row("dimensions", lambda c: c.d)
    row("points that centroids are fitted on", lambda c: c.points)
    row("features of these points", lambda c: quantity(c.points * c.raw * _FLOAT, "B"))
    row("k-means, an iteration", lambda c: distances(c.points)(c))
    row(f"k-means, {steps} iterations", lambda c: distances(c.points * steps)(c))
    if method.pca is not None:
        row("PCA of all samples", lambda c: quantity(2 * samples * c.raw * c.d, "FLOP"))
    row("nearest centroids of all samples", distances(samples))
    if ranks > 1:
        row("nearest centroids of a rank's share", distances(share))
    row("labels of all samples", lambda _: quantity(samples * _LABEL, "B"))
    row("features of all, if they were held", lambda c: quantity(samples * c.raw * _FLOAT, "B"))
    if ranks > 1:
        row(
            "features of a rank, if they were held",
            lambda c: quantity(share * c.raw * _FLOAT, "B"),
        )
    return Table("clustering, each round", ("", *(c.name for c in labellings)), rows)


def _reading(labellings: Sequence[_Labelling], samples: int, ranks: int, rounds: int) -> Table:
    """Clips that are decoded and sent through the encoders, and what is written."""
    # One subsample serves all labellings; where it is all there is, it is not read again.
    points = max(c.points for c in labellings)
    labelled = 0 if points == samples else samples
    rows: list[Sequence[Any]] = [
        ("clips read to fit centroids", points, -(-points // ranks)),
        ("clips read to label", labelled, -(-labelled // ranks)),
    ]
    labels = len(labellings) * samples * _LABEL
    rows.append(("labels on disk", quantity(labels, "B"), None))
    rows.append((f"labels of {rounds} rounds", quantity(rounds * labels, "B"), None))
    if ranks == 1:
        return Table("reading and writing, each round", ("", ""), [row[:2] for row in rows])
    return Table("reading and writing, each round", ("", "in all", "a rank"), rows)


def _memory(
    labellings: Sequence[_Labelling],
    method: Method,
    dims: int,
    samples: int,
    ranks: int,
    balance: bool,
) -> Table:
    """Bytes of a process at most; they are not all needed at the same time."""
    points = -(-max(c.points for c in labellings) // ranks)
    subsample = points * dims * _FLOAT
    copies = [_copies(c, method, points, ranks) for c in labellings]
    rows: list[Sequence[Any]] = [
        ("features of the subsample", subsample, subsample),
        ("copies to fit centroids on", *(max(places) for places in zip(*copies, strict=True))),
    ]
    tile = max(_TILE, *(c.k for c in labellings)) * _FLOAT
    rows.append(("a tile of distances", tile, tile))
    labels = len(labellings) * samples * _LABEL
    rows.append(("labels, a mapped file that processes share", labels, labels))
    if balance:
        rows.append(("rows by cluster, to balance", labels, labels))
        rows.append(("sorting them, for a moment", *[samples * _SORTING] * 2))
    shown = [(title, *(quantity(value, "B") for value in values)) for title, *values in rows]
    title = "memory besides networks and clips, at most"
    if ranks == 1:
        return Table(title, ("", ""), [row[:2] for row in shown])
    return Table(title, ("", "rank 0", "other ranks"), shown)


def _copies(c: _Labelling, method: Method, share: int, ranks: int) -> tuple[int, int]:
    """Bytes of what fitting makes of the subsample's features, on rank 0 and on any other.

    Each rank leaves out its rows that lack a source by copying the others; several sources are
    copied, normalised and concatenated. Rank 0 receives them all, as a single process has them
    already. There preprocessing copies, PCA once more, and so do unit vectors.
    """
    made = min(share, c.points) * (3 * c.raw if c.joint else c.raw) * _FLOAT
    changed = method.normalize != "none" or method.pca is not None
    width = c.raw + c.raw * changed + c.d * (method.pca is not None) + c.d * method.spherical
    fitted = c.points * width * _FLOAT
    return (max(made, fitted) if ranks == 1 else made + fitted), made
