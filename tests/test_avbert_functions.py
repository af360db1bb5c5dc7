"""What AVBert's pretraining is made of, against the formulas written as loops."""

import itertools
import math
import statistics
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmssl_avbert.masked import Compatibility, info_nce, masked_positions
from mmssl_avbert.negatives import Interval, drawn, scaled, weights, within
from mmssl_avbert.pairing import pair_loss, partners

INTERVALS: tuple[Interval, ...] = ("std", "quantile")

distances = st.lists(
    st.floats(0, 100, width=32) | st.sampled_from([0.0, 1.0, 7.5]), min_size=1, max_size=40
)
seeds = st.integers(0, 2**32 - 1)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# Masks


@given(seeds, st.integers(1, 5), st.integers(1, 40), st.floats(0.001, 1))
def test_masked_clips_are_distinct_and_as_many_in_each_sequence(
    seed: int, batch: int, length: int, rate: float
) -> None:
    positions = masked_positions(uniform(seed, batch, length), rate)
    number = positions.shape[1]
    assert 1 <= number <= length
    assert abs(number - rate * length) <= 0.5 or number == 1
    for row in positions.tolist():
        assert row == sorted(set(row))
        assert set(row) <= set(range(length))


def test_every_clip_is_masked_as_often() -> None:
    positions = masked_positions(uniform(0, 20_000, 10), 0.2)
    often = torch.bincount(positions.flatten(), minlength=10) / 20_000
    assert positions.shape == (20_000, 2)
    torch.testing.assert_close(often, torch.full((10,), 0.2), rtol=0, atol=0.01)


# InfoNCE


def test_scores_and_loss_are_equations_4_and_5() -> None:
    torch.manual_seed(0)
    score = Compatibility(6, 8, 5).double().requires_grad_(False)
    outputs, x = torch.randn(2, 3, 6), torch.randn(7, 6)
    # In float32, whatever comes in: the reference is in float64.
    found = score.float()(outputs.double(), x.double())
    assert found.dtype == torch.float32
    score = score.double()

    first, second = score.output[0], score.output[2]
    positive = torch.tensor([[0, 1, 2], [3, 3, 6]])
    negatives = torch.rand(2, 3, 7) < 0.6
    negatives.scatter_(2, positive[..., None], False)
    loss = info_nce(found, positive, negatives)
    for b, t in itertools.product(range(2), range(3)):
        o = outputs[b, t].double()
        hidden = [float(w @ o + c) for w, c in zip(first.weight, first.bias, strict=True)]
        hidden = [h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden]
        ffn = second.weight @ torch.tensor(hidden, dtype=torch.float64) + second.bias
        compatible = [math.exp(float(ffn @ (score.embedding.weight @ xj.double()))) for xj in x]
        right = compatible[positive[b, t]]
        wrong = sum(i for i, n in zip(compatible, negatives[b, t], strict=True) if n)
        assert float(found[b, t, 0]) == pytest.approx(math.log(compatible[0]), abs=1e-5)
        assert float(loss[b, t]) == pytest.approx(-math.log(right / (right + wrong)), abs=1e-5)


def test_without_negatives_there_is_nothing_to_learn() -> None:
    scores = torch.tensor([[3.0, -2.0], [1000.0, -1000.0]], requires_grad=True)
    loss = info_nce(scores, torch.tensor([1, 1]), torch.tensor([[False, False], [True, False]]))
    assert loss.tolist() == [0, 2000]
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0], [1, -1]]


def test_scores_are_float32_under_autocast() -> None:
    score = Compatibility(6, 8, 5)
    outputs, x = torch.randn(3, 6), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = score(outputs, x)
    assert torch.equal(found, score(outputs, x))
    assert score.embedding.bias is None
    assert [type(layer) for layer in score.output] == [nn.Linear, nn.GELU, nn.Linear]


# Negatives


def slow_weights(values: list[float], similar: bool, interval: Interval) -> list[float]:
    least, most = min(values), max(values)
    d = [(v - least) / (most - least) if most > least else 0.0 for v in values]
    if interval == "std":
        around, off = statistics.fmean(d), 1.96 * statistics.pstdev(d)
        low, high = around - off, around + off
    else:
        low, high = np.quantile(d, 0.025, method="lower"), np.quantile(d, 0.975, method="higher")
    inside = [low <= v <= high for v in d]
    weight = [(1 - v if similar else v) * i for v, i in zip(d, inside, strict=True)]
    return weight if any(weight) else [float(i) for i in inside]


@pytest.mark.parametrize("similar", [True, False])
@pytest.mark.parametrize("interval", INTERVALS)
def test_weights_are_those_of_the_formula(similar: bool, interval: Interval) -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 29, 119):
        values = np.exp(generator.normal(size=count))
        slots = generator.permutation(count + 4)[:count]  # the others are no candidates
        row, candidates = torch.full((1, count + 4), 1e6), torch.zeros(1, count + 4).bool()
        row = row.double()
        row[0, slots], candidates[0, slots] = torch.from_numpy(values), True
        found = weights(row, candidates, similar=similar, interval=interval)
        assert int((found > 0).sum()) > 0
        assert not found[~candidates].any()
        right = torch.tensor(slow_weights(values.tolist(), similar, interval)).double()
        torch.testing.assert_close(found[0, slots], right, rtol=1e-6, atol=1e-6)


def test_outliers_of_a_row_by_hand() -> None:
    row = torch.tensor([[10.0] * 20 + [11.0] * 20 + [0.0, 100.0]])
    everything = torch.ones_like(row).bool()
    inside = within(scaled(row, everything), everything, "std")
    assert inside[0].tolist() == [True] * 41 + [False]
    inside = within(scaled(row, everything), everything, "quantile")
    assert inside[0].tolist() == [True] * 40 + [False, False]
    # Uniform distances are all within 1.96 deviations; quantiles leave out what they can of 5 %.
    row = torch.linspace(1, 2, 100)[None]
    everything = torch.ones_like(row).bool()
    assert within(scaled(row, everything), everything, "std").all()
    assert int(within(scaled(row, everything), everything, "quantile").sum()) == 96


