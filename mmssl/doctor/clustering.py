"""faiss: k-means of points that lie in plain clusters, on the device that runs would use."""

from collections.abc import Iterator
from typing import Any

from mmssl.doctor import Doing, Finding

_CLUSTERS, _EACH, _DIM = 4, 100, 8


def look() -> Iterator[Finding | Doing]:
    """The build, the GPUs that it sees, and whether it clusters rightly."""
    yield Doing("import faiss")
    try:
        import faiss
    except Exception as error:  # whatever a library of C fails with
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        advice = "pip install faiss-gpu (Linux, x86-64) or faiss-cpu; deep clustering needs it"
        yield Finding("faiss", "problem", f"does not load: {reason}", advice)
        return
    yield Doing("asking faiss for GPUs")
    for_gpus = hasattr(faiss, "StandardGpuResources")
    gpus = faiss.get_num_gpus() if for_gpus else 0
    where = f"on {gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "on the CPU"
    yield Doing(f"k-means {where}")
    right = _clusters(faiss, bool(gpus))
    found = f"{faiss.__version__}, {'GPU' if for_gpus else 'CPU'} build, k-means {where}"
    if not right:
        advice = "reinstall it: pip install --force-reinstall faiss-gpu (or faiss-cpu)"
        yield Finding("faiss", "problem", f"{found}: wrong clusters", advice)
        return
    yield Finding("faiss", "ok", found)


def _clusters(faiss: Any, gpu: bool) -> bool:
    """Do points around a few distant centres come out as these centres' clusters?"""
    import numpy as np

    rng = np.random.default_rng(0)
    centres = 10 * np.eye(_CLUSTERS, _DIM, dtype=np.float32)
    points = np.repeat(centres, _EACH, axis=0)
    points += rng.normal(0, 0.1, points.shape).astype(np.float32)
    clustering = faiss.Kmeans(_DIM, _CLUSTERS, niter=10, nredo=5, gpu=gpu)
    clustering.train(points)
    _, found = clustering.index.search(points, 1)
    by_centre = found.reshape(_CLUSTERS, _EACH)
    return bool((by_centre == by_centre[:, :1]).all()) and len(set(by_centre[:, 0])) == _CLUSTERS
