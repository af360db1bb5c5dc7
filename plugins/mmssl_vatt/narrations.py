"""Several texts of one clip: what MIL-NCE chooses its positives from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl import Features


@dataclass(kw_only=True)
class Narrations(Features):
    """Features of clips that come with several texts; ``pooled`` is that of the first one.

    Attributes:
        candidates: ``[B, M, D]``, one vector for each of M texts; zeros where there is none.
        valid: ``[B, M]`` bool, on the device: which texts there are.
    """

    candidates: Tensor
    valid: Tensor


def sequences(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What a Transformer is to see at a time.

    Args:
        tokens: ``[B, N, D]``.
        valid: which of them there are, as of `mmssl_vatt.tokenizers.Words`; None for all.

    Returns:
        The same, or, where clips have M texts, tokens ``[BM, L, D]`` and ``[BM, L]``.
    """
    if valid is None or valid.ndim == 2:
        return tokens, valid
    return tokens.reshape(*valid.shape, -1).flatten(0, 1), valid.flatten(0, 1)


def summarised(outputs: Tensor, valid: Tensor | None) -> Features:
    """Features of a Transformer's outputs; zeros where there is padding, or no text.

    Args:
        outputs: ``[B, 1 + N, D]``, or ``[BM, 1 + L, D]``, the first of a sequence being AGG's.
        valid: as of `sequences`.

    Returns:
        `Narrations` where clips have several texts.
    """
    pooled, tokens = outputs[:, 0], outputs[:, 1:]
    if valid is None:
        return Features(pooled, tokens)
    nothing = tokens.new_zeros(())
    tokens = torch.where(valid.reshape(tokens.shape[:2])[..., None], tokens, nothing)
    if valid.ndim == 2:
        return Features(pooled, tokens)
    there = valid.any(2)
    candidates = torch.where(there[..., None], pooled.view(*there.shape, -1), nothing)
    return Narrations(
        pooled=candidates[:, 0],
        tokens=tokens.reshape(len(valid), -1, tokens.shape[-1]),
        candidates=candidates,
        valid=there,
    )
