"""Random numbers that depend on a sample's seed alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data.draws import Draws, derive_seed


def splitmix64(x: int) -> int:
    """The reference finaliser in Python's integers."""
    mask = (1 << 64) - 1
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@given(seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_numbers_equal_a_reference_in_python_integers(seeds: list[int]) -> None:
    gamma = 0x9E3779B97F4A7C15
    draws = Draws(torch.tensor(seeds), "video")
    got = [draws.uniform(3), draws.uniform(2)]
    for row, seed in enumerate(seeds):
        key = splitmix64(seed + derive_seed("draws", "video"))
        for call, count in enumerate((3, 2)):
            stream = splitmix64(key + (2 * call + 1) * gamma)
            expected = [(splitmix64(stream + (i + 1) * gamma) >> 40) / 2**24 for i in range(count)]
            assert got[call][row].tolist() == expected


def test_a_row_does_not_depend_on_its_batch() -> None:
    seeds = torch.tensor([5, 2**40, -3, 7])
    whole = Draws(seeds).normal(4, 2)
    for i in range(len(seeds)):
        assert torch.equal(Draws(seeds[i : i + 1]).normal(4, 2)[0], whole[i])


def test_streams_and_calls_are_apart() -> None:
    seeds = torch.arange(100)
    draws = Draws(seeds, "a")
    first, second = draws.uniform(50), draws.uniform(50)
    other = Draws(seeds, "b").uniform(50)
    for x, y in ((first, second), (first, other), (first[:-1], first[1:])):
        assert abs(np.corrcoef(x.flatten(), y.flatten())[0, 1]) < 0.05


def test_distributions() -> None:
    draws = Draws(torch.arange(1000))
    uniform = draws.uniform(1000, low=-2.0, high=4.0)
    assert uniform.min() >= -2
    assert uniform.max() < 4
    assert uniform.mean() == pytest.approx(1.0, abs=0.01)
    assert uniform.var() == pytest.approx(36 / 12, rel=0.01)
    normal = draws.normal(1000)
    assert normal.mean() == pytest.approx(0, abs=0.01)
    assert normal.std() == pytest.approx(1, rel=0.01)
    assert (normal.abs() < 1.96).float().mean() == pytest.approx(0.95, abs=0.002)
    assert normal.isfinite().all()
    assert draws.chance(0.3, 1000).float().mean() == pytest.approx(0.3, abs=0.005)


def test_derived_seeds_are_stable_and_tell_paths_apart() -> None:
    assert derive_seed(1, "round", 3) == derive_seed(1, "round", 3)
    paths = [(1, 23), (12, 3), ("1", 23), (1, "23"), (1, 23, ""), (123,)]
    assert len({derive_seed(*path) for path in paths}) == len(paths)
    assert all(0 <= derive_seed(i) < 2**63 for i in range(100))
