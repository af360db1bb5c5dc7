"""Transformers with post-norm layers, and the ways in which several of them share parameters.

====================  ============================  ==========================  ==============
sharing               a layer's parameters          across layers               the three of
                      across Transformers           of one Transformer          AVBert have
====================  ============================  ==========================  ==============
``none``              their own                     their own                   127 581 696
``layers``            their own                     shared                      21 263 616
``all``               shared                        shared                      7 087 872
``part``              U, biases, norms shared,      shared                      3 843 840
                      Σ and V their own
``part_attention``    the same in attention, the    shared                      15 942 912
                      feed-forward maps their own
====================  ============================  ==========================  ==============

Counts are for 6 layers of 768 dimensions, 3072 hidden ones, rank 128 (Lee et al., 2021, table 1c,
and figure 2). The paper prints 128M, 21M, 7M and 4M.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from mmssl_avbert.low_rank import LowRankLinear, Rotations
from mmssl_avbert.orthogonal import Method

Sharing = Literal["none", "layers", "all", "part", "part_attention"]

# As released; the norms are computed in float32 also under autocast.
_NORM_EPS = 1e-12


class Layer(nn.Module):
    """Self-attention and a feed-forward network, each as ``LayerNorm(x + sublayer(x))``.

    Args:
        dim: D.
        heads: of the attention; they divide D.
        hidden: E, dimensions between the two feed-forward maps.
        dropout: probability, of attention weights and of the attention's output.
        rank: O of low-rank maps; None for dense ones.
        dense_feed_forward: low-rank maps in the attention only.
        method: how rotations are computed.
        like: a low-rank layer to share U, biases and norms with.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        rank: int | None = None,
        dense_feed_forward: bool = False,
        method: Method = "pade",
        like: "Layer | None" = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} dimensions")
        self.heads = heads
        self.dropout = dropout

        def linear(name: str, inputs: int, outputs: int, dense: bool = False) -> nn.Module:
            if rank is None or dense:
                return nn.Linear(inputs, outputs)
            up = None if like is None else getattr(like, name).up
            return LowRankLinear(inputs, outputs, rank, method=method, up=up)

        # W_q, W_k, W_v, W_b, W_c and W_d of the paper.
        self.query = linear("query", dim, dim)
        self.key = linear("key", dim, dim)
        self.value = linear("value", dim, dim)
        self.merge = linear("merge", dim, dim)
        self.widen = linear("widen", dim, hidden, dense_feed_forward)
        self.narrow = linear("narrow", hidden, dim, dense_feed_forward)
        if like is None:
            self.attention_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
            self.feed_forward_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        else:
            self.attention_norm = like.attention_norm
            self.feed_forward_norm = like.feed_forward_norm

    def forward(self, x: Tensor, attended: Tensor, turned: Rotations) -> Tensor:
        """One layer.

        Args:
            x: ``[B, N, D]``.
            attended: ``[B, N]`` bool, the tokens that others may look at; one at least in a row.
            turned: `mmssl_avbert.low_rank.rotations` of the network that this is a part of.

        Returns:
            ``[B, N, D]``.
        """

        def apply(linear: nn.Module, x: Tensor) -> Tensor:
            y: Tensor = linear(x, turned) if isinstance(linear, LowRankLinear) else linear(x)
            return y

        def by_head(y: Tensor) -> Tensor:
            return y.unflatten(2, (self.heads, -1)).transpose(1, 2)

        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            by_head(apply(self.query, x)),
            by_head(apply(self.key, x)),
            by_head(apply(self.value, x)),
            attn_mask=attended[:, None, None],
            dropout_p=dropout,
        )
        mixed = apply(self.merge, mixed.transpose(1, 2).flatten(2))
        x = self.attention_norm(x + functional.dropout(mixed, dropout))
        wide = functional.gelu(apply(self.widen, x))
        y: Tensor = self.feed_forward_norm(x + apply(self.narrow, wide))
        return y


class Transformer(nn.Module):
    """Layers, one after the other; a single one is repeated where layers share their parameters.

    Args:
        layers: as many as `depth`, or one.
        depth: L.
    """

    def __init__(self, layers: list[Layer], depth: int) -> None:
        super().__init__()
        if len(layers) not in (1, depth):
            raise ValueError(f"{len(layers)} layers make no Transformer of {depth}")
        self.layers = nn.ModuleList(layers)
        self.depth = depth

    def forward(self, x: Tensor, attended: Tensor, turned: Rotations) -> Tensor:
        """Contextualise sequences.

        Args:
            x: ``[B, N, D]``.
            attended: ``[B, N]`` bool, the tokens that others may look at. In a row that has none
                all are looked at: what comes out is finite and means nothing.
            turned: `mmssl_avbert.low_rank.rotations` of the network that this is a part of.

        Returns:
            ``[B, N, D]``.
        """
        attended = attended | ~attended.any(1, keepdim=True)
        for i in range(self.depth):
            x = self.layers[i % len(self.layers)](x, attended, turned)
        return x


def transformers(
    depths: Mapping[str, int],
    dim: int,
    heads: int,
    hidden: int,
    *,
    sharing: Sharing = "part",
    rank: int = 128,
    method: Method = "pade",
    dropout: float = 0.0,
) -> nn.ModuleDict:
    """Several Transformers of one size that share parameters.

    What is shared is one tensor in all of them, whose gradient is the sum over all its uses.

    Args:
        depths: L by the Transformer's name.
        dim: D.
        heads: of the attention; they divide D.
        hidden: E, dimensions between the two feed-forward maps.
        sharing: what is shared.
        rank: O; of ``part`` and ``part_attention`` alone.
        method: how rotations are computed.
        dropout: probability, of attention weights and of the attention's output.
    """
    low_rank = sharing in ("part", "part_attention")
    first: Layer | None = None
    made = nn.ModuleDict()
    for name, depth in depths.items():
        layers = []
        for _ in range(depth if sharing == "none" else 1):
            if sharing == "all" and first is not None:
                layer = first
            else:
                layer = Layer(
                    dim,
                    heads,
                    hidden,
                    dropout=dropout,
                    rank=rank if low_rank else None,
                    dense_feed_forward=sharing == "part_attention",
                    method=method,
                    like=first if low_rank else None,
                )
            first = first or layer
            layers.append(layer)
        made[name] = Transformer(layers, depth)
    return made
