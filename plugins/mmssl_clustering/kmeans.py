"""k-means for more samples than fit in memory.

Centroids are fitted on a subsample that the caller draws (`fit`, by faiss); then every sample,
streamed in batches, is given its nearest centroid (`assign`). What happens to features before
either is a `Preprocessing`, fitted on the same subsample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.training.checkpoints import write_atomically

Mode = Literal["none", "l2", "standardize", "standardize_l2"]

# Distances that `assign` holds at a time: 64 MiB of float32.
_TILE = 1 << 24

# Rows that are turned into float64 at a time.
_CHUNK = 1 << 13


def fit(
    features: np.ndarray,
    k: int,
    *,
    seed: int,
    iterations: int = 25,
    spherical: bool = False,
    restarts: int = 1,
    split_empty: bool = True,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Lloyd's algorithm from randomly chosen rows.

    Args:
        features: ``[n, d]`` float32, all of which are used: subsample before.
        k: number of clusters, at most n.
        seed: choice of the first centroids; the same seed gives the same result on one machine.
        iterations: Lloyd's steps.
        spherical: cluster directions: rows are divided by their length, and so are centroids.
        restarts: how often to begin anew; the result with the smallest error is kept.
        split_empty: a cluster that runs empty takes half of a large one, as in DeepCluster and
            faiss; false: it keeps its centroid and stays empty, as in DeepCluster v2.
        device: where nearest centroids are searched; CUDA only if this build of faiss can.

    Returns:
        ``[k, d]`` float32.

    Raises:
        ValueError: fewer rows than clusters, or features that are not finite.
    """
    import faiss

    n, d = features.shape
    if not 1 <= k <= n:
        raise ValueError(f"cannot make {k} clusters of {n} samples: there must be 1 to {n}")
    _check_finite(features)
    features = np.ascontiguousarray(features, np.float32)
    if spherical:
        lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
        features = features / np.maximum(lengths, 1e-12)[:, None]

    index: faiss.Index = faiss.IndexFlatIP(d) if spherical else faiss.IndexFlatL2(d)
    device = torch.device(device)
    if device.type == "cuda" and faiss.get_num_gpus():
        resources = faiss.StandardGpuResources()  # must outlive the index
        index = faiss.index_cpu_to_gpu(resources, device.index or 0, index)

    seed %= 2**31 - 1
    if not split_empty:
        return _fit_unsplit(features, k, index, seed, iterations, spherical, restarts)
    clustering = faiss.Clustering(d, k)
    clustering.niter = iterations
    clustering.seed = seed
    clustering.spherical = spherical
    clustering.nredo = restarts
    clustering.min_points_per_centroid = 1  # how many points there are is the caller's choice:
    clustering.max_points_per_centroid = n  # neither warn of few nor subsample many
    clustering.train(features, index)
    return faiss.vector_float_to_array(clustering.centroids).reshape(k, d).copy()


def _fit_unsplit(
    features: np.ndarray,
    k: int,
    index: Any,
    seed: int,
    iterations: int,
    spherical: bool,
    restarts: int,
) -> np.ndarray:
    """`faiss.Clustering`, from the same rows, but for its splitting, which nothing turns off."""
    import faiss

    order = np.empty(len(features), np.int32)
    best, least = np.empty(0), np.inf
    for restart in range(restarts):
        # The seeds of faiss: without an empty cluster both ways come to the same centroids.
        start = seed + 1 + restart * 15_486_557
        faiss.rand_perm(faiss.swig_ptr(order), len(order), start)  # type: ignore[attr-defined]
        centroids, error = features[order[:k]], np.inf
        for _ in range(iterations):
            index.reset()
            index.add(centroids)
            distances, labels = index.search(features, 1)
            # Spherical k-means searches by similarity, and the larger is the better.
            error = distances.sum(dtype=np.float64) * (-1 if spherical else 1)
            centroids = _means(features, labels[:, 0], centroids)
            if spherical:
                lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
                centroids /= np.maximum(lengths, 1e-12)
        if restart == 0 or error < least:
            best, least = centroids, error
    return best


def _means(features: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """``[k, d]`` float32: the mean of each cluster's rows, the old centroid where it has none."""
    index = torch.from_numpy(labels)
    counts = torch.bincount(index, minlength=len(centroids)).numpy()
    sums = torch.zeros(centroids.shape, dtype=torch.float64)
    for part, rows in zip(index.split(_CHUNK), _chunks(features), strict=True):
        sums.index_add_(0, part, torch.from_numpy(rows))
    means = sums.numpy() / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, centroids).astype(np.float32)


