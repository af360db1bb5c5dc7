"""Linear maps of low rank that several networks share in part (Lee et al., 2021, section 2.2).

A weight ``W [M, N]`` is decomposed into ``U Σ Vᵀ`` of rank O: ``U [M, O]`` and the bias may be
shared, ``Σ [O, O]``, a rotation, and ``V [N, O]`` are private. Between V and Σ the vector is put
on the unit sphere::

    y = U Σ (Vᵀx / |Vᵀx|) + b

All rotations of a network are computed together, once per forward pass, and handed down::

    turned = rotations(self.transformer)      # one batched computation
    y = self.transformer(x, turned)           # each map takes its own: self.query(x, turned)

Nothing is kept from one pass to the next, so nothing can be stale.
"""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmssl_avbert.orthogonal import Method, orthogonal


class LowRankLinear(nn.Module):
    """``y = U Σ l2norm(Vᵀx) + b``, with Σ orthogonal.

    Its parameters are ``down.weight`` (Vᵀ), ``skew`` (Σ's, of which the upper triangle counts),
    ``up.weight`` (U) and ``up.bias``. Rotations are trained at a tenth of the other parameters'
    learning rate: in a recipe by a group of the pattern ``*.skew``.

    Args:
        inputs: N.
        outputs: M.
        rank: O.
        method: how Σ is computed of its parameter.
        up: U and b of another map, to share them; by default own ones.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        *,
        method: Method = "pade",
        up: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.down = nn.Linear(inputs, rank, bias=False)
        self.skew = nn.Parameter(torch.zeros(rank, rank))
        self.up = nn.Linear(rank, outputs) if up is None else up
        if (self.up.in_features, self.up.out_features) != (rank, outputs):
            own = f"{self.up.out_features}x{self.up.in_features}"
            raise ValueError(f"U is {own}, not {outputs}x{rank}")
        self.reset_rotation()

    def reset_rotation(self) -> None:
        """Begin with turns in ⌊O/2⌋ planes of two coordinates each.

        Their parameters are ``tan(θ/2)``, θ uniform between 0 and π/2, as released.
        """
        with torch.no_grad():
            self.skew.zero_()
            above = self.skew.diagonal(1)[::2]
            above.copy_(torch.tan(torch.rand(above.shape) * (torch.pi / 4)))

    def forward(self, x: Tensor, turned: "Rotations | None" = None) -> Tensor:
        """Map vectors.

        Args:
            x: ``[..., N]``.
            turned: what `rotations` made of a network that this is a part of, in this same
                forward pass; by default Σ is computed here.

        Returns:
            ``[..., M]``.
        """
        rotation = orthogonal(self.skew, self.method) if turned is None else turned[self]
        z = self.down(x)
        # float16 has no number as small as what keeps a zero vector from a division by zero.
        unit = functional.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)
        mapped: Tensor = self.up(functional.linear(unit, rotation).to(z.dtype))
        return mapped


#: Σ of each low-rank map of a network, in one forward pass.
Rotations: TypeAlias = Mapping[LowRankLinear, Tensor]


def rotations(network: nn.Module) -> dict[LowRankLinear, Tensor]:
    """Σ of every low-rank map in a network; maps of the same kind are computed as one batch.

    Args:
        network: with any number of them, also none.
    """
    alike: dict[tuple[int, Method], list[LowRankLinear]] = {}
    for part in network.modules():
        if isinstance(part, LowRankLinear):
            alike.setdefault((len(part.skew), part.method), []).append(part)
    turned: dict[LowRankLinear, Tensor] = {}
    for (_, method), maps in alike.items():
        matrices = orthogonal(torch.stack([part.skew for part in maps]), method)
        turned.update(zip(maps, matrices.unbind(), strict=True))
    return turned
