"""VATT's text tower: a T5 encoder behind word2vec's vectors.

It differs from the other Transformers: AGG stands among the words' vectors, a map with GELU and
without bias brings both to D dimensions, no map has a bias, norms before the attention and at the
end are RMSNorms, scores are not divided by √64, and a word's place is told by a bias on the scores
that depends on the distance and is shared by all layers (Raffel et al., 2020).
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mmssl import Backbone, UserError
from mmssl_vatt.narrations import Narrations, sequences, summarised
from mmssl_vatt.transformer import Size, Transformer, aggregator, attended, behind, linear

Probability = Annotated[float, Field(ge=0, lt=1)]

BUCKETS = 32
MAX_DISTANCE = 64


class VattText(Backbone):
    """VATT's text tower: a T5 encoder for several texts of a clip.

    With the defaults it has 19 038 252 parameters besides the vectors of words, of which word2vec
    brings 19 660 800.

    Args:
        tokenizer: gives vectors of words and tells padding, such as word_embeddings.
        size: tiny, small, base, medium or large: 128, 512, 768, 1024 and 1024 dimensions.
        dropout: probability, of embeddings, attention weights, hidden and residual values.
    """

    modalities = frozenset({"text"})

    def __init__(
        self, *, tokenizer: Backbone, size: Size = "small", dropout: Probability = 0.1
    ) -> None:
        super().__init__()
        if tokenizer.joint or (
            tokenizer.modalities != "any" and "text" not in tokenizer.modalities
        ):
            raise UserError(f"tokenizer: {type(tokenizer).__name__} is no network for text alone")
        self.tokenizer = tokenizer
        self.transformer = Transformer(size, bias=False, dropout=dropout, t5=True)
        self.dim = self.transformer.dim
        self.dropout = dropout
        self.agg = aggregator(tokenizer.dim)
        self.project = linear(tokenizer.dim, self.dim, bias=False)
        self.distance_bias = nn.Embedding(BUCKETS, self.transformer.heads)
        nn.init.uniform_(self.distance_bias.weight, -0.05, 0.05)  # as released

    def forward(self, clip: Tensor) -> Narrations:
        """Encode texts.

        Args:
            clip: ``[B, M, L]`` int64, ids of the L words of M texts.

        Returns:
            ``candidates [B, M, D]``, ``valid [B, M]``, ``pooled [B, D]``, the first text's, and
            ``tokens [B, ML, D]``; zeros where there is no text.

        Raises:
            ValueError: the tokenizer does not tell texts and padding.
        """
        found = self.tokenizer(clip)
        valid = getattr(found, "valid", None)
        if valid is None or valid.ndim != 3:
            raise ValueError(f"{type(self.tokenizer).__name__} does not tell texts and padding")
        tokens, _ = sequences(found.tokens, valid)
        x = functional.gelu(self.project(behind(self.agg, tokens)))
        x = functional.dropout(x, self.dropout, self.training)
        bias = self.distance_bias(distance_buckets(x.shape[1], x.device)).permute(2, 0, 1)
        mask = torch.where(attended(valid.flatten(0, 1)), bias, -math.inf)
        features = summarised(self.transformer(x, mask), valid)
        assert isinstance(features, Narrations)
        return features


def distance_buckets(length: int, device: torch.device | None = None) -> Tensor:
    """T5's buckets of the distance from each position to each other one.

    A half of them is for what comes later. Of each half the first half is for one distance each,
    the others grow geometrically up to the largest distance, which the last one shares with all
    that is farther.

    Returns:
        ``[length, length]`` int64, from row to column.
    """
    at = torch.arange(length, device=device)
    distance = at[None] - at[:, None]
    half = BUCKETS // 2
    exact = half // 2
    near = distance.abs()
    grown = torch.log(near.clamp(min=1) / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    far = (exact + grown.long()).clamp(max=half - 1)
    return torch.where(near < exact, near, far) + half * (distance > 0)
