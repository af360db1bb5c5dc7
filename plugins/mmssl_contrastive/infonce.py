"""InfoNCE between modalities (van den Oord et al., 2018), in both directions as in CLIP.

Of samples that have both modalities, with embeddings a_i and b_i of length 1::

    L = -1/2 mean_i [ log softmax_j(s aᵢᵀb_j)_i  +  log softmax_j(s bᵢᵀa_j)_i ]
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

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

_ABSENT = -1e9  # a logit whose exp is 0, and which is not infinite
_SHARPEST = math.log(100)  # of a scale that is learned, as in CLIP


class InfoNCE(Objective):
    """Each sample finds its other half among those of all ranks.

    A pair of modalities is compared on the samples that have both, as if there were no others;
    the losses of pairs are added. All modalities meet in the space ``joint``. Of several
    narrations the first stands for the text.

    Logs ``video-audio/loss`` and ``video-audio/accuracy``, the share of samples whose other half
    is nearest, mean of both directions; where it is learned also ``video-audio/temperature``.

    Args:
        pairs: of modalities; null for all.
        dim: dimensions of the space.
        depth: linear maps of each modality's head; 1 is a projection.
        hidden: dimensions between them; with one map there is nothing between.
        temperature: 1/s, or what it begins with.
        learn_temperature: one for each pair, never below 0.01.
    """

    def __init__(
        self,
        *,
        pairs: list[Pair] | None = None,
        dim: Size = 128,
        depth: Size = 2,
        hidden: Size = 512,
        temperature: Positive = 0.07,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__()
        self._pairs = pairs
        self._sizes = {"dim": dim, "depth": depth, "hidden": hidden}
        self._log_scale = -math.log(temperature)
        self._learned = learn_temperature
        self.heads = nn.ModuleDict()

    def build(self, encoders: Encoders) -> None:
        """A head for each modality, and a scale for each pair.

        Raises:
            UserError: the recipe lacks a modality of the pairs.
        """
        self.pairs = chosen(self._pairs, list(encoders.dims))
        self.heads = projections(encoders.dims, self.pairs, **self._sizes)
        if self._learned:
            self.log_scale = nn.Parameter(torch.full((len(self.pairs),), self._log_scale))

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
        """All modalities in one space."""
        return {SPACE: projected(self.heads, features)}

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """The pairs' losses, added; that of a pair is 0 where no sample has both."""
        device = batch.seeds.device
        z = unit(projected(self.heads, features))
        losses = Losses(torch.zeros((), device=device))
        for number, (one, other) in enumerate(self.pairs):
            scale = self._scale(number, device)
            there = both(batch, (one, other), device)
            count = distributed.total(there.sum())
            everywhere = distributed.gather(there.float()) > 0
            first = distributed.rank() * len(batch)
            each = torch.zeros(len(batch), device=device)
            right = torch.zeros(len(batch), device=device)
            for query, key in ((one, other), (other, one)):
                keys = distributed.gather(z[key])
                loss, nearest = info_nce(z[query], keys, everywhere, scale, first)
                each, right = each + loss / 2, right + nearest / 2
            term = distributed.global_mean(torch.where(there, each, 0.0).sum(), count)
            losses.total = losses.total + term
            name = f"{one}-{other}"
            losses.parts[f"{name}/loss"] = term.detach()
            losses.parts[f"{name}/accuracy"] = distributed.global_mean((right * there).sum(), count)
            losses.counts |= {f"{name}/loss": count, f"{name}/accuracy": count}
            if self._learned:
                losses.parts[f"{name}/temperature"] = (-scale).detach().exp()
        return losses

    def _scale(self, number: int, device: torch.device) -> Tensor:
        """log s of a pair."""
        if not self._learned:
            return torch.tensor(self._log_scale, device=device)
        if self.training:
            with torch.no_grad():  # not in the graph, where what is too large would learn no more
                self.log_scale.clamp_(max=_SHARPEST)
        return self.log_scale[number]


def info_nce(
    queries: Tensor, keys: Tensor, there: Tensor, log_scale: Tensor, first: int = 0
) -> tuple[Tensor, Tensor]:
    """One direction of the loss.

    Args:
        queries: ``[B, D]``, of length 1.
        keys: ``[P, D]``; that of query i is ``first + i``.
        there: ``[P]`` bool, which keys count.
        log_scale: scalar, log s.
        first: where this rank's queries begin.

    Returns:
        ``[B]``, the loss of each query, which means nothing if its own key is not there; and
        ``[B]`` bool, whether that key is strictly nearer than all others.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries @ keys.T * log_scale.exp()
    logits = logits.masked_fill(~there, _ABSENT)
    own = first + torch.arange(len(queries), device=queries.device)[:, None]
    positive = logits.gather(1, own).squeeze(1)
    nearest = positive > logits.detach().scatter(1, own, -torch.inf).amax(1)
    return logits.logsumexp(1) - positive, nearest
