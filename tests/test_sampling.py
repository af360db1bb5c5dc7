"""Which row stands at each position."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.contracts import IGNORE, Storage
from mmssl.data.sampling import Permutation, Sampler


@given(size=st.integers(1, 2000), seed=st.integers(-(2**70), 2**70))
@settings(max_examples=60, deadline=None)
def test_permutation_visits_every_element_once(size: int, seed: int) -> None:
    out = Permutation(size, seed)(np.arange(size))
    assert sorted(out.tolist()) == list(range(size))


def test_permutation_is_found_at_any_position_alone() -> None:
    permutation = Permutation(65_000_000, 3)
    positions = np.array([0, 1, 12_345_678, 64_999_999])
    together = permutation(positions)
    assert [int(permutation(np.array([p]))[0]) for p in positions] == together.tolist()
    assert ((together >= 0) & (together < 65_000_000)).all()


def test_permutations_of_two_seeds_differ_and_scatter() -> None:
    size = 10_000
    first, second = (Permutation(size, seed)(np.arange(size)) for seed in (0, 1))
    # A random permutation keeps one element in place on average, and neighbours lie far apart.
    assert (first == second).sum() < 10
    assert (first == np.arange(size)).sum() < 10
    assert np.abs(np.diff(first)).mean() == pytest.approx(size / 3, rel=0.05)
    assert abs(np.corrcoef(np.arange(size), first)[0, 1]) < 0.05


def test_empty_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Permutation(0, 0)


@given(
    size=st.integers(1, 50),
    passes=st.integers(1, 4),
    cut=st.integers(1, 17),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_sampler_walks_the_whole_set_in_every_pass(
    size: int, passes: int, cut: int, seed: int
) -> None:
    total = size * passes
    sampler = Sampler(size, seed)
    rows = np.concatenate(
        [sampler.rows(np.arange(i, min(i + cut, total))) for i in range(0, total, cut)]
    )
    for number in range(passes):
        assert sorted(rows[number * size : (number + 1) * size]) == list(range(size))
    assert rows.tolist() == Sampler(size, seed).rows(np.arange(total)).tolist()


def test_passes_have_different_orders() -> None:
    rows = Sampler(100, 0).rows(np.arange(200))
    assert rows[:100].tolist() != rows[100:].tolist()


def test_substitutes_differ_from_the_row_and_from_each_other() -> None:
    sampler = Sampler(10_000, 0)
    positions = np.arange(500)
    attempts = [sampler.rows(positions, attempt) for attempt in range(3)]
    for i in range(3):
        for j in range(i):
            assert (attempts[i] == attempts[j]).mean() < 0.02


def test_balanced_sampling_is_uniform_over_clusters_and_over_members() -> None:
    # Cluster 0 has 90 rows, cluster 3 has 9, cluster 7 one; 1 and 2 are empty; 5 rows have none.
    labels = np.array([0] * 90 + [3] * 9 + [7] + [IGNORE] * 5, np.int32)
    rows = Sampler(len(labels), 0, [labels]).rows(np.arange(60_000))
    counts = Counter(labels[rows].tolist())
    assert set(counts) == {0, 3, 7}
    for cluster in counts:
        assert counts[cluster] == pytest.approx(20_000, rel=0.05)
    members = Counter(rows[labels[rows] == 3].tolist())
    assert len(members) == 9
    assert min(members.values()) > 0.85 * 20_000 / 9


def test_two_labelings_take_turns() -> None:
    first = np.array([0] * 99 + [1], np.int32)
    second = np.array([1] + [0] * 99, np.int32)
    rows = Sampler(100, 0, [first, second]).rows(np.arange(20_000))
    assert first[rows[0::2]].mean() == pytest.approx(0.5, abs=0.02)
    assert second[rows[1::2]].mean() == pytest.approx(0.5, abs=0.02)


def test_balancing_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="every row is ignored"):
        Sampler(3, 0, [np.full(3, IGNORE, np.int32)])


def stored(sizes: list[int], buffer: int, seed: int = 3) -> Sampler:
    return Sampler(sum(sizes), seed, storage=Storage(np.array(sizes), buffer))


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum),
    buffer=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_a_pass_over_stored_rows_sees_each_once(sizes: list[int], buffer: int, seed: int) -> None:
    size = sum(sizes)
    sampler = stored(sizes, buffer, seed)
    for number in range(2):
        rows = sampler.rows(np.arange(number * size, (number + 1) * size))
        assert sorted(rows) == list(range(size))
        # One at a time, from the end: no history.
        backwards = [int(sampler.rows(np.array([p]))[0]) for p in range(size - 1, -1, -1)]
        assert backwards[::-1] == sampler.rows(np.arange(size)).tolist()


def test_a_buffer_touches_few_groups() -> None:
    sizes = [100] * 50
    rows = stored(sizes, buffer=300).rows(np.arange(5000)).reshape(-1, 50)
    groups = [len(np.unique(part // 100)) for part in rows]
    assert max(groups) == 3
    assert min(groups) > 1
    order = stored(sizes, buffer=1).rows(np.arange(5000)) // 100
    assert len(np.unique(order[::100])) == 50
    assert not np.array_equal(order, np.sort(order)), "groups are shuffled too"


def test_another_pass_and_another_seed_differ() -> None:
    sampler = stored([10] * 10, buffer=30)
    first, second = sampler.rows(np.arange(100)), sampler.rows(np.arange(100, 200))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, stored([10] * 10, buffer=30, seed=4).rows(np.arange(100)))


def test_balancing_stored_rows_keeps_to_the_buffer() -> None:
    labels = np.random.default_rng(0).choice(4, p=[0.7, 0.1, 0.1, 0.1], size=5000)
    labels[::7] = IGNORE
    storage = Storage(np.array([100] * 50), 500)
    sampler = Sampler(5000, 3, [labels], storage)
    rows = sampler.rows(np.arange(5000))
    assert not (labels[rows] == IGNORE).any()
    shares = np.bincount(labels[rows], minlength=4) / 5000
    assert np.allclose(shares, 0.25, atol=0.03)
    # The same shards at the same time as without classes.
    plain = stored([100] * 50, buffer=500).rows(np.arange(5000))
    for part in range(10):
        here = slice(500 * part, 500 * (part + 1))
        assert set(rows[here] // 100) == set(plain[here] // 100)
    backwards = [int(sampler.rows(np.array([p]))[0]) for p in range(999, 400, -1)]
    assert backwards[::-1] == rows[401:1000].tolist()
    other = sampler.rows(np.arange(500), attempt=1)
    assert not np.array_equal(other, rows[:500])
    assert set(other // 100) <= set(plain[:500] // 100)


def test_a_buffer_without_labels_is_no_reason_to_stop() -> None:
    labels = np.array([0, 1] * 50 + [IGNORE] * 100)
    sampler = Sampler(200, 0, [labels, labels[::-1].copy()], Storage(np.array([100, 100]), 100))
    rows = sampler.rows(np.arange(400))
    assert rows.min() >= 0
    assert rows.max() < 200
