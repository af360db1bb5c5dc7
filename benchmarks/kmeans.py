"""Clustering of features streamed from disk, beside scikit-learn and beside faiss in memory.

Each method makes centroids and a label for every sample of one ``[samples, dim]`` float32 file:

* ``mmssl``: `mmssl_clustering.relabel`, as between rounds of training, from batches that are read
  one after another as an encoder would make them;
* ``minibatch``: `sklearn.cluster.MiniBatchKMeans` on the memory-mapped file, with batches of 4096
  and otherwise its defaults, so it may stop early (pages of the map that it has read count as
  resident memory, though the system may take them back);
* ``faiss``: `faiss.Kmeans` on the whole matrix in memory, without subsampling.

Each runs in a process of its own, which reports the time from the closed file to the last label,
its peak resident memory and, measured after both, the mean squared distance of a sample to its
nearest centroid. Imports count for memory, where they have a column too, not for time. Features are
drawn from 4096 Gaussians and kept in the cache folder (`$MMSSL_CACHE` or `~/.cache/mmssl`; 2 GB for
a million of 512)::

    python benchmarks/kmeans.py --samples 200000 1000000 --k 1024 --dim 512
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Memory is measured, so whatever is large is imported by the method that needs it.
import numpy as np

if TYPE_CHECKING:
    from mmssl_clustering.relabel import Method

GAUSSIANS = 4096
ROWS = 1024  # read at a time
SEED = 0


@dataclass(frozen=True)
class Task:
    """What is clustered, and how."""

    path: Path
    samples: int
    dim: int
    k: int
    iterations: int
    points_per_centroid: int


@dataclass(frozen=True)
class Result:
    """What one method came to: memory in MiB, ``inertia`` per sample."""

    seconds: float
    peak: float
    imports: float
    inertia: float


def write_features(samples: int, dim: int) -> Path:
    """The file of features, which appears under its name when complete."""
    from mmssl.data.cache import cache_folder

    path = cache_folder() / "benchmark-kmeans" / f"{samples}x{dim}.npy"
    if path.is_file():
        return path
    print(f"writing {path}", file=sys.stderr)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    rng = np.random.default_rng(SEED)
    means = rng.standard_normal((GAUSSIANS, dim), np.float32)
    with open(part, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (samples, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, samples, ROWS):
            rows = min(ROWS, samples - start)
            noise = rng.standard_normal((rows, dim), np.float32)
            file.write((means[rng.integers(GAUSSIANS, size=rows)] + noise).tobytes())
        os.fsync(file.fileno())
    part.replace(path)
    return path


def read_rows(task: Task, start: int) -> np.ndarray:
    """Up to `ROWS` rows by a plain read: pages of a memory map would count as resident."""
    row_bytes = 4 * task.dim
    header = task.path.stat().st_size - task.samples * row_bytes
    count = min(ROWS, task.samples - start) * task.dim
    values = np.fromfile(task.path, "<f4", count, offset=header + start * row_bytes)
    return values.reshape(-1, task.dim)


def cluster_mmssl(task: Task) -> Callable[[], np.ndarray]:
    """Relabelling of a round, one modality."""
    import faiss  # noqa: F401 - relabelling imports it when it is needed: not in the time of one
    import torch

    from mmssl.contracts import Split
    from mmssl.training.features import Streamed
    from mmssl_clustering.relabel import Clustering, relabel

    class FileRound:
        """A first round of training whose encoder is a file."""

        number = total = 1
        resumed = False
        previous = None
        seed = SEED
        device = torch.device("cpu")

        def __init__(self, folder: Path) -> None:
            self.folder = folder
            self.sizes: dict[Split, int] = {"train": task.samples}

        def features(
            self,
            *,
            split: Split = "train",
            indices: np.ndarray | range | None = None,
            title: str = "features",
        ) -> Iterator[Streamed]:
            wanted = range(task.samples) if indices is None else indices
            done = 0
            for start in range(0, task.samples, ROWS):
                stop = done + int(np.searchsorted(wanted[done : done + ROWS], start + ROWS))
                index = np.asarray(wanted[done:stop], np.int64)
                done = stop
                if len(index):
                    pooled = {"video": torch.from_numpy(read_rows(task, start)[index - start])}
                    present = {"video": np.ones(len(index), bool)}
                    yield Streamed(index, pooled, present, np.zeros(len(index), np.int64))

        def truth(self, split: Split = "train") -> None:
            return None

        def say(self, text: str) -> None:
            print(text, file=sys.stderr)

        def report(self, metrics: object) -> None:
            pass

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            relabel(FileRound(folder), [Clustering("video", ("video",), task.k)], method(task))
            labels = np.load(folder / "video.labels.npy", mmap_mode="r")
            assert labels.shape == (task.samples,)
            return np.load(folder / "video.centroids.npy")

    return run


def method(task: Task) -> "Method":
    """Plain k-means, as the peers do it."""
    from mmssl_clustering.relabel import Method

    return Method(
        normalize="none",
        pca=None,
        iterations=task.iterations,
        spherical=False,
        restarts=1,
        split_empty=True,
        points_per_centroid=task.points_per_centroid,
        on_collapse="warn",
        collapse_below=0.0,
    )


def cluster_minibatch(task: Task) -> Callable[[], np.ndarray]:
    """scikit-learn's, which reads what it draws from the memory map and then labels all."""
    from sklearn.cluster import MiniBatchKMeans

    def run() -> np.ndarray:
        features = np.load(task.path, mmap_mode="r")
        model = MiniBatchKMeans(
            task.k, batch_size=4096, max_iter=task.iterations, random_state=SEED
        ).fit(features)
        assert model.labels_.shape == (task.samples,)
        return model.cluster_centers_

    return run