@torch.no_grad()
def assign(features: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of every row, of equally near ones that with the lowest index.

    Works on any device, in tiles: beside its arguments it holds 64 MiB at most (or one row of
    distances). Centroids of equal length, as spherical k-means makes, are also those of largest
    cosine.

    Args:
        features: ``[b, d]``.
        centroids: ``[k, d]``, on the same device.

    Returns:
        Labels ``[b]`` int32, and squared Euclidean distances ``[b]`` float32.

    Raises:
        ValueError: features or centroids are not finite.
    """
    labels = torch.empty(len(features), dtype=torch.int32, device=features.device)
    distances = torch.empty(len(features), dtype=torch.float32, device=features.device)
    # Mixed precision around the encoders must not reach the distances.
    with torch.autocast(features.device.type, enabled=False):
        # ‖x‖² − 2xc + ‖c‖² cancels badly far from the origin, so move the origin among them.
        origin = centroids.float().mean(dim=0)
        centroids = centroids.float() - origin
        squares = centroids.square().sum(dim=1)
        rows = max(1, _TILE // len(centroids))
        for start in range(0, len(features), rows):
            x = features[start : start + rows].float() - origin
            # ‖x‖² is the same for all centroids and changes no minimum.
            nearest = torch.addmm(squares, x, centroids.T, alpha=-2).argmin(dim=1)
            labels[start : start + rows] = nearest
            distances[start : start + rows] = (x - centroids[nearest]).square().sum(dim=1)
    if not distances.isfinite().all():
        raise ValueError("features or centroids are not finite (NaN or inf)")
    return labels, distances


@dataclass(frozen=True)
class Preprocessing:
    """What is done to features before k-means: ``x -> (x - mean) * scale @ projection``, then ℓ2.

    Attributes:
        mean: ``[d]`` float32.
        scale: ``[d]`` float32, 0 for a dimension that does not vary.
        projection: ``[d, p]`` float32 of the whitening PCA, or None.
        unit: divide every vector by its length; a zero vector stays.
    """

    mean: Tensor
    scale: Tensor
    projection: Tensor | None
    unit: bool

    @classmethod
    def fit(
        cls, features: np.ndarray, mode: Mode = "none", pca: int | None = None
    ) -> "Preprocessing":
        """Measure a subsample.

        Args:
            features: ``[n, d]`` float32.
            mode: ``standardize``: subtract each dimension's mean and divide by its standard
                deviation; ``l2``: divide each vector by its length, as the last step.
            pca: project on so many principal components and divide each by its standard
                deviation, after standardising and before ℓ2 (DeepCluster: 256, then ``l2``).
                Components without variance become 0.

        Raises:
            ValueError: more components than dimensions, no rows, or features that are not finite.
        """
        n, d = features.shape
        if n < 1:
            raise ValueError("there are no features to measure")
        if pca is not None and not 1 <= pca <= d:
            raise ValueError(f"cannot project {d} dimensions on {pca}: there must be 1 to {d}")
        _check_finite(features)
        mean, scale, projection = np.zeros(d), np.ones(d), None
        if mode.startswith("standardize") or pca is not None:
            mean = sum(rows.sum(axis=0) for rows in _chunks(features)) / n
        if mode.startswith("standardize"):
            variance = sum(np.square(rows - mean).sum(axis=0) for rows in _chunks(features)) / n
            # A constant is often not exactly its own mean: what is left is rounding, not variance.
            varies = variance > np.square(1e-6 * mean)
            scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
        if pca is not None:
            scaled = ((rows - mean) * scale for rows in _chunks(features))
            values, vectors = np.linalg.eigh(sum(rows.T @ rows for rows in scaled) / n)
            values, vectors = values[::-1][:pca], vectors[:, ::-1][:, :pca]
            varies = values > 1e-9 * values[0]
            projection = vectors * np.where(varies, 1 / np.sqrt(np.where(varies, values, 1)), 0)
        return cls(
            mean=torch.tensor(mean, dtype=torch.float32),
            scale=torch.tensor(scale, dtype=torch.float32),
            projection=None if pca is None else torch.tensor(projection, dtype=torch.float32),
            unit=mode.endswith("l2"),
        )

    @torch.no_grad()
    def apply(self, features: Tensor) -> Tensor:
        """``[b, d]`` on any device to ``[b, d or pca]`` float32 there; never changes its input."""
        device = features.device
        if not (self.unit or self.mean.any() or (self.scale != 1).any()) and (
            self.projection is None
        ):
            return features.float()  # nothing to do, so no copy of a subsample either
        with torch.autocast(device.type, enabled=False):
            # In place, as a subsample's copies would be as large as all that is held otherwise.
            x = features.float() - self.mean.to(device)
            x *= self.scale.to(device)
            if self.projection is not None:
                x = x @ self.projection.to(device)
            if self.unit:
                x /= torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
            return x

    def save(self, path: Path) -> None:
        """Write an ``.npz``; after a kill it is there whole or not at all."""
        arrays = {
            "mean": self.mean.numpy(),
            "scale": self.scale.numpy(),
            "unit": np.array(self.unit),
        }
        if self.projection is not None:
            arrays["projection"] = self.projection.numpy()

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:  # a path would be given the ending .npz
                np.savez(file, allow_pickle=False, **arrays)

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> "Preprocessing":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(
                mean=torch.from_numpy(arrays["mean"]),
                scale=torch.from_numpy(arrays["scale"]),
                projection=(
                    torch.from_numpy(arrays["projection"]) if "projection" in arrays else None
                ),
                unit=bool(arrays["unit"]),
            )


def _chunks(features: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in float64, some at a time: twice the subsample's memory is too much."""
    for start in range(0, len(features), _CHUNK):
        yield features[start : start + _CHUNK].astype(np.float64)


def _check_finite(features: np.ndarray) -> None:
    # Minimum and maximum let NaN through and, unlike a mask, need no memory.
    if not (np.isfinite(features.min()) and np.isfinite(features.max())):
        bad = sum(int((~np.isfinite(rows)).any(axis=1).sum()) for rows in _chunks(features))
        raise ValueError(f"{bad} of {len(features)} feature vectors are not finite (NaN or inf)")
