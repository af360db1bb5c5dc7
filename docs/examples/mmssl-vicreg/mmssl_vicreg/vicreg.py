"""VICReg between modalities (Bardes, Ponce and LeCun, 2022).

Of n samples with two modalities, expanded to z_i and z'_i of d dimensions::

    s(Z, Z') = 1/n Σ_i |z_i - z'_i|² / d                        invariance
    v(Z)     = 1/d Σ_j max(0, 1 - sqrt(Var(z^j) + ε))           variance
    c(Z)     = 1/d Σ_{j≠k} C(Z)_jk²                             covariance
    L = λ s(Z, Z') + μ (v(Z) + v(Z')) + ν (c(Z) + c(Z'))

Var and C divide by n - 1. The paper's formula of s has no d, its pseudocode has; λ is meant so.
"""

from itertools import combinations
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl import Backbone, Batch, Features, Losses, Objective, UserError
from mmssl.training import distributed
from mmssl.training.encoders import Encoders

Size = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: The space in which all modalities meet.
SPACE = "joint"


class VICReg(Objective):
    """Modalities of a sample are brought together, while each keeps its spread.

    There are no negatives: what keeps embeddings apart is that each dimension varies over the
    batch, and that dimensions do not vary together. A pair is compared on the samples of the batch
    that have both modalities, of all ranks; where fewer than two have, it adds nothing. The losses
    of pairs are added.

    Logs ``video-audio/invariance``, ``video-audio/variance`` and ``video-audio/covariance``, before
    they are weighted. Expanded features are in the space ``joint``.

    Args:
        pairs: of modalities; null for all.
        dim: dimensions d of the expanded features; 8192 in the paper.
        hidden: dimensions of the expander's two layers before; 8192 in the paper.
        invariance: weight λ.
        variance: weight μ.
        covariance: weight ν.
        epsilon: ε, below the root of the variance.
    """

    def __init__(
        self,
        *,
        pairs: list[tuple[str, str]] | None = None,
        dim: Size = 8192,
        hidden: Size = 8192,
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
        epsilon: Annotated[float, Field(gt=0)] = 1e-4,
    ) -> None:
        super().__init__()
        self._pairs = pairs
        self._dim = dim
        self._hidden = hidden
        self._weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        self._epsilon = epsilon

    def build(self, encoders: Encoders) -> None:
        """An expander for each modality of the pairs.

        Raises:
            UserError: a pair is none of the recipe's modalities.
        """
        dims = encoders.dims
        pairs = list(combinations(dims, 2)) if self._pairs is None else self._pairs
        if not pairs:
            raise UserError(f"objective: vicreg compares modalities; there is only {list(dims)}")
        for one, other in pairs:
            if one == other or one not in dims or other not in dims:
                raise UserError(
                    f"objective.pairs: [{one}, {other}] are not two of {', '.join(dims)}"
                )
        if len({frozenset(pair) for pair in pairs}) < len(pairs):
            raise UserError("objective.pairs: the same two modalities stand there twice")
        self.pairs = pairs
        names = [name for name in dims if any(name in pair for pair in pairs)]
        # Encoders, since they keep absent rows away from batch statistics, on all ranks.
        self.expanders = Encoders(
            {name: Expander(dims[name], self._hidden, self._dim) for name in names}, names
        )

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
        """All modalities in one space."""
        expanders = self.expanders.backbones.items()
        return {SPACE: {n: e(features[n].pooled).pooled for n, e in expanders if n in features}}

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """The pairs' losses, added.

        Every rank computes the loss of the whole batch from the rows of all, so that the mean over
        ranks is that loss, and its gradients are those of one process.
        """
        device = batch.seeds.device
        names = self.expanders.modalities
        pooled = {name: features[name].pooled for name in names}
        expanded = self.expanders(pooled, {name: batch.present[name] for name in names})
        rows = {name: distributed.gather(expanded[name].pooled.float()) for name in names}
        there = {n: distributed.gather(batch.present[n].to(device).float()) for n in names}
        losses = Losses(torch.zeros((), device=device))
        for one, other in self.pairs:
            counted = there[one] * there[other]
            with torch.autocast(device.type, enabled=False):
                terms = vicreg(rows[one], rows[other], counted, self._epsilon)
            for name, term in terms.items():
                losses.total = losses.total + self._weights[name] * term
                losses.parts[f"{one}-{other}/{name}"] = term.detach()
                losses.counts[f"{one}-{other}/{name}"] = counted.sum()
        return losses


def vicreg(a: Tensor, b: Tensor, counted: Tensor, epsilon: float) -> dict[str, Tensor]:
    """The three terms of a pair; all are 0 where fewer than two rows count.

    Args:
        a: ``[P, d]``, expanded features of one modality.
        b: ``[P, d]``, of the other.
        counted: ``[P]``, 1 for rows that have both, 0 for the others.
        epsilon: ε.
    """
    count, weight = counted.sum(), counted[:, None]
    enough = (count > 1).float()
    invariance = (weight * (a - b).square()).sum() / count.clamp(min=1) / a.shape[1]
    variance = covariance = torch.zeros_like(invariance)
    for z in (a, b):
        centred = weight * (z - (weight * z).sum(0) / count.clamp(min=1))
        matrix = centred.T @ centred / (count - 1).clamp(min=1)
        spread = (matrix.diagonal() + epsilon).sqrt()
        variance = variance + (1 - spread).relu().mean()
        together = matrix.square().sum() - matrix.diagonal().square().sum()
        covariance = covariance + together / z.shape[1]
    terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
    return {name: enough * term for name, term in terms.items()}


class Expander(Backbone):
    """Linear, BatchNorm, ReLU, twice, and a linear map."""

    modalities = "any"

    def __init__(self, inputs: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, dim),
        )

    def forward(self, x: Tensor) -> Features:
        """``[B, inputs]`` to ``[B, dim]``, pooled."""
        return Features(self.layers(x))
