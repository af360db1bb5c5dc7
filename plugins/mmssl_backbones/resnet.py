"""What the video and the audio ResNets share: channel counts, initialisation, tokens."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

Width = Annotated[float, Field(gt=0, allow_inf_nan=False)]

#: Fewer channels than this carry next to nothing, however small the width.
FEWEST_CHANNELS = 8


def scaled(channels: int, width: float) -> int:
    """``channels * width``, rounded, at least 8; unchanged at width 1."""
    return max(FEWEST_CHANNELS, round(channels * width))


def initialise(network: nn.Module) -> None:
    """He et al.'s normal initialisation over the fan-out, zero biases, identity batch norms."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def as_tokens(feature_map: Tensor) -> Tensor:
    """``[B, D, ...]`` to ``[B, N, D]``, positions in row-major order; a view, not a copy."""
    return feature_map.flatten(2).transpose(1, 2)
