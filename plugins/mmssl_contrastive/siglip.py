"""SigLIP: whether two belong together is asked of each pair by itself (Zhai et al., ICCV 2023).

Of n samples that have both modalities, with embeddings a_i and b_j of length 1, z_ij = 1 for
i = j and -1 for all others::

    L = -1/n Σ_i Σ_j log sigmoid(z_ij (t aᵢᵀb_j + c))          t = exp(t')

There is no sum over a row that would have to know of all others.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from mmssl import Batch, Features, Losses, Objective
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl_contrastive.pairs import (
    SPACE,
    Pair,
    both,
    chosen,
    projected,
    projections,
    unit,
)

Size = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SigLIP(Objective):
    """A sigmoid for every pair of the batch of all ranks.

    A pair of modalities is compared on the samples that have both, as if there were no others;
    the losses of pairs are added. All modalities meet in the space ``joint``. Of several
    narrations the first stands for the text. Scale and bias are learned, one of each for a pair of
    modalities; weight decay is kept from them by a group of ``training.groups``.

    Logs ``video-audio/loss``, ``video-audio/accuracy``, the share of samples whose other half is
    nearer than all others, and ``video-audio/scale`` and ``video-audio/bias``.

    Args:
        pairs: of modalities; null for all.
        dim: dimensions of the space.
        depth: linear maps of each modality's head; 1 is a projection.
        hidden: dimensions between them; with one map there is nothing between.
        scale: t at the beginning.
        bias: c at the beginning; of the many pairs nearly all are wrong.
    """

    def __init__(
        self,
        *,
        pairs: list[Pair] | None = None,
        dim: Size = 512,
        depth: Size = 1,
        hidden: Size = 512,
        scale: Positive = 10.0,
        bias: Annotated[float, Field(allow_inf_nan=False)] = -10.0,
    ) -> None:
        super().__init__()
        self._pairs = pairs
        self._sizes = {"dim": dim, "depth": depth, "hidden": hidden}
        self._begin = math.log(scale), bias
        self.heads = nn.ModuleDict()

    def build(self, encoders: Encoders) -> None:
        """A head for each modality, and scale and bias for each pair.

        Raises:
            UserError: the recipe lacks a modality of the pairs.
        """
        self.pairs = chosen(self._pairs, list(encoders.dims))
        self.heads = projections(encoders.dims, self.pairs, **self._sizes)
        log_scale, bias = self._begin
        self.log_scale = nn.Parameter(torch.full((len(self.pairs),), log_scale))
        self.bias = nn.Parameter(torch.full((len(self.pairs),), bias))

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
        """All modalities in one space."""
        return {SPACE: projected(self.heads, features)}

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """The pairs' losses, added; that of a pair is 0 where no sample has both."""
        device = batch.seeds.device
        z = unit(projected(self.heads, features))
        losses = Losses(torch.zeros((), device=device))
        for number, (one, other) in enumerate(self.pairs):
            there = both(batch, (one, other), device)
            count = distributed.total(there.sum())
            log_scale, bias = self.log_scale[number], self.bias[number]
            each, nearest = sigmoid_loss(
                z[one],
                distributed.gather(z[other]),
                distributed.gather(there.float()) > 0,
                log_scale,
                bias,
                distributed.rank() * len(batch),
            )
            term = distributed.global_mean(torch.where(there, each, 0.0).sum(), count)
            losses.total = losses.total + term
            name = f"{one}-{other}"
            losses.parts[f"{name}/loss"] = term.detach()
            losses.parts[f"{name}/accuracy"] = distributed.global_mean(
                (nearest & there).sum(), count
            )
            losses.counts |= {f"{name}/loss": count, f"{name}/accuracy": count}
            losses.parts[f"{name}/scale"] = log_scale.detach().exp()
            losses.parts[f"{name}/bias"] = bias.detach().clone()
        return losses


def sigmoid_loss(
    one: Tensor, other: Tensor, there: Tensor, log_scale: Tensor, bias: Tensor, first: int = 0
) -> tuple[Tensor, Tensor]:
    """The sum over j of each row.

    Args:
        one: ``[B, D]``, of length 1.
        other: ``[P, D]``; that of row i is ``first + i``.
        there: ``[P]`` bool, which of them count.
        log_scale: scalar, t'.
        bias: scalar, c.
        first: where this rank's rows begin.

    Returns:
        ``[B]``, which means nothing for a row that is not there; and ``[B]`` bool, whether its
        own is strictly nearer than all others.
    """
    with torch.autocast(one.device.type, enabled=False):
        cosines = one @ other.T
    own = first + torch.arange(len(one), device=one.device)[:, None]
    logits = cosines * log_scale.exp() + bias
    sign = torch.ones_like(logits).scatter(1, own, -1.0)  # -z
    each = (softplus(sign * logits) * there).sum(1)
    others = cosines.detach().masked_fill(~there, -torch.inf).scatter(1, own, -torch.inf)
    return each, cosines.detach().gather(1, own).squeeze(1) > others.amax(1)
