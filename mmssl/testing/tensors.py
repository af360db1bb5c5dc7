"""How tensors are compared, and what a network's tensors are."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch import Tensor

from mmssl.contracts import Features
from mmssl.testing.check import shown

#: Rounding of float32 in another order, as a share of the largest value.
ROUNDING = 1e-4


def difference(ours: Tensor, theirs: Tensor, tolerance: float = 0.0) -> str:
    """In words how two tensors differ; empty where they are equal up to a tolerance.

    Args:
        ours: any tensor.
        theirs: what it should be.
        tolerance: share of the largest value of ``theirs``; integers must be equal.
    """
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{shown(ours)} and {shown(theirs)}"
    if torch.equal(ours, theirs) or not ours.numel():
        return ""
    if not ours.is_floating_point():
        return f"{int((ours != theirs).sum())} of {ours.numel()} values differ"
    a, b = ours.detach().double(), theirs.detach().double()
    if not bool(a.isfinite().all() and b.isfinite().all()):
        same = torch.equal(a.nan_to_num(), b.nan_to_num())
        return "" if same else "some are not finite, and not the same in both"
    apart, scale = float((a - b).abs().max()), float(b.abs().max())
    return f"they differ by {apart:.2g}, at values up to {scale:.2g}" * (apart > tolerance * scale)


def tensors_of(features: Features) -> dict[str, Tensor]:
    """All tensors of features by name, also those of a subclass."""
    found = {field.name: getattr(features, field.name) for field in fields(features)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def features_differ(
    ours: Mapping[str, Features], theirs: Mapping[str, Features], tolerance: float = 0.0
) -> str:
    """In words what differs first; empty where nothing does."""
    for modality in theirs:
        mine, other = tensors_of(ours[modality]), tensors_of(theirs[modality])
        if mine.keys() != other.keys():
            return f"{modality}: {sorted(mine)} and {sorted(other)}"
        for name in other:
            if found := difference(mine[name], other[name], tolerance):
                return f"{modality}.{name}: {found}"
    return ""


def rows_of(features: Mapping[str, Features], rows: slice | list[int]) -> dict[str, Features]:
    """The same features of some samples."""
    return {name: found.map(lambda x: x[rows]) for name, found in features.items()}


@contextmanager
def own_kernels() -> Iterator[None]:
    """Compute with torch's own kernels on the CPU.

    Of some strided convolutions oneDNN's gradients in bf16 hold memory that nobody wrote (seen with
    torch 2.14), which is no component's fault.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # putting the flags back speaks of GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield
