"""What the loop is told, and where it stands."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from mmssl.errors import UserError
from mmssl.training.features import Precision
from mmssl.training.schedules import Place


@dataclass(frozen=True)
class RoundPlan:
    """How one round trains.

    Attributes:
        epochs: epochs in the round.
        factor: schedule, from a `Place` to a factor on the peak learning rate.
    """

    epochs: int
    factor: Callable[[Place], float]


@dataclass(frozen=True)
class Group:
    """Parameters that are optimized with settings of their own.

    Attributes:
        pattern: of their names, such as ``encoders.*`` or ``*.bias``; ``*`` stands for anything.
        options: of the optimizer, ``lr`` or ``weight_decay``.
    """

    pattern: str
    options: Mapping[str, float]


def grouped(modules: Mapping[str, nn.Module], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: those that are trained, each in the first that fits.

    Parameters that no group fits are one of their own, without options, and come first.

    Args:
        modules: by the word that their parameters' names begin with.
        groups: with settings of their own.

    Raises:
        UserError: a group holds no parameter.
    """
    members: list[list[nn.Parameter]] = [[] for _ in range(len(groups) + 1)]
    seen: set[int] = set()
    names = []
    for word, module in modules.items():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            names.append(f"{word}.{name}")
            fits = (i for i, g in enumerate(groups) if fnmatchcase(names[-1], g.pattern))
            members[next(fits, -1) + 1].append(parameter)
    for number, group in enumerate(groups):
        if not members[number + 1]:
            some = ", ".join(names[:: max(1, len(names) // 3)][:3])
            raise UserError(
                f"training.groups.{number}: no parameter that is trained, and in no earlier group, "
                f"is called {group.pattern!r}; some that there are: {some}"
            )
    options: list[Mapping[str, float]] = [{}, *(group.options for group in groups)]
    return [
        {"params": parameters, **option}
        for parameters, option in zip(members, options, strict=True)
        if parameters
    ]


@dataclass(frozen=True)
class Settings:
    """What the recipe's ``training`` block comes down to."""

    seed: int
    epoch_size: int
    batch_size: int
    accumulate: int
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    lr_batch: int | None
    restart_optimizer: bool
    early_stop: int | None
    freeze_encoders: bool
    precision: Precision
    sync_batch_norm: bool
    channels_last: bool
    log_every: int
    checkpoint_steps: int | None
    checkpoint_minutes: float | None
    keep: int
    max_bad: float
    groups: Sequence["Group"] = ()
    clip_norm: float | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The whole number of batches nearest to an epoch's samples, at least 1."""
        return max(1, round(self.epoch_size / self.batch_size))

    @property
    def lr_scale(self) -> float:
        """What the batch size multiplies the learning rate by (Goyal et al., 2017)."""
        return self.batch_size / self.lr_batch if self.lr_batch else 1.0

    def place(self, step: int, epochs: int) -> Place:
        """Where a round of ``epochs`` stands before ``step``."""
        unscaled = min(1.0, 1.0 / self.lr_scale) if self.lr_batch else 0.0
        return Place(step, self.steps_per_epoch, epochs, unscaled)


@dataclass
class State:
    """Where a run stands; all of it goes into the checkpoint.

    Attributes:
        round: 1 for the first.
        begun: has the round been relabelled?
        step: optimizer steps done in the round.
        global_step: optimizer steps done in the run.
        position: samples drawn in the run.
        validation: validation losses of this round, one an epoch.
        finished: is pretraining complete?
    """

    round: int = 1
    begun: bool = False
    step: int = 0
    global_step: int = 0
    position: int = 0
    validation: list[float] = field(default_factory=list)
    finished: bool = False

    def next_round(self, total: int) -> None:
        """Move to the start of the next round, or to the end."""
        if self.round == total:
            self.finished = True
        else:
            self.round += 1
        self.begun, self.step, self.validation = False, 0, []


def saturated(losses: list[float], patience: int) -> bool:
    """Has the validation loss increased in each of the last ``patience`` epochs?"""
    recent = losses[-patience - 1 :]
    return len(recent) == patience + 1 and all(b > a for a, b in itertools.pairwise(recent))
