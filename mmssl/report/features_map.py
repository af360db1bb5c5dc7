"""Features of a bounded sample: which members are near a cluster's middle, and a map of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mmssl.data.draws import derive_seed

if TYPE_CHECKING:
    from mmssl.contracts import Dataset, Split
    from mmssl.data.loading import Unreadable
    from mmssl.training.features import FeatureStream
    from mmssl.training.progress import Progress

# Fewer samples have no neighbourhoods that t-SNE could keep.
_ENOUGH = 30


@dataclass(frozen=True)
class Found:
    """Features of some rows.

    Attributes:
        rows: ``[n]`` int64, ascending.
        pooled: by modality, ``[n, D]`` float32.
        present: by modality, ``[n]`` bool.
        unreadable: reasons by row.
    """

    rows: np.ndarray
    pooled: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    unreadable: Mapping[int, str]

    def of(self, labeling: str) -> tuple[np.ndarray, np.ndarray]:
        """What a labeling is made of: a modality's features, or all where it is of several.

        Returns:
            Rows ``[m]`` that have them, and ``[m, d]``: standardised dimension by dimension over
            these rows, then divided by their length, modality by modality.
        """
        names = [labeling] if labeling in self.pooled else list(self.pooled)
        use = np.logical_and.reduce([self.present[name] for name in names])
        parts = [_unit(_standardised(self.pooled[name][use])) for name in names]
        return self.rows[use], np.concatenate(parts, axis=1)


def features_of(
    stream: "FeatureStream", dataset: "Dataset", rows: np.ndarray, progress: "Progress"
) -> Found:
    """Stream the features of some rows of the training data.

    Args:
        stream: of the run; what it finds unreadable is noted with its reason.
        dataset: the training data.
        rows: ``[n]`` ascending.
        progress: who watches.
    """
    unreadable: dict[int, str] = {}

    def note(split: "Split", failure: "Unreadable") -> None:
        unreadable[failure.row] = failure.reason

    batches = []
    with progress.task("features for the report", len(rows)) as advance:
        for batch in replace(stream, unreadable=note)(dataset, rows):
            pooled = {name: values.cpu().numpy() for name, values in batch.pooled.items()}
            batches.append((batch.index, pooled, batch.present))
            advance(len(batch.index))
    if not batches:
        return Found(np.empty(0, np.int64), {}, {}, unreadable)
    names = list(batches[0][1])
    found = Found(
        rows=np.concatenate([index for index, _, _ in batches]),
        pooled={n: np.concatenate([pooled[n] for _, pooled, _ in batches]) for n in names},
        present={n: np.concatenate([present[n] for _, _, present in batches]) for n in names},
        unreadable=unreadable,
    )
    # What an encoder makes no number of has no place.
    finite = {n: np.isfinite(values).all(axis=1) for n, values in found.pooled.items()}
    present = {n: mask & finite[n] for n, mask in found.present.items()}
    return Found(found.rows, found.pooled, present, unreadable)


def nearest_first(rows: np.ndarray, features: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Members by their distance to the members' mean, the nearest first.

    The centroids of the run's files lie in the space of the encoders as they were when the round
    began. Encoders have learned since, so the middle is taken anew, where features are now.

    Args:
        rows: ``[m]`` ascending, of ``features``.
        features: ``[m, d]``.
        members: rows; those without features are left out.

    Returns:
        Rows; equally near ones in their order in the dataset.
    """
    there = np.isin(rows, members)
    own, ids = features[there], rows[there]
    if not len(ids):
        return ids
    distance = np.linalg.norm(own - own.mean(axis=0), axis=1)
    return ids[np.lexsort((ids, distance))]


def project(features: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Features on a plane: by t-SNE, or by PCA where samples are few.

    Args:
        features: ``[n, d]``, n at least 1.
        seed: the recipe's.

    Returns:
        ``[n, 2]`` between 0 and 1, and the method in words.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    few, dims = len(features), features.shape[1]
    state = derive_seed(seed, "report", "map") % 2**31
    varies = bool(features.std(axis=0).any())
    if few >= _ENOUGH and varies:
        perplexity = min(30.0, (few - 1) / 3)
        method = f"t-SNE of {few} samples, perplexity {perplexity:.0f}"
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=state)
        placed = tsne.fit_transform(_at_most(features, 50, state))
    else:
        why = "too few for t-SNE" if varies else "which all have the same features"
        method = f"PCA of {few} samples, {why}"
        parts = min(2, few, dims)
        placed = np.zeros((few, 2))
        if varies:
            placed[:, :parts] = PCA(parts, random_state=state).fit_transform(features)
    low, high = placed.min(axis=0), placed.max(axis=0)
    # One scale for both axes: distances are what the map is about.
    room = float((high - low).max()) or 1.0
    return 0.5 + (placed - (low + high) / 2) / room, method


def _at_most(features: np.ndarray, dims: int, state: int) -> np.ndarray:
    """The leading principal components: t-SNE's neighbours are the same, and found faster."""
    from sklearn.decomposition import PCA

    dims = min(dims, len(features), features.shape[1])
    return PCA(dims, random_state=state).fit_transform(features)


def _standardised(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    spread = values.std(axis=0) if len(values) else np.ones(values.shape[1])
    centred = values - values.mean(axis=0) if len(values) else values
    constant = spread <= 1e-6 * np.abs(values).max(initial=1e-30)
    return centred * np.where(constant, 0, 1 / np.where(constant, 1, spread))


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
