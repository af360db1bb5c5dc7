"""VATT's Transformers: pre-norm layers behind an aggregating token (Akbari et al., 2021, table 1).

=========  ======  ==========  ======  =====  =====================  ====================
size       layers  dimensions  hidden  heads  parameters             without dense biases
=========  ======  ==========  ======  =====  =====================  ====================
``tiny``   2       128         256     2      265 216                263 424
``small``  6       512         2048    8      18 915 328             18 887 680
``base``   12      768         3072    12     85 056 000             84 973 056
``medium`` 12      1024        4096    16     151 156 736            151 046 144
``large``  24      1024        4096    16     302 311 424            302 090 240
=========  ======  ==========  ======  =====  =====================  ====================

``tiny`` is not the paper's: it is for tests and laptops. The paper's counts, 20.9 to 306.1 million
with the video tokenizer, are of maps without biases; the released code has them.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmssl_vatt.positions import NORM_EPS

Size = Literal["tiny", "small", "base", "medium", "large"]


class Shape(NamedTuple):
    """Of a Transformer; every head has 64 dimensions."""

    layers: int
    dim: int
    hidden: int
    heads: int


SHAPES: dict[Size, Shape] = {
    "tiny": Shape(2, 128, 256, 2),
    "small": Shape(6, 512, 2048, 8),
    "base": Shape(12, 768, 3072, 12),
    "medium": Shape(12, 1024, 4096, 16),
    "large": Shape(24, 1024, 4096, 16),
}


class Layer(nn.Module):
    """Self-attention, then a feed-forward network, each ``x + dropout(sublayer(norm(x)))``.

    Args:
        dim: D.
        hidden: dimensions between the two feed-forward maps.
        heads: of the attention; they divide D.
        bias: have the linear maps biases?
        dropout: probability, of attention weights, hidden and residual values.
        t5: as in a T5 encoder: an RMSNorm before the attention, whose scores are not scaled.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        heads: int,
        *,
        bias: bool = True,
        dropout: float = 0.1,
        t5: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} dimensions")
        self.heads = heads
        self.dropout = dropout
        self.scale = 1.0 if t5 else (dim // heads) ** -0.5
        self.attention_norm = (nn.RMSNorm if t5 else nn.LayerNorm)(dim, eps=NORM_EPS)
        self.query_key_value = linear(dim, 3 * dim, bias=bias, maps=3)
        self.merge = linear(dim, dim, bias=bias)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.widen = linear(dim, hidden, bias=bias)
        self.narrow = linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One layer.

        Args:
            x: ``[B, N, D]``.
            mask: broadcast to ``[B, heads, N, N]``: bool, the tokens that are looked at, or what
                is added to the scores.

        Returns:
            ``[B, N, D]``.
        """

        def dropped(y: Tensor) -> Tensor:
            return functional.dropout(y, self.dropout, self.training)

        joined = self.query_key_value(self.attention_norm(x))
        query, key, value = joined.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)  # under autocast
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        x = x + dropped(self.merge(mixed.transpose(1, 2).flatten(2)))
        wide = dropped(functional.gelu(self.widen(self.feed_forward_norm(x))))
        y: Tensor = x + dropped(self.narrow(wide))
        return y


class Transformer(nn.Module):
    """Layers, then a norm and dropout.

    Args:
        size: its row of the table.
        bias: have the linear maps biases?
        dropout: probability.
        checkpointing: compute a layer's activations anew in the backward pass instead of keeping
            them; gradients are the same.
        t5: as in a T5 encoder, whose linear maps have no biases.
    """

    def __init__(
        self,
        size: Size,
        *,
        bias: bool = True,
        dropout: float = 0.1,
        checkpointing: bool = False,
        t5: bool = False,
    ) -> None:
        super().__init__()
        depth, dim, hidden, heads = SHAPES[size]
        self.dim = dim
        self.heads = heads
        self.dropout = dropout
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(
            Layer(dim, hidden, heads, bias=bias and not t5, dropout=dropout, t5=t5)
            for _ in range(depth)
        )
        self.norm = (nn.RMSNorm if t5 else nn.LayerNorm)(dim, eps=NORM_EPS)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Contextualise sequences.

        Args:
            x: ``[B, N, D]``.
            mask: as of `Layer.forward`.

        Returns:
            ``[B, N, D]``.
        """
        x = x.to(self.norm.weight.dtype)  # autocast lowers maps, not the sum over layers
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, mask, use_reentrant=False)
            else:
                x = layer(x, mask)
        return functional.dropout(self.norm(x), self.dropout, self.training)


def linear(inputs: int, outputs: int, *, bias: bool = True, maps: int = 1) -> nn.Linear:
    """A linear map as the released code's dense ones begin: Glorot-uniform weights, biases of zero.

    Args:
        inputs: its columns.
        outputs: its rows.
        bias: has it one?
        maps: how many maps of equal size are stacked in it, each drawn as if it were alone.
    """
    made = nn.Linear(inputs, outputs, bias=bias)
    for weight in made.weight.chunk(maps):
        nn.init.xavier_uniform_(weight)
    if bias:
        nn.init.zeros_(made.bias)
    return made


def aggregator(dim: int) -> nn.Parameter:
    """``[dim]``, the token AGG whose output stands for a sequence; Glorot-normal."""
    return nn.Parameter(torch.randn(dim) * dim**-0.5)


def behind(agg: Tensor, tokens: Tensor) -> Tensor:
    """``tokens [B, N, D]`` behind AGG: ``[B, 1 + N, D]``."""
    return torch.cat([agg.to(tokens.dtype).expand(len(tokens), 1, -1), tokens], 1)


def attended(valid: Tensor) -> Tensor:
    """``[B, 1, 1, 1 + N]`` bool: AGG and the tokens that are no padding, of ``valid [B, N]``."""
    return functional.pad(valid, (1, 0), value=True)[:, None, None]


def drop_tokens(tokens: Tensor, rate: float) -> Tensor:
    """DropToken: of ``[B, N, D]`` the same tokens of every row, ⌊(1 - rate) N⌋ but one at least.

    Args:
        tokens: with their position embeddings.
        rate: the share that is dropped.
    """
    size = tokens.shape[1]
    kept = max(1, int(round((1 - rate) * size, 6)))  # 1 - 0.8 is less than 0.2
    chosen = torch.randperm(size, device=tokens.device)[:kept].sort().values
    return tokens[:, chosen]
