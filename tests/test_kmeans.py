"""k-means against scikit-learn, brute force, and the formulas of its preprocessing."""

import os
from pathlib import Path

import numpy as np
import pytest
import sklearn.cluster
import sklearn.decomposition
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl_clustering import kmeans
from mmssl_clustering.kmeans import Preprocessing, assign, fit


def blobs(seed: int = 0, n: int = 600, d: int = 8, centres: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centres, d)) * 4
    return (means[rng.integers(centres, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


def inertia(features: np.ndarray, centroids: np.ndarray) -> float:
    return float(assign(torch.from_numpy(features), torch.from_numpy(centroids))[1].mean())


def test_inertia_is_near_sklearns() -> None:
    # One broad cloud: its local optima are alike, so any start must come to about the same.
    features = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
    theirs = sklearn.cluster.KMeans(20, n_init=3, random_state=0).fit(features).inertia_ / 2000
    for seed in range(3):
        assert inertia(features, fit(features, 20, seed=seed)) == pytest.approx(theirs, rel=0.03)
    # What the tolerance sets apart: the start, and one step from it.
    assert inertia(features, features[:20]) > 1.3 * theirs
    assert inertia(features, fit(features, 20, seed=0, iterations=1)) > 1.03 * theirs


def test_centroids_are_the_means_of_their_samples() -> None:
    features = blobs()
    centroids = fit(features, 6, seed=1, iterations=100)
    labels, _ = assign(torch.from_numpy(features), torch.from_numpy(centroids))
    for cluster in range(6):
        mean = features[labels.numpy() == cluster].mean(axis=0)
        np.testing.assert_allclose(centroids[cluster], mean, atol=1e-4)


def test_same_seed_same_centroids() -> None:
    features = blobs()
    first = fit(features, 10, seed=2**62 + 5)
    assert first.shape == (10, 8)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, fit(features, 10, seed=2**62 + 5))
    assert not np.array_equal(first, fit(features, 10, seed=2**62 + 6))


def test_spherical_ignores_length() -> None:
    features = blobs()
    centroids = fit(features, 6, seed=0, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    longer = features * np.random.default_rng(0).uniform(0.1, 10, (len(features), 1))
    again = fit(longer.astype(np.float32), 6, seed=0, spherical=True)
    np.testing.assert_allclose(centroids, again, atol=1e-4)
    # The nearest of unit centroids is that of largest cosine.
    labels, _ = assign(torch.from_numpy(features), torch.from_numpy(centroids))
    assert (labels.numpy() == (features @ centroids.T).argmax(axis=1)).all()


def test_all_samples_are_used_and_faiss_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    # faiss would take 256 of these for one centroid, and warn of less than 39 for each of ten.
    features = np.random.default_rng(0).normal(size=(2000, 2)).astype(np.float32)
    np.testing.assert_allclose(fit(features, 1, seed=0)[0], features.mean(axis=0), atol=1e-5)
    fit(features[:50], 10, seed=0)
    assert capfd.readouterr() == ("", "")


def test_duplicates_leave_no_empty_centroid_undefined() -> None:
    features = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    assert np.isfinite(fit(features, 8, seed=0)).all()


def test_as_many_clusters_as_samples() -> None:
    features = blobs(n=5)
    centroids = fit(features, 5, seed=0)
    assert sorted(centroids.tolist()) == sorted(features.tolist())


def test_what_cannot_be_clustered() -> None:
    features = blobs(n=10)
    with pytest.raises(ValueError, match="cannot make 11 clusters of 10 samples"):
        fit(features, 11, seed=0)
    for broken in (np.nan, np.inf):
        features[3, 2] = features[7, 1] = broken
        with pytest.raises(ValueError, match="2 of 10 feature vectors are not finite"):
            fit(features, 2, seed=0)
        with pytest.raises(ValueError, match="2 of 10 feature vectors are not finite"):
            Preprocessing.fit(features, "standardize")
        with pytest.raises(ValueError, match="not finite"):
            assign(torch.from_numpy(features), torch.zeros(2, 8))


def lloyd(x: np.ndarray, start: np.ndarray, steps: int, spherical: bool) -> tuple[np.ndarray, int]:
    """Centroids in float64, one by one, and how often a cluster was empty."""
    centroids, empty = start.astype(np.float64), 0
    for _ in range(steps):
        nearest = ((x[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        for cluster in range(len(centroids)):
            if (nearest == cluster).any():
                centroids[cluster] = x[nearest == cluster].mean(axis=0)
            else:
                empty += 1
        if spherical:
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids, empty


@pytest.mark.parametrize("spherical", [False, True])
def test_unsplit_is_lloyds_algorithm(spherical: bool) -> None:
    empty_steps = []
    for seed in range(12):
        # Twice as many clusters as blobs: some starting rows end up between better ones.
        features = blobs(seed, n=400, d=10, centres=10)
        if spherical:
            features /= np.linalg.norm(features, axis=1, keepdims=True)

        def run(steps: int, x: np.ndarray = features, seed: int = seed) -> np.ndarray:
            return fit(x, 20, seed=seed, iterations=steps, spherical=spherical, split_empty=False)

        expected, empty = lloyd(features.astype(np.float64), run(0), 12, spherical)
        np.testing.assert_allclose(run(12), expected, atol=1e-4)
        np.testing.assert_array_equal(run(12), run(12))
        empty_steps.append(empty)
    assert max(empty_steps) > 0
    assert min(empty_steps) == 0


@pytest.mark.parametrize("spherical", [False, True])
def test_unsplit_is_faiss_where_no_cluster_runs_empty(spherical: bool) -> None:
    # Four beginnings of a broad cloud end apart, so both must begin, and choose, alike.
    features = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)

    def run(split_empty: bool, restarts: int) -> np.ndarray:
        return fit(
            features,
            8,
            seed=2**62 + 5,
            spherical=spherical,
            restarts=restarts,
            split_empty=split_empty,
        )

    for restarts in (1, 4):
        np.testing.assert_allclose(run(False, restarts), run(True, restarts), atol=1e-4)
    assert not np.allclose(run(False, 1), run(False, 4), atol=1e-2)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    # Three points for eight clusters: of equal centroids the first takes all samples.
    points = np.eye(3, dtype=np.float32)
    centroids = fit(np.repeat(points, 10, axis=0), 8, seed=0, split_empty=False)
    assert {tuple(row) for row in centroids.tolist()} == {tuple(row) for row in points.tolist()}
    labels, distances = assign(torch.from_numpy(points), torch.from_numpy(centroids))
    assert labels.unique().numel() == 3
    assert distances.max() < 1e-12
    # Splitting moves the halves of a cluster apart.
    split = fit(np.repeat(points, 10, axis=0), 8, seed=0)
    assert len({tuple(row) for row in split.tolist()}) == 8


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_assign_is_brute_force(seed: int, b: int, k: int, d: int) -> None:
    # Small integers make the arithmetic exact, and ties frequent.
    rng = np.random.default_rng(seed)
    x, c = rng.integers(-2, 3, (b, d)), rng.integers(-2, 3, (k, d))
    c[0] -= c.sum(axis=0)  # the mean of the centroids is exact, too
    squared = ((x[:, None] - c) ** 2).sum(axis=2)
    labels, distances = assign(torch.tensor(x), torch.tensor(c))
    assert labels.dtype == torch.int32
    assert (labels.numpy() == squared.argmin(axis=1)).all()  # numpy takes the first minimum
    assert (distances.numpy() == squared.min(axis=1)).all()


def test_assign_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(101, 6)), dtype=torch.float32)
    c = torch.tensor(rng.normal(size=(7, 6)), dtype=torch.float32)
    whole = assign(x, c)
    for tile in (1, 7 * 10, 7 * 101):
        monkeypatch.setattr(kmeans, "_TILE", tile)
        labels, distances = assign(x, c)
        assert torch.equal(labels, whole[0])
        torch.testing.assert_close(distances, whole[1])


def test_assign_is_exact_far_from_the_origin_and_under_autocast() -> None:
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(500, 16)) + 3000, rng.normal(size=(40, 16)) + 3000
    x, c = x.astype(np.float32), c.astype(np.float32)
    exact = ((x[:, None].astype(np.float64) - c) ** 2).sum(axis=2)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            labels, distances = assign(torch.from_numpy(x), torch.from_numpy(c))
        assert (labels.numpy() == exact.argmin(axis=1)).all()
        np.testing.assert_allclose(distances.numpy(), exact.min(axis=1), rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpus_clusters() -> None:
    features = blobs(n=4000, d=32)
    centroids = fit(features, 6, seed=0, device="cuda")
    np.testing.assert_allclose(centroids, fit(features, 6, seed=0), atol=1e-3)
    unsplit = fit(features, 6, seed=0, split_empty=False, device="cuda")
    np.testing.assert_allclose(unsplit, fit(features, 6, seed=0, split_empty=False), atol=1e-3)
    x, c = torch.from_numpy(features), torch.from_numpy(centroids)
    assert torch.equal(assign(x.cuda(), c.cuda())[0].cpu(), assign(x, c)[0])


def test_standardize_is_numpys() -> None:
    features = blobs() * np.float32([1, 10, 100, 0.01, 1, 1, 1, 1]) + np.float32(50)
    standard = (features - features.mean(axis=0, dtype=np.float64)) / features.std(
        axis=0, dtype=np.float64
    )
    got = Preprocessing.fit(features, "standardize").apply(torch.from_numpy(features))
    # float32 keeps 50 + 0.01·x to about 1e-4 of a standard deviation.
    np.testing.assert_allclose(got.numpy(), standard, atol=1e-3)
    lengths = np.linalg.norm(standard, axis=1, keepdims=True)
    got = Preprocessing.fit(features, "standardize_l2").apply(torch.from_numpy(features))
    np.testing.assert_allclose(got.numpy(), standard / lengths, atol=1e-3)


def test_modes_without_statistics() -> None:
    features = blobs()
    x = torch.from_numpy(features)
    assert torch.equal(Preprocessing.fit(features).apply(x), x)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(Preprocessing.fit(features, "l2").apply(x), unit, atol=1e-6)
    assert Preprocessing.fit(features, "l2").apply(torch.zeros(1, 8)).eq(0).all()


@pytest.mark.parametrize("pca", [None, 4])
def test_dead_dimensions_become_zero(pca: int | None) -> None:
    features = blobs()
    features[:, 2] = 0
    features[:, 5] = 0.1  # its mean in floating point is not exactly 0.1
    preprocessing = Preprocessing.fit(features, "standardize", pca)
    got = preprocessing.apply(torch.from_numpy(features))
    assert got.isfinite().all()
    if pca is None:
        assert got[:, [2, 5]].eq(0).all()
        assert got[:, 0].std() > 0.9


def test_statistics_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    features = blobs()
    whole = Preprocessing.fit(features, "standardize", 4)
    monkeypatch.setattr(kmeans, "_CHUNK", 7)
    parts = Preprocessing.fit(features, "standardize", 4)
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.scale, parts.scale)
    assert whole.projection is not None
    assert parts.projection is not None
    torch.testing.assert_close(whole.projection.abs(), parts.projection.abs())


@pytest.mark.parametrize("mode", ["none", "l2", "standardize"])
def test_whitening_is_sklearns(mode: kmeans.Mode) -> None:
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(300, 10)) @ rng.normal(size=(10, 10)) + 3).astype(np.float32)
    n = len(features)
    source = features.astype(np.float64)
    if mode == "standardize":
        source = (source - source.mean(axis=0)) / source.std(axis=0)
    white = sklearn.decomposition.PCA(4, whiten=True).fit_transform(source)
    white *= np.sqrt(n / (n - 1))  # sklearn divides the variance by n - 1
    if mode == "l2":
        white /= np.linalg.norm(white, axis=1, keepdims=True)
    got = Preprocessing.fit(features, mode, 4).apply(torch.from_numpy(features)).numpy()
    signs = np.sign((got * white).sum(axis=0))
    np.testing.assert_allclose(got * signs, white, atol=1e-3)


