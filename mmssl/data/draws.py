"""Random numbers that are a function of a sample's seed and of nothing else.

A ``torch.Generator`` gives a batch its numbers in order, so a sample's augmentation would depend
on which other samples share its batch: on the number of ranks, on gradient accumulation, on
history. Here each row is hashed from its own 64-bit seed (a counter-based generator after
Steele et al., "Fast splittable pseudorandom number generators", 2014), on any device alike.
"""

import hashlib
import math

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The SplitMix64 finaliser: a bijection of int64 that scatters neighbouring values."""
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a path such as ``(seed, "round", 3)``; stable between versions."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Draws:
    """A stream of random numbers for each row of a batch.

    Args:
        seeds: ``[B]`` int64, one for each sample.
        stream: sets apart consumers that share the seeds, such as two modalities.
    """

    def __init__(self, seeds: Tensor, stream: int | str = 0) -> None:
        offset = derive_seed("draws", stream)
        self._keys = _mix(seeds.to(torch.int64) + _signed(offset))
        self._calls = 0

    def __len__(self) -> int:
        return len(self._keys)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """``[B, *shape]`` float32 in ``[low, high)``."""
        device = self._keys.device
        counter = torch.arange(math.prod(shape), device=device, dtype=torch.int64)
        # Each call has its own key, so 2**64 numbers of each row lie between two calls' streams.
        keys = _mix(self._keys + _signed((2 * self._calls + 1) * _GAMMA))
        self._calls += 1
        bits = _mix(keys[:, None] + (counter + 1) * _GAMMA)
        unit = _logical_shift(bits, 40).to(torch.float32) * 2.0**-24
        return (unit * (high - low) + low).reshape(len(self._keys), *shape)

    def normal(self, *shape: int) -> Tensor:
        """``[B, *shape]`` float32, standard normal (Box and Muller)."""
        radius = self.uniform(*shape)
        angle = self.uniform(*shape)
        return torch.sqrt(-2.0 * torch.log1p(-radius)) * torch.cos(2.0 * math.pi * angle)

    def chance(self, probability: float, *shape: int) -> Tensor:
        """``[B, *shape]`` bool, true with ``probability``."""
        return self.uniform(*shape) < probability
