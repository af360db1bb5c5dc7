"""What contrastive objectives share: pairs of modalities, projections, and rows that count."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmssl import Batch, Features, UserError

Pair = tuple[str, str]

#: The space in which all modalities of these objectives meet.
SPACE = "joint"


def chosen(pairs: Sequence[Pair] | None, modalities: Sequence[str]) -> list[Pair]:
    """The pairs to compare.

    Args:
        pairs: None for all.
        modalities: the recipe's.

    Raises:
        UserError: a modality is not there, a pair is none or stands twice, or there is only one
            modality.
    """
    if pairs is None:
        pairs = list(combinations(modalities, 2))
        if not pairs:
            raise UserError(
                f"objective: compares modalities with each other, and there is only {modalities[0]}"
            )
    if not pairs:
        raise UserError("objective.pairs: is empty; leave it out for all pairs")
    there = ", ".join(modalities)
    for pair in pairs:
        for name in pair:
            if name not in modalities:
                raise UserError(
                    f"objective.pairs: the recipe has no modality {name!r}, only {there}"
                )
        if pair[0] == pair[1]:
            raise UserError(f"objective.pairs: needs two modalities, not {pair[0]!r} twice")
    if len({frozenset(pair) for pair in pairs}) < len(pairs):
        raise UserError("objective.pairs: the same two modalities stand there twice")
    return list(pairs)


def projections(
    dims: Mapping[str, int], pairs: Sequence[Pair], *, hidden: int, dim: int, depth: int
) -> nn.ModuleDict:
    """A perceptron for each modality of the pairs, with ReLU between its ``depth`` linear maps."""
    heads = nn.ModuleDict()
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        sizes = [dims[name], *[hidden] * (depth - 1), dim]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        heads[name] = nn.Sequential(*layers[:-1])
    return heads


def projected(heads: nn.ModuleDict, features: Mapping[str, Features]) -> dict[str, Tensor]:
    """``[B, dim]`` by modality, of those that have a head and features."""
    return {name: head(features[name].pooled) for name, head in heads.items() if name in features}


def unit(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in float32, of length 1."""
    return {name: normalize(x.float(), dim=1) for name, x in vectors.items()}


def both(batch: Batch, pair: Pair, device: torch.device) -> Tensor:
    """``[B]`` bool: which samples have both modalities."""
    one, other = pair
    return (batch.present[one] & batch.present[other]).to(device)
