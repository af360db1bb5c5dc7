"""Correct pair prediction: right and wrong pairs, and their loss (Lee et al., 2021, eq. 7).

A classifier is told the video's and the sound's outputs ``s = [o_v; o_a]`` and says whether they
belong together. There are as many wrong pairs as right ones: sound is handed on around a random
circle of the samples that have both.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def partners(keys: Tensor, whole: Tensor) -> Tensor:
    """Whose sound each sample is wrongly paired with: a derangement.

    Args:
        keys: ``[B]``, random numbers; in their order samples form a circle.
        whole: ``[B]`` bool, which samples have both modalities.

    Returns:
        ``[B]`` int64, the next whole sample in the circle; never the sample itself if there are
        two whole ones. Others have themselves, as has a single one.
    """
    order = keys.masked_fill(~whole, torch.inf).argsort(stable=True)
    place = torch.arange(len(keys), device=keys.device)
    number = whole.sum()
    following = torch.where(place + 1 == number, 0, place + 1)
    following = torch.where(place < number, following, place)
    return torch.empty_like(order).scatter(0, order, order[following])


def pair_loss(right: Tensor, wrong: Tensor) -> Tensor:
    """Binary cross-entropy of a right and a wrong pair, their mean.

    Args:
        right: ``[B]``, logits of belonging together, of pairs that do.
        wrong: ``[B]``, of pairs that do not.

    Returns:
        ``[B]``.
    """
    logits = torch.stack([right, wrong])
    truth = torch.stack([torch.ones_like(right), torch.zeros_like(wrong)])
    return binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(0)
