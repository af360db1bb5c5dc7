"""Batch normalisation over the rows of all ranks, on any device.

torch's own SyncBatchNorm needs a GPU. Here the module stays what it is, also where a library
subclassed it: only the function that it calls in training is another one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

_counted = True


@contextmanager
def uncounted() -> Iterator[None]:
    """What is normalised meanwhile enters no statistics: this rank has no rows, others may."""
    global _counted
    before, _counted = _counted, False
    try:
        yield
    finally:
        _counted = before


def synchronise(module: nn.Module) -> None:
    """Make every BatchNorm in a module normalise over all ranks; its state dict stays the same."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.__class__ = _synchronised(type(part))  # type: ignore[arg-type, assignment]


@cache
def _synchronised(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a BatchNorm that calls another function."""
    if getattr(kind, "synchronised", False):
        return kind

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.training:  # without running statistics it normalises there, too
            return kind.forward(self, *args, **kwargs)
        with _Synchronised():
            return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "synchronised": True})


class _Synchronised(TorchFunctionMode):
    """Within it, `torch.nn.functional.batch_norm` in training is `_over_ranks`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace that one function."""
        if func is batch_norm:
            return _over_ranks(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _over_ranks(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, with the statistics of all ranks' rows in training."""
    if not training or not dist.is_initialized():
        return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    result, mean, variance, count = _Normalise.apply(input, weight, bias, eps, _counted)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return result


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the rows of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, counted: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        exact = torch.promote_types(x.dtype, torch.float32)
        if x.numel():
            variance, mean = torch.var_mean(x.to(exact), axes, correction=0)
        else:
            mean = variance = torch.zeros(x.shape[1], dtype=exact, device=x.device)
        own = mean.new_full((1,), x.numel() / x.shape[1] if counted else 0.0)
        mine = torch.cat([own, mean, variance])
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        every = torch.stack(parts)
        channels = x.shape[1]
        counts, means, variances = every.split([1, channels, channels], dim=1)
        count = counts.sum()
        # Chan et al.: sums of squares around each rank's own mean do not cancel.
        shares = counts / count
        mean = (shares * means).sum(dim=0)
        variance = (shares * (variances + (means - mean).square())).sum(dim=0)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.counted, ctx.has_bias = eps, counted, bias is not None
        result = batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return result, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        gradient = gradients[0]
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        scale = (variance + ctx.eps).rsqrt()
        centred = x - mean.view(shape)  # float32 at least, as the mean is
        own = torch.stack(
            [gradient.sum(axes, dtype=mean.dtype), (gradient * centred).sum(axes) * scale]
        )
        sums = own.clone()
        dist.all_reduce(sums)
        factor = scale if weight is None else scale * weight.to(mean.dtype)
        if ctx.counted:
            by_mean, by_scale = (sums / count).unbind()
            # In place: activations of video are large.
            centred *= (-factor * by_scale * scale).view(shape)
            centred -= (factor * by_mean).view(shape)
            inner = centred.addcmul_(gradient.to(mean.dtype), factor.view(shape))
        else:
            inner = gradient * factor.view(shape)
        return (
            inner.to(x.dtype),
            None if weight is None else own[1].to(weight.dtype),
            own[0] if ctx.has_bias else None,
            None,
            None,
        )
