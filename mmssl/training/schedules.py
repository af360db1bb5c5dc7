"""Learning-rate schedules: from where a round stands to a factor on the peak learning rate.

The factor is a pure function of the step, so a resumed run needs no schedule's state. Epochs are
fractions: halfway through the third epoch ``at.epoch`` is 2.5. Every schedule may warm up
linearly, step by step, as Goyal et al. (2017) do.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Place:
    """Where a round stands.

    Attributes:
        step: optimizer steps done in this round.
        steps_per_epoch: optimizer steps in one epoch.
        epochs: epochs in the round.
        unscaled: where warm-up begins by default: the factor that undoes the scaling of the
            learning rate by a large batch (``lr_batch / batch_size``, at most 1), and 0 where
            the learning rate is not scaled.
    """

    step: int
    steps_per_epoch: int
    epochs: int
    unscaled: float = 0.0

    @property
    def epoch(self) -> float:
        """Epochs done, with fractions."""
        return self.step / self.steps_per_epoch


def _warmup(at: Place, epochs: float, start: float | None) -> float:
    """The factor during warm-up; 1 after it."""
    if at.epoch >= epochs:
        return 1.0
    first = at.unscaled if start is None else start
    return first + (1.0 - first) * at.epoch / epochs


def _after_warmup(at: Place, warmup_epochs: float) -> float:
    """The share of the round done since warm-up ended, in [0, 1]."""
    remaining = at.epochs - warmup_epochs
    if remaining <= 0:
        return 0.0
    return min(1.0, max(0.0, at.epoch - warmup_epochs) / remaining)


def constant(
    at: Place, *, warmup_epochs: NotNegative = 0.0, warmup_from: Fraction | None = None
) -> float:
    """The peak learning rate throughout.

    Args:
        at: where the round stands.
        warmup_epochs: epochs of linear warm-up.
        warmup_from: share of the peak at which warm-up begins; null for the learning rate
            before it was scaled by the batch size, or 0 where it is not scaled (no lr_batch).
    """
    return _warmup(at, warmup_epochs, warmup_from)


def step(
    at: Place,
    *,
    step_epochs: Positive,
    gamma: Positive = 0.1,
    warmup_epochs: NotNegative = 0.0,
    warmup_from: Fraction | None = None,
    decay_from: Literal["warmup_end", "zero"] = "warmup_end",
) -> float:
    """Multiply by gamma every so many epochs (XDC's tables: warm-up / step / total epochs).

    Args:
        at: where the round stands.
        step_epochs: epochs between two decays.
        gamma: factor of each decay.
        warmup_epochs: epochs of linear warm-up.
        warmup_from: share of the peak at which warm-up begins; null for the learning rate
            before it was scaled by the batch size, or 0 where it is not scaled (no lr_batch).
        decay_from: the epoch from which decays are counted. With "zero", a warm-up as long as
            a step is followed by a decay at once, and the peak is never trained at.
    """
    origin = warmup_epochs if decay_from == "warmup_end" else 0.0
    # Steps are whole numbers: an epoch's fraction must not round 9.999999 down to step 0.
    decays = math.floor(max(0.0, at.epoch - origin) / step_epochs + 1e-9)
    return _warmup(at, warmup_epochs, warmup_from) * gamma**decays


def cosine(
    at: Place,
    *,
    end: Fraction = 0.0,
    period: Literal["half", "quarter"] = "half",
    warmup_epochs: NotNegative = 0.0,
    warmup_from: Fraction | None = None,
) -> float:
    """Fall along a cosine from the peak to ``end``.

    Args:
        at: where the round stands.
        end: share of the peak at which the round ends.
        period: "half" is ``end + (1 - end)(1 + cos(pi x)) / 2``, steepest in the middle;
            "quarter" is ``end + (1 - end) cos(pi x / 2)``, steepest at the end.
        warmup_epochs: epochs of linear warm-up.
        warmup_from: share of the peak at which warm-up begins; null for the learning rate
            before it was scaled by the batch size, or 0 where it is not scaled (no lr_batch).
    """
    done = _after_warmup(at, warmup_epochs)
    if period == "half":
        fall = (1.0 + math.cos(math.pi * done)) / 2.0
    else:
        fall = math.cos(math.pi * done / 2.0)
    return _warmup(at, warmup_epochs, warmup_from) * (end + (1.0 - end) * fall)


def linear(
    at: Place,
    *,
    end: Fraction = 0.0,
    warmup_epochs: NotNegative = 0.0,
    warmup_from: Fraction | None = None,
) -> float:
    """Fall along a line from the peak, after warm-up, to ``end``.

    Args:
        at: where the round stands.
        end: share of the peak at which the round ends.
        warmup_epochs: epochs of linear warm-up.
        warmup_from: share of the peak at which warm-up begins; null for the learning rate
            before it was scaled by the batch size, or 0 where it is not scaled (no lr_batch).
    """
    fall = 1.0 - _after_warmup(at, warmup_epochs)
    return _warmup(at, warmup_epochs, warmup_from) * (end + (1.0 - end) * fall)
