"""VATT's losses: NCE and MIL-NCE with one denominator for both directions (Akbari et al., B.3).

Let v_i be the anchor's embedding of clip i and x_im, of M, what may belong to it: one sound, or
several narrations, of which any may be the right one. With s(v, x) = vᵀx / τ of vectors of
length 1::

    all_i = {s(v_i, x_jm)  for all j, m}  +  {s(v_j, x_im)  for all j, m}
    L_i   = log Σ exp(all_i) - log Σ_m exp(s(v_i, x_im))

Right pairs stand twice among all, once for each direction, and once in the second sum: L_i is
log 2 at best. M = 1 is NCE, M > 1 MIL-NCE (Miech et al., CVPR 2020). As symmetric loss each
direction has a denominator of its own::

    L_i = log Σ_jm exp(s(v_i, x_jm)) + log Σ_jm exp(s(v_j, x_im)) - 2 log Σ_m exp(s(v_i, x_im))
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# What is not there gets this logit, as released: exp of it is 0, and nothing is infinite.
_ABSENT = -1e9


@dataclass(frozen=True)
class Pairs:
    """Anchors, and what may belong to each of them.

    Attributes:
        anchors: ``[B, D]``, of length 1.
        anchored: ``[B]`` bool, which of them are there.
        candidates: ``[B, M, D]``, of length 1.
        valid: ``[B, M]`` bool, which of them are there.
    """

    anchors: Tensor
    anchored: Tensor
    candidates: Tensor
    valid: Tensor

    @property
    def counted(self) -> Tensor:
        """``[B]`` bool: which clips have an anchor and a candidate."""
        return self.anchored & self.valid.any(1)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1, in float32.

    One shorter than 0.001 stays as it is and passes its gradient on, not multiplied by a huge
    number: BatchNorm makes zeros, but for rounding, of the only row that it is given.
    """
    x = x.float()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 1e-3, length, 1.0)


def mil_nce(
    own: Pairs, every: Pairs, *, first: int = 0, temperature: float = 0.07, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """L_i of some clips of a batch.

    Anchors and candidates that are not there are nobody's negatives, nor positives.

    Args:
        own: ``B`` clips, whose loss is wanted.
        every: all ``P`` clips of the batch, these among them.
        first: where in the batch they begin.
        temperature: τ.
        symmetric: a denominator for each direction instead of one for both.

    Returns:
        ``[B]`` float32, L_i, 0 where a clip lacks its anchor or all candidates; and ``[B]`` bool,
        whether a candidate of the clip's own is strictly nearer to its anchor than all others'.
    """
    with torch.autocast(own.anchors.device.type, enabled=False):
        rows = torch.einsum("bd,pmd->bpm", own.anchors, every.candidates) / temperature
        columns = torch.einsum("pd,bmd->bpm", every.anchors, own.candidates) / temperature
        right = (own.anchors[:, None] * own.candidates).sum(-1) / temperature
    rows = rows.masked_fill(~every.valid, _ABSENT)
    columns = columns.masked_fill(~(every.anchored[:, None] & own.valid[:, None]), _ABSENT)
    right = right.masked_fill(~own.valid, _ABSENT)
    positive = right.logsumexp(1)
    by_row, by_column = rows.flatten(1), columns.flatten(1)
    if symmetric:
        loss = by_row.logsumexp(1) + by_column.logsumexp(1) - 2 * positive
    else:
        loss = torch.cat([by_row, by_column], 1).logsumexp(1) - positive
    with torch.no_grad():
        at = first + torch.arange(len(rows), device=rows.device)
        others = rows.scatter(1, at[:, None, None].expand(-1, 1, rows.shape[2]), _ABSENT)
        nearest = right.amax(1) > others.flatten(1).amax(1)
    return torch.where(own.counted, loss, 0.0), nearest & own.counted
