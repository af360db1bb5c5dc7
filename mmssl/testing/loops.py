"""The training loop of a recipe at tiny size, watched, stopped and killed by checks."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.contracts import Batch, Losses
from mmssl.data.draws import derive_seed
from mmssl.pipeline.stages import pretraining
from mmssl.recipe import Recipe
from mmssl.testing.material import CLIPS, altered, reloaded
from mmssl.training import distributed
from mmssl.training.loop import Pretraining
from mmssl.training.progress import Advance, Silent
from mmssl.training.settings import RoundPlan

#: Steps of a round, samples of the training data, and rounds, at most.
STEPS, SAMPLES, ROUNDS = 4, 128, 2


def tiny(recipe: Recipe, *, steps: int = STEPS, keep_evaluations: bool = False) -> Recipe:
    """A recipe that takes seconds: what it names is the same, how much it does is little."""
    fields: dict[str, Any] = {
        "data.workers": 0,
        "device": "cpu",
        "launch": "inline",
        "training.log_every": 1,
        "training.compile": "false",
    }
    if recipe.data.limit is None or recipe.data.limit > SAMPLES:
        fields["data.limit"] = SAMPLES
    for path, training in recipe.trainings():
        if path[0] == "evaluations" and not keep_evaluations:
            continue
        place = ".".join(map(str, path))
        size = training.accumulate * max(2, min(CLIPS, training.batch_size) // training.accumulate)
        size -= size % (2 * training.accumulate)  # which two ranks share
        size = max(size, 2 * training.accumulate)
        fields |= {
            f"{place}.batch_size": size,
            f"{place}.epoch_size": size * steps,
            f"{place}.epochs": min(1, training.epochs),
            f"{place}.checkpoint.steps": 2,
            f"{place}.checkpoint.minutes": "null",
        }
        if training.final_round is not None and training.final_round.epochs is not None:
            fields[f"{place}.final_round.epochs"] = 1
    rounds = recipe.objective.parameters.get("rounds")
    if isinstance(rounds, int) and rounds > ROUNDS:
        fields["objective.rounds"] = ROUNDS
    if not keep_evaluations:
        fields["evaluations"] = "null"
    return altered(recipe, [f"{field}={value}" for field, value in fields.items()])


class Reached(Exception):
    """The loop came to where a check wanted it."""


class Ready(Pretraining):
    """Stops before the first step: the first round has begun, pseudo-labels are there."""

    def _steps(self, plan: RoundPlan, steps: int, advance: Advance) -> None:
        self.train_mode()
        raise Reached


class Dying(Pretraining):
    """Ends in the middle of a step, as by ``kill -9``: nothing is saved any more."""

    last: int = 0

    def step(self, batch: Batch, factor: float) -> Losses:
        """Train, but not after the step `last`."""
        if self.state.global_step == self.last:
            raise Reached
        return super().step(batch, factor)


class FirstStep(Pretraining):
    """Takes one step, without dropout, some rows without a modality, and keeps what it computed.

    Attributes:
        quiet: compute as in evaluation.
        loss: of the global batch.
        parts: of it, by name.
        gradients: by parameter, averaged over ranks; None where there is none.
        drew: did the step draw from torch's global generator?
    """

    quiet: bool = False

    def train_mode(self) -> None:
        """As in training, without what draws a rank's own random numbers."""
        super().train_mode()
        for module in self._network.modules():
            if self.quiet or "drop" in type(module).__name__.lower():
                module.training = False

    def step(self, batch: Batch, factor: float) -> Losses:
        """The first one, which is the last."""
        rank = distributed.rank()
        seed = derive_seed(
            self.settings.seed, "step", self.state.global_step, *((rank,) if rank else ())
        )
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        losses = super().step(_with_gaps(batch, self.settings.accumulate), factor)
        self.drew = not torch.equal(before, torch.get_rng_state())
        self.loss = float(distributed.mean(losses.total))
        self.parts = {name: float(distributed.mean(x)) for name, x in losses.parts.items()}
        self.gradients: dict[str, Tensor | None] = {
            name: None if p.grad is None else p.grad.clone()
            for name, p in self._network.named_parameters()
            if p.requires_grad
        }
        raise Reached


def _with_gaps(batch: Batch, accumulate: int) -> Batch:
    """The batch, its first rows each without another modality.

    They are the first of every micro-batch of all ranks, so that ranks have different numbers of
    rows that count: with equal ones a mean over a rank's own rows would look right.
    """
    if len(batch.present) < 2:
        return batch  # a row without its only modality is in no batch
    own = len(batch) // accumulate
    place = distributed.rank() * own + torch.arange(len(batch)) % own
    clips, present = dict(batch.clips), dict(batch.present)
    for number, name in enumerate(present):
        absent = place == number
        present[name] = present[name] & ~absent
        clips[name] = clips[name].clone()
        clips[name][absent] = 0
    return replace(batch, clips=clips, present=present)


def ready(recipe: Recipe, folder: Path) -> Ready:
    """A recipe's training, right before its first step."""
    loop = pretraining(recipe, folder, Silent(), Ready)
    with suppress(Reached):
        loop.run()
    assert isinstance(loop, Ready)
    return loop


def first_step(text: str, folder: str, quiet: bool) -> dict[str, Any]:
    """What the first step of a recipe computes, on one rank or on each of several.

    Args:
        text: the recipe, as `Recipe.dump` writes it.
        folder: for the run, the same on all ranks.
        quiet: compute as in evaluation.
    """
    loop = pretraining(reloaded(text), Path(folder), Silent(), FirstStep)
    assert isinstance(loop, FirstStep)
    loop.quiet = quiet
    with suppress(Reached):
        loop.run()
    return {
        "loss": loop.loss,
        "parts": loop.parts,
        "gradients": loop.gradients,
        "drew": loop.drew,
    }


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A run's folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mmssl-check-") as folder:
        yield Path(folder)


def modules_of(loop: Pretraining) -> dict[str, nn.Module]:
    """What a checkpoint holds of a training."""
    return {"encoders": loop.encoders, "objective": loop.objective}
