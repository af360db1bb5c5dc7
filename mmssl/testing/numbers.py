"""What holds of optimizers and schedules: functions whose state is all in the checkpoint."""

import io
import math

import torch
from torch import nn

from mmssl.recipe.component import ComponentSpec
from mmssl.testing.check import fail, require
from mmssl.testing.tensors import difference
from mmssl.training.schedules import Place

_STEPS = 4


class Case:
    """An optimizer or a schedule as a recipe names it.

    Args:
        spec: what it says.
    """

    def __init__(self, spec: ComponentSpec) -> None:
        self.spec = spec

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """For a network of two parameters, each in a group of its own, one of them with options."""
        weight, bias = network.parameters()
        optimizer: torch.optim.Optimizer = self.spec.build(
            [{"params": [weight]}, {"params": [bias], "lr": 1e-4}]
        )
        return optimizer


def _network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def _train(network: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        (network(inputs) - inputs[:, :3]).square().mean().backward()
        optimizer.step()


def has_groups(case: Case) -> None:
    """It makes a torch optimizer of parameter groups, which keep their options"""
    optimizer = case.optimizer(_network())
    if not isinstance(optimizer, torch.optim.Optimizer):
        fail(f"it returned a {type(optimizer).__name__}: return a torch.optim.Optimizer")
    require(
        len(optimizer.param_groups) == 2 and all("lr" in g for g in optimizer.param_groups),
        "its param_groups are not those that it was given, each with its 'lr': the core sets the "
        "learning rate there at every step",
    )
    require(
        optimizer.param_groups[1]["lr"] == 1e-4,
        "a group's own lr was overwritten: pass groups on as they are (training.groups sets it)",
    )
    require(
        "lr" in case.spec.parameters,
        "it has no parameter 'lr': recipes set the peak learning rate by it",
    )


def learns(case: Case) -> None:
    """Its steps are finite and change what has a gradient, and that alone"""
    network = _network()
    optimizer = case.optimizer(network)
    before = [p.detach().clone() for p in network.parameters()]
    _train(network, optimizer, 0, _STEPS)
    for old, new in zip(before, network.parameters(), strict=True):
        require(bool(new.isfinite().all()), "a few steps on a linear map give no finite numbers")
        require(not torch.equal(old, new), "its steps change nothing")
    after = [p.detach().clone() for p in network.parameters()]
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    for old, new in zip(after, network.parameters(), strict=True):
        if found := difference(new.detach(), old):
            fail(
                f"it changes parameters without a gradient ({found}): pass over those whose grad "
                "is None; the objective has frozen them"
            )


def resumes_steps(case: Case) -> None:
    """Its state dict holds all that later steps depend on"""
    network = _network()
    optimizer = case.optimizer(network)
    _train(network, optimizer, 0, _STEPS)
    file = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, file)
    _train(network, optimizer, _STEPS, 2 * _STEPS)
    twin = _network()
    again = case.optimizer(twin)
    file.seek(0)
    try:
        state = torch.load(file, weights_only=True)
    except Exception as error:
        fail(f"its state dict cannot be read safely: keep tensors and numbers in it ({error})")
    twin.load_state_dict(state["network"])
    again.load_state_dict(state["optimizer"])
    _train(twin, again, _STEPS, 2 * _STEPS)
    for theirs, ours in zip(network.parameters(), twin.parameters(), strict=True):
        if found := difference(ours.detach(), theirs.detach()):
            fail(
                f"resumed from its state dict it takes other steps ({found}): keep momentum and "
                "counters in self.state and param_groups"
            )


def is_a_factor(case: Case) -> None:
    """Its factors are finite numbers between 0 and 1, the same for the same step"""
    for steps_per_epoch, epochs in ((1, 1), (10, 3), (7, 20)):
        for step in range(steps_per_epoch * epochs + 1):
            at = Place(step, steps_per_epoch, epochs, 0.25)
            factor, again = case.spec.build(at), case.spec.build(at)
            if not isinstance(factor, int | float) or not math.isfinite(factor):
                fail(
                    f"at step {step} of {epochs} epochs the factor is {factor!r}, no finite number"
                )
            require(
                0 <= factor <= 1 + 1e-9,
                f"at step {step} of {epochs} epochs of {steps_per_epoch} steps the factor is "
                f"{factor:.4g}: training.optimizer.lr is the peak, so it must be between 0 and 1",
            )
            require(
                factor == again,
                f"at step {step} the factor is {factor}, and {again} when asked again: make it a "
                "function of the place alone, as a resumed run knows no more",
            )


OPTIMIZER_TESTS = (has_groups, learns, resumes_steps)
SCHEDULE_TESTS = (is_a_factor,)