@pytest.mark.parametrize("similar", [True, False])
@pytest.mark.parametrize("interval", INTERVALS)
def test_rows_that_cannot_be_weighted(similar: bool, interval: Interval) -> None:
    yes, no = torch.tensor([[True, True, True, False]]), torch.zeros(1, 4).bool()
    same = weights(torch.tensor([[5.0, 5, 5, 9]]), yes, similar=similar, interval=interval)
    assert same.tolist() == [[1, 1, 1, 0]]
    none = weights(torch.rand(1, 4), no, similar=similar, interval=interval)
    assert none.tolist() == [[0, 0, 0, 0]]
    assert not drawn(none, torch.rand(1, 4), 3).any()
    # One is so much nearer that what is left has only one distance, and no weight by 1 - d̃.
    row = torch.tensor([[0.0] + [1.0] * 99])
    left = weights(row, torch.ones_like(row).bool(), similar=similar, interval=interval)
    assert left.tolist() == [[0.0] + [1.0] * 99]


@settings(deadline=None)
@given(distances, seeds, st.booleans(), st.sampled_from(INTERVALS), st.integers(1, 50))
def test_neither_positives_nor_outliers_are_drawn(
    values: list[float], seed: int, similar: bool, interval: Interval, number: int
) -> None:
    row = torch.tensor(values)[None]
    candidates = uniform(seed, 1, len(values)) < 0.8
    candidates[0, 0] = False  # the positive
    weight = weights(row, candidates, similar=similar, interval=interval)
    assert torch.isfinite(weight).all()
    assert ((weight >= 0) & (weight <= 1)).all()
    allowed = within(scaled(row, candidates), candidates, interval)
    chosen = drawn(weight, uniform(seed + 1, 1, len(values)), number)
    assert not (chosen & ~allowed).any()
    assert not (chosen & (weight == 0)).any()
    assert int(chosen.sum()) == min(number, int((weight > 0).sum()))
    assert bool(chosen.any()) == bool(candidates.any())


def test_draws_without_replacement_have_the_right_frequencies() -> None:
    weight = [0.5, 0.0, 0.2, 0.3]
    rows = 40_000
    chosen = drawn(torch.tensor(weight).expand(rows, 4), uniform(1, rows, 4), 2)
    found = Counter(tuple(row.nonzero().flatten().tolist()) for row in chosen)
    right: Counter[tuple[int, ...]] = Counter()
    for first, second in itertools.permutations((0, 2, 3), 2):
        chance = weight[first] * weight[second] / (1 - weight[first])
        right[tuple(sorted((first, second)))] += chance  # type: ignore[assignment]
    assert set(found) == set(right)
    for pair, chance in right.items():
        assert found[pair] / rows == pytest.approx(chance, abs=0.01)


def test_draws_with_the_least_and_the_largest_random_numbers() -> None:
    numbers = torch.tensor([[0.0, 0.0, 1 - 2**-24, 0.5]])
    weight = torch.tensor([[0.0, 1.0, 1e-30, 1.0]])
    assert drawn(weight, numbers, 3).tolist() == [[False, True, True, True]]
    assert drawn(torch.ones(1, 4), numbers, 1).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("similar", [True, False])
def test_draws_tilt_to_the_near_or_to_the_far(similar: bool) -> None:
    row = torch.linspace(1, 2, 40).expand(3000, 40)
    weight = weights(row, torch.ones_like(row).bool(), similar=similar)
    often = drawn(weight, uniform(2, 3000, 40), 5).float().mean(0)
    near, far = float(often[:10].mean()), float(often[-10:].mean())
    assert (near > 3 * far) if similar else (far > 3 * near)


# Pairs


@given(seeds, st.lists(st.booleans(), min_size=1, max_size=30))
def test_partners_are_a_derangement_of_whole_samples(seed: int, whole: list[bool]) -> None:
    found = partners(uniform(seed, len(whole)), torch.tensor(whole)).tolist()
    assert sorted(found) == list(range(len(whole)))
    several = sum(whole) >= 2
    for i, partner in enumerate(found):
        assert whole[partner] == whole[i]
        assert (partner != i) == (whole[i] and several)


@given(seeds, st.integers(2, 300))
def test_a_derangement_has_no_fixed_point(seed: int, size: int) -> None:
    found = partners(uniform(seed, size), torch.ones(size).bool())
    assert sorted(found.tolist()) == list(range(size))
    assert not (found == torch.arange(size)).any()
    # Random numbers that are all equal are in order, too.
    alike = partners(torch.zeros(size), torch.ones(size).bool())
    assert not (alike == torch.arange(size)).any()


def test_every_other_sample_is_a_partner_as_often() -> None:
    counts: Counter[int] = Counter()
    for seed in range(3000):
        counts[int(partners(uniform(seed, 4), torch.ones(4).bool())[0])] += 1
    assert set(counts) == {1, 2, 3}
    assert all(abs(count - 1000) < 100 for count in counts.values())


def test_pair_loss_is_equation_7() -> None:
    right, wrong = torch.tensor([0.3, -2.0]), torch.tensor([1.5, -0.1])
    for i, found in enumerate(pair_loss(right, wrong).tolist()):
        p, q = (1 / (1 + math.exp(-float(v[i]))) for v in (right, wrong))
        assert found == pytest.approx(-(math.log(p) + math.log(1 - q)) / 2, abs=1e-6)