def test_whitening_of_too_few_samples_stays_finite() -> None:
    features = blobs(n=5)  # rank 4 of 8 dimensions
    got = Preprocessing.fit(features, pca=8).apply(torch.from_numpy(features))
    np.testing.assert_allclose(got.std(dim=0, correction=0)[:4], 1, atol=1e-3)
    assert got[:, 4:].eq(0).all()


def test_what_cannot_be_projected() -> None:
    with pytest.raises(ValueError, match="cannot project 8 dimensions on 9"):
        Preprocessing.fit(blobs(), pca=9)
    with pytest.raises(ValueError, match="no features"):
        Preprocessing.fit(np.empty((0, 8), np.float32))


@pytest.mark.parametrize("pca", [None, 3])
def test_saved_and_loaded(tmp_path: Path, pca: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    features = blobs()
    x = torch.from_numpy(features)
    saved = Preprocessing.fit(features, "standardize_l2", pca)
    path = tmp_path / "video.preprocessing.npz"
    saved.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert torch.equal(Preprocessing.load(path).apply(x), saved.apply(x))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Preprocessing.fit(features).save(path)
    assert torch.equal(Preprocessing.load(path).apply(x), saved.apply(x))


def test_restarts_keep_the_best_of_several_beginnings() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 8)) * 10
    features = (centres[rng.integers(12, size=600)] + rng.normal(size=(600, 8))).astype(np.float32)

    def error(restarts: int) -> float:
        centroids = fit(features, 12, seed=6, restarts=restarts)
        return float(((features[:, None] - centroids[None]) ** 2).sum(2).min(1).sum())

    assert error(5) < 0.5 * error(1)
