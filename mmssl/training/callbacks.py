"""A run's callbacks: what they are lent, and calling them at the loop's moments."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mmssl.contracts import Callback, Objective
from mmssl.errors import UserError
from mmssl.training import checkpoints
from mmssl.training.encoders import Encoders

if TYPE_CHECKING:
    from mmssl.training.loop import Pretraining

Moment = Literal["on_run_start", "on_step_end", "on_round_end", "on_checkpoint", "on_run_end"]

_TAKEN = ("kind", "step", "round")


@dataclass
class Lent:
    """What pretraining lends: see `mmssl.contracts.RunContext`."""

    training: "Pretraining"
    resumed: bool

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.training.folder

    @property
    def round(self) -> int:
        """Which one is at work, from 1."""
        return self.training.state.round

    @property
    def rounds(self) -> int:
        """How many there are."""
        return self.training.objective.rounds

    @property
    def step(self) -> int:
        """Optimizer steps done in the run."""
        return self.training.state.global_step

    @property
    def epoch(self) -> float:
        """Epochs done in the round."""
        return self.training.state.step / self.training.settings.steps_per_epoch

    @property
    def device(self) -> torch.device:
        """Where encoders and objective are."""
        return self.training.device

    @property
    def seed(self) -> int:
        """The recipe's."""
        return self.training.settings.seed

    @property
    def encoders(self) -> Encoders:
        """As they are trained."""
        return self.training.encoders

    @property
    def objective(self) -> Objective:
        """As it is trained."""
        return self.training.objective

    def say(self, text: str) -> None:
        """Show a line; ranks but 0 have nobody who watches."""
        self.training.progress.say(text)

    def report(self, figures: Mapping[str, float]) -> None:
        """Put figures into the log and the trackers."""
        if taken := [name for name in _TAKEN if name in figures]:
            raise ValueError(f"a figure cannot be called {taken[0]!r}: every record has it")
        record = {"kind": "callback", "step": self.step, "round": self.round, **figures}
        self.training.log.write(record)


class Callbacks:
    """Calls each of a run's callbacks, in their order.

    Args:
        callbacks: by the names that their states have in the checkpoint.
        lent: to each of them.
    """

    def __init__(self, callbacks: Mapping[str, Callback], lent: Lent) -> None:
        self._callbacks = callbacks
        self._lent = lent

    def __call__(self, moment: Moment, *arguments: Any) -> None:
        """One of `mmssl.Callback`'s methods of each.

        Raises:
            UserError: of a callback, with its path in the recipe. Its other exceptions have a note
                that says whose they are.
        """
        for place, (name, callback) in enumerate(self._callbacks.items()):
            with _named(place, name, moment):
                getattr(callback, moment)(self._lent, *arguments)

    def state_dict(self) -> dict[str, Any]:
        """Their states, by name."""
        states = {}
        for place, (name, callback) in enumerate(self._callbacks.items()):
            with _named(place, name, "state_dict"):
                states[name] = checkpoints.storable(callback.state_dict())
        return states

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Give each its own back."""
        for place, (name, callback) in enumerate(self._callbacks.items()):
            with _named(place, name, "load_state_dict"):
                callback.load_state_dict(states[name])


@contextmanager
def _named(place: int, name: str, method: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"callbacks.{place}: {error}") from error
    except Exception as error:
        error.add_note(f"(raised by {method} of the callback {name!r}, callbacks.{place})")
        raise
