"""NCE and MIL-NCE against sums that are written out, pair by pair."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmssl_vatt.losses import Pairs, mil_nce, unit


def made(size: int, m: int, dim: int = 5, seed: int = 0, **masks: Tensor) -> Pairs:
    """Random pairs in float64, everything there unless a mask says otherwise."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    x = torch.randn(size, m, dim, generator=generator, dtype=torch.float64)
    return Pairs(
        v / v.norm(dim=-1, keepdim=True),
        masks.get("anchored", torch.ones(size, dtype=torch.bool)),
        x / x.norm(dim=-1, keepdim=True),
        masks.get("valid", torch.ones(size, m, dtype=torch.bool)),
    )


def slow(pairs: Pairs, tau: float, symmetric: bool) -> tuple[list[Tensor], list[bool]]:
    """The formulas, pair by pair; what is not there is in no sum."""
    v, x = pairs.anchors, pairs.candidates
    anchored, valid = pairs.anchored.tolist(), pairs.valid.tolist()
    size, m = len(v), x.shape[1]

    def e(i: int, j: int, k: int) -> Tensor:
        return torch.exp(torch.dot(v[i], x[j, k]) / tau)

    losses, nearest = [], []
    for i in range(size):
        own = [e(i, i, k) for k in range(m) if valid[i][k]]
        if not anchored[i] or not own:
            losses.append(v.new_zeros(()))
            nearest.append(False)
            continue
        row = [e(i, j, k) for j in range(size) for k in range(m) if valid[j][k]]
        column = [e(j, i, k) for j in range(size) for k in range(m) if anchored[j] and valid[i][k]]
        positive = sum(own).log()
        if symmetric:
            losses.append(sum(row).log() + sum(column).log() - 2 * positive)
        else:
            losses.append((sum(row) + sum(column)).log() - positive)
        others = [
            e(i, j, k).item() for j in range(size) for k in range(m) if valid[j][k] and j != i
        ]
        nearest.append(max(own).item() > max(others, default=0.0))
    return losses, nearest


@st.composite
def masked(draw: st.DrawFn) -> Pairs:
    size, m = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 5]))
    bits = st.lists(st.booleans(), min_size=size * m, max_size=size * m)
    return made(
        size,
        m,
        seed=draw(st.integers(0, 1000)),
        anchored=torch.tensor(draw(bits)[:size]),
        valid=torch.tensor(draw(bits)).view(size, m),
    )


@settings(deadline=None)
@given(masked(), st.sampled_from([0.07, 0.5, 3.0]), st.booleans())
def test_losses_are_those_of_the_formulas(pairs: Pairs, tau: float, symmetric: bool) -> None:
    loss, nearest = mil_nce(pairs, pairs, temperature=tau, symmetric=symmetric)
    expected, right = slow(pairs, tau, symmetric)
    assert loss.tolist() == pytest.approx([float(x) for x in expected], abs=1e-9)
    assert nearest.tolist() == right


@settings(deadline=None, max_examples=25)
@given(masked(), st.booleans())
def test_any_part_of_a_batch_has_the_losses_of_the_whole(pairs: Pairs, symmetric: bool) -> None:
    whole, nearest = mil_nce(pairs, pairs, symmetric=symmetric)
    for first in range(len(whole)):
        rows = slice(first, first + 2)
        own = Pairs(
            pairs.anchors[rows], pairs.anchored[rows], pairs.candidates[rows], pairs.valid[rows]
        )
        part, near = mil_nce(own, pairs, first=first, symmetric=symmetric)
        torch.testing.assert_close(part, whole[rows])
        assert near.tolist() == nearest[rows].tolist()


def test_the_joint_denominator_has_the_right_pair_twice() -> None:
    one = made(1, 1)
    assert float(mil_nce(one, one)[0]) == pytest.approx(math.log(2))
    assert float(mil_nce(one, one, symmetric=True)[0]) == pytest.approx(0, abs=1e-12)
    # Four clips that are alike: 8 pairs in all, or 4 by 4.
    same = Pairs(torch.ones(4, 1), torch.ones(4).bool(), torch.ones(4, 1, 1), torch.ones(4, 1) > 0)
    assert mil_nce(same, same)[0].tolist() == pytest.approx([math.log(8)] * 4)
    assert mil_nce(same, same, symmetric=True)[0].tolist() == pytest.approx([math.log(16)] * 4)
    assert not mil_nce(same, same)[1].any(), "a tie finds nothing"


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_are_those_of_finite_differences(symmetric: bool) -> None:
    pairs = made(
        4,
        3,
        anchored=torch.tensor([True, True, False, True]),
        valid=torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]]).bool(),
    )

    def loss(v: Tensor, x: Tensor) -> Tensor:
        changed = Pairs(v, pairs.anchored, x, pairs.valid)
        return mil_nce(changed, changed, temperature=0.3, symmetric=symmetric)[0]

    v, x = pairs.anchors.requires_grad_(), pairs.candidates.requires_grad_()
    assert torch.autograd.gradcheck(loss, (v, x))
    loss(v, x).sum().backward()
    assert not v.grad[2].any(), "an anchor that is not there learns nothing"
    assert not x.grad[~pairs.valid].any()
    assert x.grad[2].any(), "but candidates without their anchor are negatives"


def test_where_all_text_is_missing_the_loss_is_zero_and_so_are_gradients() -> None:
    pairs = made(3, 5, valid=torch.zeros(3, 5, dtype=torch.bool))
    v = pairs.anchors.clone().requires_grad_()
    x = pairs.candidates.clone().requires_grad_()
    changed = Pairs(v, pairs.anchored, x, pairs.valid)
    loss, nearest = mil_nce(changed, changed)
    assert loss.tolist() == [0, 0, 0]
    assert not nearest.any()
    loss.sum().backward()
    assert not v.grad.any()
    assert not x.grad.any()


def test_with_one_valid_text_it_is_the_loss_of_that_text() -> None:
    valid = torch.zeros(4, 5, dtype=torch.bool)
    valid[1:, 2] = True
    several = made(4, 5, valid=valid)
    one = Pairs(several.anchors, several.anchored, several.candidates[:, 2:3], valid[:, 2:3])
    torch.testing.assert_close(mil_nce(several, several)[0], mil_nce(one, one)[0])


def test_directions_have_length_one_and_zeros_no_huge_gradient() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [2e-3, 0.0]], requires_grad=True)
    y = unit(x)
    torch.testing.assert_close(y, torch.tensor([[0.6, 0.8], [0, 0], [1, 0]]))
    y.sum().backward()
    assert x.grad[1].tolist() == [1, 1]
    assert unit(x.to(torch.bfloat16)).dtype == torch.float32
