"""VATT: one Transformer for each modality, or one for all (Akbari et al., NeurIPS 2021).

::

    clip --tokenizer--> tokens --DropToken--> [AGG; tokens] --Transformer--> [pooled; tokens]

The modality-agnostic VATT-MA has tokenizers and AGG tokens of its own for each modality, and a map
with GELU behind the Transformer that all share. What it knows of a modality is its tokenizer, any
backbone with tokens: a further one joins by its own.
"""

import copy
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from mmssl import Backbone, Features
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders
from mmssl_vatt.narrations import sequences, summarised
from mmssl_vatt.transformer import (
    Size,
    Transformer,
    aggregator,
    attended,
    behind,
    drop_tokens,
    linear,
)

Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Tower(Backbone):
    """One modality: a tokenizer, AGG, and a Transformer, which several towers may share.

    Args:
        tokenizer: gives tokens of the Transformer's dimensions. Where its features have an
            attribute ``valid``, as `mmssl_vatt.tokenizers.Words` has, what is not is masked.
        transformer: behind it.
        drop_token: the share of tokens that is dropped in training, the same ones of all clips in
            a batch; none where some are padding.
        dim: D of features, by a further map with GELU; by default the Transformer's, without one.

    Raises:
        UserError: the tokenizer does not fit.
    """

    def __init__(
        self,
        tokenizer: Backbone,
        transformer: Transformer,
        *,
        drop_token: float,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        name = type(tokenizer).__name__
        if tokenizer.joint:
            raise UserError(f"{name} takes several modalities at once: it is no tokenizer")
        if tokenizer.dim != transformer.dim:
            raise UserError(
                f"{name} gives tokens of {tokenizer.dim} dimensions, but the Transformer takes "
                f"{transformer.dim}: change the tokenizer's dim or the size"
            )
        self.modalities = tokenizer.modalities
        self.dim = dim or transformer.dim
        self.drop_token = drop_token
        self.tokenizer = tokenizer
        self.agg = aggregator(transformer.dim)
        self.transformer = transformer
        self.project = None if dim is None else linear(transformer.dim, dim)

    def forward(self, clip: Tensor) -> Features:
        """Encode clips of one modality.

        Args:
            clip: as the tokenizer takes it.

        Returns:
            ``pooled [B, D]``, the output at AGG, and ``tokens [B, N, D]``, the others that were
            not dropped. `mmssl_vatt.narrations.Narrations` of texts.

        Raises:
            ValueError: the tokenizer gives no tokens.
        """
        found = self.tokenizer(clip)
        if found.tokens is None:
            raise ValueError(f"{type(self.tokenizer).__name__} gives no tokens to be a tokenizer")
        valid = getattr(found, "valid", None)
        tokens, seen = sequences(found.tokens, valid)
        if self.training and self.drop_token and seen is None:
            tokens = drop_tokens(tokens, self.drop_token)
        mask = None if seen is None else attended(seen)
        outputs = self.transformer(behind(self.agg, tokens), mask)
        if self.project is not None:
            outputs = functional.gelu(self.project(outputs))
        return summarised(outputs, valid)

    def subnetworks(self) -> dict[str, Backbone]:
        """``all_tokens``: the same network, which drops none in training either."""
        undropped = copy.copy(self)  # its parts are these very ones
        undropped.drop_token = 0.0
        return {"all_tokens": undropped}


def vatt(
    *,
    tokenizer: Backbone,
    size: Size = "base",
    bias: bool = True,
    drop_token: Probability = 0.5,
    dropout: Probability = 0.1,
    checkpointing: bool = False,
) -> Tower:
    """VATT's Transformer for one modality, whichever the tokenizer's is.

    Args:
        tokenizer: gives tokens of as many dimensions as the size has, such as video_patches.
        size: tiny, small, base, medium or large: 128, 512, 768, 1024 and 1024 dimensions.
        bias: have the Transformer's linear maps biases? They have in the released code, but for
            spectrograms; the paper's counts of parameters are without, and without the
            tokenizer's bias and position_norm.
        drop_token: the share of tokens that is dropped in training, the same ones of all clips in
            a batch. Nothing is dropped of text. 0 for spectrograms, as released.
        dropout: probability, of attention weights, hidden and residual values.
        checkpointing: compute activations anew in the backward pass, layer by layer, instead of
            keeping them: less memory, more time, the same gradients.
    """
    transformer = Transformer(size, bias=bias, dropout=dropout, checkpointing=checkpointing)
    return Tower(tokenizer, transformer, drop_token=drop_token)


class VattAgnostic(Backbone):
    """VATT-MA: one Transformer for any modalities; the recipe's key is such as video+audio+text.

    Any combination of modalities may be absent. The paper's has the tokenizers' ``dense`` maps,
    and text with ``dim: 1024`` and ``buckets: 16``.

    Args:
        tokenizers: by modality, as the recipe calls it; each gives tokens of as many dimensions as
            the size has.
        size: tiny, small, base, medium or large: 128, 512, 768, 1024 and 1024 dimensions.
        dim: D of features, by a map with GELU for each modality.
        bias: have the Transformer's linear maps biases?
        drop_token: the share of tokens that is dropped in training, the same ones of all clips in
            a batch. Nothing is dropped of text.
        dropout: probability, of attention weights, hidden and residual values.
        checkpointing: compute activations anew in the backward pass, layer by layer, instead of
            keeping them: less memory, more time, the same gradients.
    """

    modalities = "any"
    joint = True

    def __init__(
        self,
        *,
        tokenizers: dict[str, Backbone],
        size: Size = "medium",
        dim: Positive = 1024,
        bias: bool = True,
        drop_token: Probability = 0.5,
        dropout: Probability = 0.1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        transformer = Transformer(size, bias=bias, dropout=dropout, checkpointing=checkpointing)
        towers = {}
        for name, tokenizer in tokenizers.items():
            try:
                towers[name] = Tower(tokenizer, transformer, drop_token=drop_token, dim=dim)
            except UserError as error:
                raise UserError(f"tokenizers.{name}: {error}") from error
        self.dim = dim
        # Keeps absent clips away from tokenizers, and lets ranks without any take part.
        self.towers = Encoders(towers, [*tokenizers])

    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        """Encode clips; what is absent has zeros.

        Args:
            clips: by modality, as its tokenizer takes them.
            present: ``[B]`` bool by modality, on the CPU.

        Returns:
            By modality, as `Tower.forward` returns it.

        Raises:
            ValueError: the modalities are not those of the tokenizers.
        """
        names = self.towers.modalities
        if set(clips) != set(names):
            raise ValueError(
                f"has tokenizers of {', '.join(names)}, not of {', '.join(clips)}: name each "
                "modality of its key under tokenizers"
            )
        features: dict[str, Features] = self.towers(clips, {name: present[name] for name in names})
        return features

    def subnetworks(self) -> dict[str, Backbone]:
        """By modality the path of its clips through the Transformer; no tokens are dropped."""
        found: dict[str, Backbone] = {}
        for name, tower in self.towers.backbones.items():
            assert isinstance(tower, Tower)
            (found[name],) = tower.subnetworks().values()
        return found
