"""Masked embedding prediction: which clips are masked, and InfoNCE (Lee et al., 2021, section 2.1).

Let o_t be a Transformer's output for a masked clip whose embedding is x_t::

    L = -E_x Σ_t log(I(x_t, o_t) / (I(x_t, o_t) + Σ_{j in neg(t)} I(x_j, o_t)))     (4)
    I(x, o) = exp(FFN(o)ᵀ W x)                                                     (5)

There is neither a temperature nor a norm.
"""

import torch
from torch import Tensor, nn


def masked_positions(keys: Tensor, rate: float) -> Tensor:
    """Which clips of each sequence are masked: as many in each, and at least one.

    Args:
        keys: ``[B, T]``, random numbers; the clips of the smallest are masked.
        rate: the share of clips, from 0 to 1; the nearest whole number of them is taken.

    Returns:
        ``[B, n]`` int64, ascending.
    """
    length = keys.shape[1]
    number = min(length, max(1, round(rate * length)))
    return keys.argsort(dim=1, stable=True)[:, :number].sort(dim=1).values


class Compatibility(nn.Module):
    """``log I(x, o) = FFN(o)ᵀ W x``, in float32 also under autocast.

    Args:
        dim: D, of outputs and embeddings.
        hidden: dimensions between the two layers of FFN.
        projection: P, dimensions in which both are compared.
    """

    def __init__(self, dim: int, hidden: int, projection: int) -> None:
        super().__init__()
        self.output = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, projection)
        )
        self.embedding = nn.Linear(dim, projection, bias=False)

    def forward(self, outputs: Tensor, embeddings: Tensor) -> Tensor:
        """Every output with every embedding.

        Args:
            outputs: ``[..., D]``.
            embeddings: ``[C, D]``.

        Returns:
            ``[..., C]`` float32.
        """
        with torch.autocast(outputs.device.type, enabled=False):
            scores: Tensor = self.output(outputs.float()) @ self.embedding(embeddings.float()).T
            return scores


def info_nce(scores: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """The summands of equation 4.

    Args:
        scores: ``[..., C]``, log I of each candidate.
        positive: ``[...]`` int64, which candidate is the right one.
        negatives: ``[..., C]`` bool, which are the wrong ones; the positive is none of them.

    Returns:
        ``[...]``; 0, with no gradient, where there are no negatives.
    """
    right = positive[..., None]
    compared = negatives.scatter(-1, right, True)
    everything = scores.masked_fill(~compared, -torch.inf).logsumexp(-1)
    return everything - scores.gather(-1, right).squeeze(-1)


def nearest(scores: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    """Is the right candidate above all wrong ones? Arguments as for `info_nce`.

    Returns:
        ``[...]`` bool; a tie is a mistake.
    """
    best = scores.masked_fill(~negatives, -torch.inf).amax(-1)
    return scores.gather(-1, positive[..., None]).squeeze(-1) > best
