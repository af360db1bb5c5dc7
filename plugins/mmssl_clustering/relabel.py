"""Relabelling between rounds: fit centroids on a subsample, then label every sample, streaming.

::

    clusters/round-03/
      video.centroids.npy       [k, d] float32
      video.preprocessing.npz   what is done to features before they are compared with centroids
      video.labels.npy          [N] int32, one pseudo-label a sample, -100 where there is none
      video.validation.npy      the same of the validation clips, where there are any
      health.json               how the clusters look; written last

Each file appears when it is whole, so a kill costs at most the step it interrupts: centroids are
not fitted twice, and labelling goes on at the last batch that reached the disk. Nothing that
grows with N is held but 4 bytes a sample and clustering: the subsample has at most
``points_per_centroid * k`` rows.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmssl.contracts import IGNORE, Round, Split
from mmssl.data.sampling import Permutation
from mmssl.errors import UserError
from mmssl.training.checkpoints import write_atomically
from mmssl_clustering import measures
from mmssl_clustering.kmeans import Mode, Preprocessing, assign, fit

# Batches between two notes of how far labelling has come.
_NOTE_EVERY = 64


@dataclass(frozen=True)
class Clustering:
    """One labelling of the dataset.

    Attributes:
        name: of its files: a modality, or "joint".
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
    health = round.folder / "health.json"
    if health.is_file() and all(labels_path(round.folder, c.name).is_file() for c in clusterings):
        if not round.resumed:
            round.report(json.loads(health.read_text()))
        return
    if round.resumed:
        raise UserError(
            f"{round.folder} lacks labels of a round whose training has begun: restore the "
            "folder, or start under another name"
        )
    sample = _fit(round, clusterings, method)
    _label_all(round, clusterings, sample)
    if "validation" in round.sizes:
        for clustering, labels in _label_split(round, clusterings, "validation").items():
            _save_array(labels_path(round.folder, clustering, "validation"), labels)
    figures = _health(round, clusterings)
    _watch(round, clusterings, method, figures)
    _save_json(health, figures)
    round.report(figures)


@dataclass
class _Sample:
    """Features of the rows that centroids are fitted on, once for all labellings.

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
        rows = clustering.present(self.present) & chosen
        if len(clustering.sources) == 1 and rows.all():
            return self.pooled[clustering.sources[0]]
        parts = {name: torch.from_numpy(self.pooled[name][rows]) for name in clustering.sources}
        return clustering.features(parts).numpy()


def _fit(round: Round, clusterings: Sequence[Clustering], method: Method) -> _Sample | None:
    """Centroids of every labelling; returns the subsample where it is the whole dataset."""
    if all(_centroids_path(round.folder, c).is_file() for c in clusterings):
        return None
    size = round.sizes["train"]
    # One subsample for all labellings, the same whichever of them are done already: features
    # may differ in the last bit with the batch they are computed in.
    wanted = min(size, max(c.k for c in clusterings) * method.points_per_centroid)
    drawn = Permutation(size, round.seed)(np.arange(wanted))
    order = np.argsort(drawn)
    sample = _Sample.read(round, drawn[order])
    for c in clusterings:
        if not _centroids_path(round.folder, c).is_file():
            # Those with fewer clusters take the rows drawn first.
            _fit_one(round, c, sample.matrix(c, order < c.k * method.points_per_centroid), method)
    return sample if wanted == size else None


def _fit_one(round: Round, clustering: Clustering, matrix: np.ndarray, method: Method) -> None:
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


def _label_all(round: Round, clusterings: Sequence[Clustering], sample: _Sample | None) -> None:
    """Label the training set batch by batch, noting on disk how far it is labelled."""
    size = round.sizes["train"]
    todo = [c for c in clusterings if not labels_path(round.folder, c.name).is_file()]
    if not todo:
        return
    partial = {c.name: round.folder / f"{c.name}.labels.partial.npy" for c in todo}
    note = round.folder / "labelled.json"
    done = 0
    if note.is_file() and all(path.is_file() for path in partial.values()):
        done = int(json.loads(note.read_text())["rows"])
    arrays = {
        name: np.lib.format.open_memmap(
            path, mode="r+" if done else "w+", dtype=np.int32, shape=None if done else (size,)
        )
        for name, path in partial.items()
    }
    batches: Iterable[_Batch]
    if sample is not None:
        batches = sample.batches()
    else:
        stream = round.features(indices=range(done, size), title="features to label")
        batches = (_Batch(b.index, b.pooled, b.present) for b in stream)
    for number, (index, labels) in enumerate(_labels(round, todo, batches), start=1):
        for name, values in labels.items():
            arrays[name][index] = values
        done = int(index[-1]) + 1
        if number % _NOTE_EVERY == 0 and sample is None:
            for array in arrays.values():
                array.flush()
            _save_json(note, {"rows": done})
    for name, array in arrays.items():
        array.flush()
        partial[name].replace(labels_path(round.folder, name))
    note.unlink(missing_ok=True)


def _label_split(
    round: Round, clusterings: Sequence[Clustering], split: Split
) -> dict[str, np.ndarray]:
    """Labels of a small split: each sample's nearest centroid of the training set."""
    stream = round.features(split=split, title=f"labels of {split} clips")
    batches = (_Batch(b.index, b.pooled, b.present) for b in stream)
    out = {c.name: np.full(round.sizes[split], IGNORE, np.int32) for c in clusterings}
    for index, labels in _labels(round, clusterings, batches):
        for name, values in labels.items():
            out[name][index] = values
    return out


def _labels(
    round: Round, clusterings: Sequence[Clustering], batches: Iterable[_Batch]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Labels of each batch by labelling, `IGNORE` for samples that lack a source."""
    tools = {}
    for c in clusterings:
        centroids = np.load(_centroids_path(round.folder, c), allow_pickle=False)
        tools[c.name] = (
            Preprocessing.load(round.folder / f"{c.name}.preprocessing.npz"),
            torch.from_numpy(centroids).to(round.device),
        )
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


def _save_json(path: Path, value: Mapping[str, float]) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1)))
