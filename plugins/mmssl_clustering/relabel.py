"""Relabelling between rounds: fit centroids on a subsample, then label every sample, streaming.

::

    clusters/round-03/
      video.centroids.npy       [k, d] float32
      video.preprocessing.npz   what is done to features before they are compared with centroids
      video.labels.npy          [N] int32, one pseudo-label a sample, -100 where there is none
      video.validation.npy      the same of the validation clips, where there are any
      health.json               how the clusters look; written last

Each file appears when it is whole, so a kill costs at most the step it interrupts: centroids are
not fitted twice, and labelling goes on at the last block that reached the disk. Nothing that
grows with N is held but 4 bytes a sample and clustering: the subsample has at most
``points_per_centroid * k`` rows.

Of several ranks each computes the features of its share of rows. The subsample meets on rank 0,
where faiss fits centroids, as it would in a single process; labels are written in blocks of rows,
each by one rank, and a later process with another number of ranks finds the same blocks.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmssl.contracts import IGNORE, Round, Split
from mmssl.data.sampling import Permutation
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl.training.checkpoints import write_atomically
from mmssl_clustering import measures
from mmssl_clustering.kmeans import Mode, Preprocessing, assign, fit

# Rows in a block of labels: at least so many, and in so many blocks at least, but no larger.
_SMALLEST, _BLOCKS, _LARGEST = 256, 64, 16_384


@dataclass(frozen=True)
class Clustering:
    """One labelling of the dataset.

    Attributes:
        name: of its files: a modality, "joint", or several modalities joined by "+".
        sources: the modalities whose features are clustered. Several are l2-normalised one by
            one and concatenated (XDC's CDC, section 3.2).
        k: number of clusters.
    """

    name: str
    sources: tuple[str, ...]
    k: int

    def features(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """``[b, d]``, from features by modality."""
        if len(self.sources) == 1:
            return pooled[self.sources[0]]
        return torch.cat([normalize(pooled[source], dim=1) for source in self.sources], dim=1)

    def present(self, present: Mapping[str, np.ndarray]) -> np.ndarray:
        """``[b]`` bool: has the sample all sources?"""
        return np.logical_and.reduce([present[source] for source in self.sources])


@dataclass(frozen=True)
class Method:
    """How clusters are made of features.

    Attributes:
        normalize: what is done to features before k-means.
        pca: components to whiten, or None.
        iterations: of Lloyd's algorithm.
        spherical: cluster directions instead of points.
        restarts: how often k-means begins anew.
        split_empty: does a cluster that runs empty take half of a large one?
        points_per_centroid: size of the subsample that centroids are fitted on, per cluster.
        on_collapse: what happens when a labelling has collapsed.
        collapse_below: it has when its clusters are effectively fewer: exp of their entropy.
    """

    normalize: Mode
    pca: int | None
    iterations: int
    spherical: bool
    restarts: int
    split_empty: bool
    points_per_centroid: int
    on_collapse: Literal["warn", "stop"]
    collapse_below: float


@dataclass
class _Batch:
    """Features of some rows, on their way to their labels."""

    index: np.ndarray
    pooled: dict[str, Tensor]
    present: dict[str, np.ndarray]


def labels_path(folder: Path, name: str, split: Split = "train") -> Path:
    """Where a labelling of a split is."""
    return folder / f"{name}.{'labels' if split == 'train' else split}.npy"


def relabel(round: Round, clusterings: Sequence[Clustering], method: Method) -> None:
    """Bring every labelling of a round about, or finish what a killed process began.

    Raises:
        UserError: fewer samples than clusters, or a resumed round whose labels are gone.
    """
    labels = [labels_path(round.folder, c.name) for c in clusterings]
    health = round.folder / "health.json"
    if distributed.on_main(lambda: health.is_file() and all(path.is_file() for path in labels)):
        if not round.resumed and distributed.is_main():
            round.report(json.loads(health.read_text()))
        return
    if round.resumed:
        raise UserError(
            f"{round.folder} lacks labels of a round whose training has begun: restore the "
            "folder, or start under another name"
        )
    sample = _fit(round, clusterings, method)
    if sample is None:
        _label_all(round, clusterings)
    else:
        _label_sample(round, clusterings, sample)
    if "validation" in round.sizes:
        _label_validation(round, clusterings)
    distributed.on_main(lambda: _conclude(round, clusterings, method))


def _conclude(round: Round, clusterings: Sequence[Clustering], method: Method) -> None:
    """Look at the finished labels, on rank 0: what is found there ends the run on every rank."""
    figures = _health(round, clusterings)
    _watch(round, clusterings, method, figures)
    _save_json(round.folder / "health.json", figures)
    round.report(figures)


@dataclass
class _Sample:
    """Features of this rank's share of the rows that centroids are fitted on.

    Attributes:
        index: ``[n]`` int64, ascending.
        pooled: by modality, ``[n, d]`` float32 on the CPU.
        present: by modality, ``[n]`` bool.
    """

    index: np.ndarray
    pooled: dict[str, np.ndarray]
    present: dict[str, np.ndarray]

    @classmethod
    def read(cls, round: Round, index: np.ndarray) -> "_Sample":
        """Stream features into arrays made once: lists of batches would double the memory."""
        pooled: dict[str, np.ndarray] = {}
        present: dict[str, np.ndarray] = {}
        done = 0
        for batch in round.features(indices=index, title="features to cluster"):
            rows = slice(done, done + len(batch.index))
            for name, values in batch.pooled.items():
                if name not in pooled:
                    pooled[name] = np.empty((len(index), values.shape[1]), np.float32)
                pooled[name][rows] = values.cpu().numpy()
            for name, mask in batch.present.items():
                present.setdefault(name, np.empty(len(index), bool))[rows] = mask
            done += len(batch.index)
        return cls(index, pooled, present)

    def batches(self, size: int = 4096) -> Iterator[_Batch]:
        """The same rows again."""
        for start in range(0, len(self.index), size):
            rows = slice(start, start + size)
            yield _Batch(
                self.index[rows],
                {name: torch.from_numpy(values[rows]) for name, values in self.pooled.items()},
                {name: mask[rows] for name, mask in self.present.items()},
            )

    def matrix(self, clustering: Clustering, chosen: np.ndarray) -> np.ndarray:
        """``[m, d]``: features of the chosen rows (``[n]`` bool) that have all sources."""
        if not len(self.index):  # more ranks than rows: this one does not know d
            return np.empty((0, 0), np.float32)
        rows = clustering.present(self.present) & chosen
        if len(clustering.sources) == 1 and rows.all():
            return self.pooled[clustering.sources[0]]
        parts = {name: torch.from_numpy(self.pooled[name][rows]) for name in clustering.sources}
        return clustering.features(parts).numpy()


def _fit(round: Round, clusterings: Sequence[Clustering], method: Method) -> _Sample | None:
    """Centroids of every labelling; returns the subsample where it is the whole dataset."""
    todo = distributed.on_main(
        lambda: [c for c in clusterings if not _centroids_path(round.folder, c).is_file()]
    )
    if not todo:
        return None
    size = round.sizes["train"]
    # One subsample for all labellings, the same whichever of them are done already: features
    # may differ in the last bit with the batch they are computed in.
    wanted = min(size, max(c.k for c in clusterings) * method.points_per_centroid)
    drawn = Permutation(size, round.seed)(np.arange(wanted))
    order = np.argsort(drawn)
    share = distributed.share(wanted)
    own = order[share.start : share.stop]
    sample = _Sample.read(round, drawn[own])
    for c in todo:
        # Those with fewer clusters take the rows drawn first.
        matrix = distributed.collect(sample.matrix(c, own < c.k * method.points_per_centroid))
        distributed.on_main(partial(_fit_one, round, c, matrix, method))
    return sample if wanted == size else None


def _fit_one(
    round: Round, clustering: Clustering, matrix: np.ndarray | None, method: Method
) -> None:
    assert matrix is not None
    if len(matrix) < clustering.k:
        raise UserError(
            f"objective.clusters: {clustering.k} clusters of {clustering.name} need at least as "
            f"many samples, but only {len(matrix)} have {' and '.join(clustering.sources)}"
        )
    try:
        preprocessing = Preprocessing.fit(matrix, method.normalize, method.pca)
        points = preprocessing.apply(torch.from_numpy(matrix)).numpy()
        centroids = fit(
            points,
            clustering.k,
            seed=round.seed,
            iterations=method.iterations,
            spherical=method.spherical,
            restarts=method.restarts,
            split_empty=method.split_empty,
            device=round.device,
        )
    except ValueError as error:
        raise UserError(f"objective: clusters of {clustering.name}: {error}") from error
    preprocessing.save(round.folder / f"{clustering.name}.preprocessing.npz")
    _save_array(_centroids_path(round.folder, clustering), centroids)


def _blocks(size: int) -> list[range]:
    """The rows that are labelled and written together, however many ranks there are."""
    length = min(_LARGEST, max(_SMALLEST, -(-size // _BLOCKS)))
    return [range(first, min(first + length, size)) for first in range(0, size, length)]


def _label_all(round: Round, clusterings: Sequence[Clustering]) -> None:
    """Label the training set block by block, each of them a file until all are there."""
    blocks = _blocks(round.sizes["train"])
    parts = round.folder / "labelling"
    left = distributed.on_main(
        lambda: [] if _labelled(round, clusterings) else _missing(parts, blocks)
    )
    share = distributed.share(len(left))
    own = [left[i] for i in share]
    rows: np.ndarray | range = range(own[0].start, own[-1].stop) if own else range(0)
    if len(rows) > sum(map(len, own)):  # some in between are labelled already
        rows = np.concatenate([np.arange(block.start, block.stop) for block in own])
    stream = round.features(indices=rows, title="features to label")
    batches = (_Batch(b.index, b.pooled, b.present) for b in stream)
    labelled = _labels(round, clusterings, batches)
    for block, labels in _regrouped(own, labelled):
        # One file with a row for each labelling: a block is either labelled or not.
        _save_array(_block_path(parts, block), np.stack([labels[c.name] for c in clusterings]))
    distributed.share_objects(None)  # all blocks are there

    def join() -> None:
        if not _labelled(round, clusterings):
            for number, c in enumerate(clusterings):
                found = (
                    np.load(distributed.shown(_block_path(parts, block)))[number]
                    for block in blocks
                )
                _save_joined(labels_path(round.folder, c.name), found, blocks[-1].stop)
        shutil.rmtree(parts, ignore_errors=True)

    distributed.on_main(join)


def _labelled(round: Round, clusterings: Sequence[Clustering]) -> bool:
    return all(labels_path(round.folder, c.name).is_file() for c in clusterings)


def _missing(parts: Path, blocks: list[range]) -> list[range]:
    """The blocks that are still to be labelled."""
    parts.mkdir(exist_ok=True)
    return [block for block in blocks if not _block_path(parts, block).is_file()]


def _block_path(parts: Path, block: range) -> Path:
    return parts / f"{block.start:012}.npy"


def _regrouped(
    blocks: Sequence[range], labelled: Iterable[tuple[np.ndarray, dict[str, np.ndarray]]]
) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
    """Labels that arrive batch by batch, as the blocks of rows that they belong to."""
    waiting: dict[str, list[np.ndarray]] = {}
    arrived = 0
    todo = iter(blocks)
    block = next(todo, None)
    for _, labels in labelled:
        for name, values in labels.items():
            waiting.setdefault(name, []).append(values)
        arrived += len(next(iter(labels.values())))
        while block is not None and arrived >= len(block):
            joined = {name: np.concatenate(values) for name, values in waiting.items()}
            yield block, {name: values[: len(block)] for name, values in joined.items()}
            waiting = {name: [values[len(block) :]] for name, values in joined.items()}
            arrived -= len(block)
            block = next(todo, None)


def _label_sample(round: Round, clusterings: Sequence[Clustering], sample: _Sample) -> None:
    """Labels where the subsample was the whole dataset, whose features are still at hand."""
    own = list(_labels(round, clusterings, sample.batches()))
    for c in clusterings:
        parts = [labels[c.name] for _, labels in own]
        mine = np.concatenate(parts) if parts else np.empty(0, np.int32)
        labels = distributed.collect(mine)
        if labels is not None:
            _save_array(labels_path(round.folder, c.name), labels)


def _label_validation(round: Round, clusterings: Sequence[Clustering]) -> None:
    """Labels of a small split: each sample's nearest centroid of the training set."""
    share = distributed.share(round.sizes["validation"])
    stream = round.features(split="validation", indices=share, title="labels of validation clips")
    batches = (_Batch(b.index, b.pooled, b.present) for b in stream)
    own = list(_labels(round, clusterings, batches))
    for c in clusterings:
        parts = [labels[c.name] for _, labels in own]
        labels = distributed.collect(np.concatenate(parts) if parts else np.empty(0, np.int32))
        if labels is not None:
            _save_array(labels_path(round.folder, c.name, "validation"), labels)


def _labels(
    round: Round, clusterings: Sequence[Clustering], batches: Iterable[_Batch]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Labels of each batch by labelling, `IGNORE` for samples that lack a source."""
    tools = {}
    for c in clusterings:
        centroids = torch.from_numpy(np.load(distributed.shown(_centroids_path(round.folder, c))))
        # Written before the centroids, so it is there when they are.
        preprocessing = Preprocessing.load(round.folder / f"{c.name}.preprocessing.npz")
        tools[c.name] = preprocessing, centroids.to(round.device)
    for batch in batches:
        labels = {}
        for c in clusterings:
            preprocessing, centroids = tools[c.name]
            features = c.features(batch.pooled).to(round.device)
            try:
                nearest, _ = assign(preprocessing.apply(features), centroids)
            except ValueError as error:
                raise UserError(f"objective: labels of {c.name}: {error}") from error
            present = c.present(batch.present)
            labels[c.name] = np.where(present, nearest.cpu().numpy(), IGNORE).astype(np.int32)
        yield batch.index, labels


def _health(round: Round, clusterings: Sequence[Clustering]) -> dict[str, float]:
    """How the clusters look, beside those before and, for measuring only, beside the labels."""
    truth = round.truth()
    labels = {
        c.name: np.load(labels_path(round.folder, c.name), mmap_mode="r") for c in clusterings
    }
    figures: dict[str, float] = {}
    for c in clusterings:
        now = labels[c.name]
        if truth is not None:
            figures[f"{c.name}/purity"] = measures.purity(now, truth)
            figures[f"{c.name}/nmi"] = measures.nmi(now, truth)
        before = labels_path(round.previous, c.name) if round.previous else None
        if before is not None and before.is_file():
            figures[f"{c.name}/changed"] = measures.change_rate(np.load(before, mmap_mode="r"), now)
        figures[f"{c.name}/used"] = measures.used(now, c.k)
        figures[f"{c.name}/balance"] = measures.entropy(now, c.k)
        figures[f"{c.name}/labelled"] = float(np.mean(now != IGNORE))
    names = list(labels)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            figures[f"{first}-{second}/nmi"] = measures.nmi(labels[first], labels[second])
    return figures


def _watch(
    round: Round, clusterings: Sequence[Clustering], method: Method, figures: Mapping[str, float]
) -> None:
    """Warn of a labelling that has collapsed, or stop before anything is trained on it."""
    for c in clusterings:
        effective = c.k ** figures[f"{c.name}/balance"]  # balance is entropy over log k
        if effective >= method.collapse_below:
            continue
        labels = np.load(labels_path(round.folder, c.name), mmap_mode="r")
        share = measures.largest(labels, c.k) / max(1, int(np.count_nonzero(labels != IGNORE)))
        text = (
            f"the clusters of {c.name} have collapsed in round {round.number}: "
            f"{measures.used(labels, c.k)} of {c.k} are used and the largest holds {share:.0%} of "
            "the samples"
        )
        if method.on_collapse == "stop":
            raise UserError(
                f"objective: {text}; try normalize: standardize_l2, balance: true, more "
                "augmentation or a lower learning rate under another name, or on_collapse: warn"
            )
        round.say(f"warning: {text}")


def _centroids_path(folder: Path, clustering: Clustering) -> Path:
    return folder / f"{clustering.name}.centroids.npy"


def _save_array(path: Path, array: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomically(path, write)


def _save_joined(path: Path, parts: Iterable[np.ndarray], size: int) -> None:
    """Labels of all rows from those of consecutive blocks, one of which is held at a time."""

    def write(temporary: Path) -> None:
        whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.int32, shape=(size,))
        done = 0
        for part in parts:
            whole[done : done + len(part)] = part
            done += len(part)
        whole.flush()

    write_atomically(path, write)


def _save_json(path: Path, value: Mapping[str, float]) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1)))
