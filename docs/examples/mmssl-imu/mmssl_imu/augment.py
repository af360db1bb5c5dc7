"""Random changes of signals, each row's drawn from the sample's own seed."""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmssl import Draws


def rotations(draws: Draws, degrees: float) -> Tensor:
    """``[B, 3, 3]``: around axes uniform on the sphere, by angles up to ``degrees`` either way.

    Rodrigues' formula: R = I + sin α K + (1 - cos α) K², with K x = axis × x.
    """
    x, y, z = normalize(draws.normal(3), dim=1).unbind(1)
    angle = (draws.uniform(low=-degrees, high=degrees) * math.pi / 180).view(-1, 1, 1)
    zero = torch.zeros_like(x)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    eye = torch.eye(3, device=k.device)
    return eye + angle.sin() * k + (1 - angle.cos()) * (k @ k)


def roll(values: Tensor, fraction: Tensor) -> Tensor:
    """``[B, C, T]`` rolled along time, each row by its own ``[B]`` fraction of T."""
    length = values.shape[2]
    places = torch.arange(length, device=values.device)
    source = (places - (fraction * length).round().long()[:, None]) % length
    return values.gather(2, source[:, None].expand_as(values))


def mask_span(draws: Draws, length: int, fraction: float) -> Tensor:
    """``[B, length]`` bool: one span of random length up to a fraction, randomly placed."""
    width = draws.uniform(1) * fraction * length
    first = draws.uniform(1) * (length - width)
    places = torch.arange(length, device=width.device)
    return (places >= first) & (places < first + width)