def cluster_faiss(task: Task) -> Callable[[], np.ndarray]:
    """faiss on everything at once."""
    import faiss

    def run() -> np.ndarray:
        features = np.load(task.path)
        kmeans = faiss.Kmeans(
            task.dim,
            task.k,
            niter=task.iterations,
            seed=SEED,
            min_points_per_centroid=1,
            max_points_per_centroid=task.samples,
        )
        kmeans.train(features)
        _, labels = kmeans.index.search(features, 1)
        assert labels.shape == (task.samples, 1)
        assert kmeans.centroids is not None
        return kmeans.centroids

    return run


METHODS = {"mmssl": cluster_mmssl, "minibatch": cluster_minibatch, "faiss": cluster_faiss}


def measure(name: str, task: Task) -> Result:
    """One method, in the process that it has for itself."""
    run = METHODS[name](task)
    with open(task.path, "rb") as file:  # no method finds in memory what another has read
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    imports = peak_memory()
    start = time.perf_counter()
    centroids = run()
    seconds = time.perf_counter() - start
    peak = peak_memory()  # before the inertia is measured
    return Result(seconds, peak, imports, inertia(task, centroids))


def peak_memory() -> float:
    """The most MiB that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def inertia(task: Task, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid, over all samples."""
    import faiss

    index = faiss.IndexFlatL2(task.dim)
    index.add(np.ascontiguousarray(centroids, np.float32))
    total = 0.0
    for start in range(0, task.samples, ROWS):
        distances, _ = index.search(read_rows(task, start), 1)
        total += float(distances.sum(dtype=np.float64))
    return total / task.samples


def alone(function: Callable, *arguments: object) -> object:
    """Call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--points-per-centroid", type=int, default=256, help="mmssl's subsample")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options = parser.parse_args()

    columns = f"{'method':10} {'samples':>9} {'seconds':>9} {'peak MiB':>9} {'imports':>8}"
    print(columns + f" {'inertia':>9}   {'mmssl / it: s':>13} {'MiB':>6} {'inertia':>8}")
    for samples in options.samples:
        # A process starts with its parent's peak, so this one stays small.
        path = alone(write_features, samples, options.dim)
        assert isinstance(path, Path)
        sizes = (options.dim, options.k, options.iterations, options.points_per_centroid)
        task = Task(path, samples, *sizes)
        ours: Result | None = None
        for name in (name for name in METHODS if name in options.methods):
            result = alone(measure, name, task)
            assert isinstance(result, Result)
            line = f"{name:10} {samples:9} {result.seconds:9.1f} {result.peak:9.0f}"
            line += f" {result.imports:8.0f} {result.inertia:9.3f}"
            if name == "mmssl":
                ours = result
            elif ours:
                line += f"   {ours.seconds / result.seconds:13.2f} {ours.peak / result.peak:6.2f}"
                line += f" {ours.inertia / result.inertia:8.4f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
