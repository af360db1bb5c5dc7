"""The optimizers of torch that recipes name. Each takes parameter groups and its settings."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field

Groups = Iterable[dict[str, Any]]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def sgd(
    groups: Groups,
    *,
    lr: Positive,
    momentum: Beta = 0.9,
    nesterov: bool = True,
    weight_decay: NotNegative = 0.0,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum.

    Args:
        groups: parameter groups.
        lr: learning rate, before it is scaled by the batch size and the schedule.
        momentum: share of the velocity kept from step to step.
        nesterov: look ahead along the velocity (ignored without momentum).
        weight_decay: factor of the parameters that is added to their gradients (L2).
    """
    return torch.optim.SGD(
        groups,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=weight_decay,
    )


def adam(
    groups: Groups,
    *,
    lr: Positive,
    beta1: Beta = 0.9,
    beta2: Beta = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.0,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, 2015); weight decay is an L2 term in the gradients.

    Args:
        groups: parameter groups.
        lr: learning rate, before it is scaled by the batch size and the schedule.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: added to the denominator.
        weight_decay: factor of the parameters that is added to their gradients.
        amsgrad: divide by the largest mean of squares so far.
    """
    return torch.optim.Adam(
        groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, amsgrad=amsgrad
    )


def adamw(
    groups: Groups,
    *,
    lr: Positive,
    beta1: Beta = 0.9,
    beta2: Beta = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.01,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Args:
        groups: parameter groups.
        lr: learning rate, before it is scaled by the batch size and the schedule.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: added to the denominator.
        weight_decay: share of the parameters subtracted per step and unit of learning rate.
        amsgrad: divide by the largest mean of squares so far.
    """
    return torch.optim.AdamW(
        groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, amsgrad=amsgrad
    )
