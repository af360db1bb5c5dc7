"""Negatives by content: CANS, content-aware negative sampling (Lee et al., 2021, section 2.1).

Candidates are weighted by their distance d from the positive, which is scaled to d̃ in [0, 1]
over the candidates of that positive:

=================  ==========  ==========================
                   weight      draws more often
=================  ==========  ==========================
cans_similar       1 - d̃       what is near the positive
cans_dissimilar    d̃           what is far from it
=================  ==========  ==========================

What lies outside the 95 % interval of d̃ is not drawn: too near to be told from the positive, or
too easily. The paper does not say which interval, and its "the normalized distance as sampling
probability" would favour the dissimilar where it means to favour the similar.
"""

from typing import Literal

import torch
from torch import Tensor

Interval = Literal["std", "quantile"]

_DEVIATIONS = 1.96
_TAIL = 0.025
# Draws are multiples of 2**-24, with zero: the middle of each step has a logarithm.
_HALF_STEP = 2.0**-25


def scaled(distances: Tensor, candidates: Tensor) -> Tensor:
    """Distances of each row's candidates, so that the least is 0 and the largest 1.

    Args:
        distances: ``[..., C]``, finite.
        candidates: ``[..., C]`` bool.

    Returns:
        ``[..., C]``, 0 elsewhere, and everywhere in rows whose candidates are all equally far.
    """
    least = distances.masked_fill(~candidates, torch.inf).amin(-1, keepdim=True)
    most = distances.masked_fill(~candidates, -torch.inf).amax(-1, keepdim=True)
    spread = most - least  # -inf without candidates
    differ = candidates & (spread > 0)
    return torch.where(differ, (distances - least) / torch.where(spread > 0, spread, 1), 0)


def within(distances: Tensor, candidates: Tensor, interval: Interval) -> Tensor:
    """Which candidates lie within the 95 % interval of their row.

    Args:
        distances: ``[..., C]``.
        candidates: ``[..., C]`` bool.
        interval: "std", mean ± 1.96 standard deviations, or "quantile", from the quantile 0.025
            to that of 0.975, which are candidates themselves: the least around 95 % of them.
            Bounds belong to it, so it is never empty.

    Returns:
        ``[..., C]`` bool.
    """
    if interval == "quantile":
        known = distances.masked_fill(~candidates, torch.nan)
        low = known.nanquantile(_TAIL, -1, keepdim=True, interpolation="lower")
        high = known.nanquantile(1 - _TAIL, -1, keepdim=True, interpolation="higher")
        return candidates & (distances >= low) & (distances <= high)
    number = candidates.sum(-1, keepdim=True).clamp(min=1)
    mean = (distances * candidates).sum(-1, keepdim=True) / number
    away = distances - mean
    std = ((away.square() * candidates).sum(-1, keepdim=True) / number).sqrt()
    return candidates & (away.abs() <= _DEVIATIONS * std)


def weights(
    distances: Tensor, candidates: Tensor, *, similar: bool, interval: Interval = "std"
) -> Tensor:
    """By what candidates are drawn.

    Args:
        distances: ``[..., C]`` from the positive, finite, at least 0.
        candidates: ``[..., C]`` bool; the positive is none of them.
        similar: is the near favoured, or the far?
        interval: as in `within`.

    Returns:
        ``[..., C]`` from 0 to 1, 0 for what must not be drawn. Where none within the interval
        has a weight, such as candidates that are all equally far, all within it have the weight 1.
    """
    distance = scaled(distances, candidates)
    inside = within(distance, candidates, interval)
    weight = (1 - distance if similar else distance) * inside
    nothing = (weight == 0).all(-1, keepdim=True)
    return torch.where(nothing & inside, 1, weight)


def drawn(weight: Tensor, uniform: Tensor, number: int) -> Tensor:
    """Draw without replacement, one after the other in proportion to the weights that are left.

    The largest of log(weight) and Gumbel noise are such a draw (Efraimidis and Spirakis, 2006).

    Args:
        weight: ``[..., C]``, finite, at least 0.
        uniform: ``[..., C]`` random numbers in [0, 1).
        number: how many; all of positive weight where there are fewer.

    Returns:
        ``[..., C]`` bool.
    """
    noise = -(-(uniform.double() + _HALF_STEP).log()).log()
    keys = weight.double().log() + noise  # -inf for those without weight
    first = keys.argsort(dim=-1, descending=True, stable=True)[..., :number]
    return torch.zeros_like(weight, dtype=torch.bool).scatter(-1, first, True) & (weight > 0)
