"""What holds of every objective.

It is checked where it works: behind the recipe's encoders, after the first round has begun, so
that one that relabels has its pseudo-labels. Ranks see parts of a batch, samples lack modalities,
and a run is killed at any time; the loss must not care.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mmssl.contracts import Batch, Features, Losses
from mmssl.pipeline import assembly
from mmssl.recipe.component import ComponentSpec
from mmssl.testing.check import fail, not_applicable, require, shown
from mmssl.testing.crew import SIZE, on_ranks
from mmssl.testing.loops import Ready, first_step, ready, temporary_folder, tiny
from mmssl.testing.material import CLIPS, Material, altered, seed_everything
from mmssl.testing.tensors import difference, own_kernels
from mmssl.training import checkpoints
from mmssl.training.features import autocast, prepare

# What rounding and another order of sums may change of a loss, and of the length of a gradient: it
# goes through batch statistics of a few clips, and past units that rounding switches on or off.
_LOSS, _GRADIENT = 1e-4, 3e-2

# A part may be a share of rows, of which two have scores that tie but for rounding.
_TIES = 2 / CLIPS


class Case:
    """An objective as a recipe names it.

    Args:
        material: of the recipe.
        spec: the objective.
    """

    def __init__(self, material: Material, spec: ComponentSpec) -> None:
        self.material = material
        self.spec = spec

    @cached_property
    def _folder(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(prefix="mmssl-check-")  # gone with the case

    @property
    def folder(self) -> Path:
        """Of the run whose first round has begun."""
        return Path(self._folder.name)

    @cached_property
    def loop(self) -> Ready:
        """The recipe's training at tiny size, before its first step."""
        if self.spec.build().rounds == 0:
            not_applicable("it has no rounds and trains nothing")
        return ready(tiny(self.material.recipe), self.folder)

    @cached_property
    def batch(self) -> Batch:
        """The first one, whole, as the loader gives it."""
        loop = self.loop
        with contextlib.closing(loop.batches(1, loop.objective.balanced_over())) as batches:
            return next(batches).batch

    def without(self, absent: dict[str, slice]) -> Batch:
        """The batch, some rows of some modalities left out as the loader does it."""
        batch = Batch(**vars(self.batch))
        batch.clips, batch.present = dict(batch.clips), dict(batch.present)
        for name, rows in absent.items():
            batch.clips[name], batch.present[name] = (
                batch.clips[name].clone(),
                batch.present[name].clone(),
            )
            batch.clips[name][rows] = self.material.modalities[name].empty()
            batch.present[name][rows] = False
        return batch

    def gaps(self) -> Iterator[tuple[str, Batch]]:
        """Batches in which something is missing, and what."""
        names = list(self.batch.present)
        for name in names:
            yield f"where {name} is absent everywhere", self.without({name: slice(None)})
        for name in names:
            yield (
                f"where {name} is absent in every other row",
                self.without({name: slice(0, None, 2)}),
            )
        if len(names) > 1:
            turns = {name: slice(i, None, len(names)) for i, name in enumerate(names)}
            yield "where each row lacks one modality", self.without(turns)
            first = {name: slice(None) for name in names[1:]}
            yield f"where there is nothing but {names[0]}", self.without(first)
        yield "where nothing is present", self.without({name: slice(None) for name in names})

    def features(self, batch: Batch, *, augment: bool = True) -> tuple[Batch, dict[str, Features]]:
        """Of a batch, as the loop computes them."""
        loop = self.loop
        clips = prepare(batch.clips, loop.modalities, batch.seeds if augment else None)
        if augment:
            batch, clips = loop.objective.augment(batch, clips)
        return batch, loop.encoders(clips, batch.present)

    def losses(self, batch: Batch, *, augment: bool = True, filled: bool = False) -> Losses:
        """Of a batch, as the loop computes them; or with absent rows of features filled."""
        seed_everything(1)
        batch, features = self.features(batch, augment=augment)
        if filled:
            features = {name: _filled(x, batch.present[name]) for name, x in features.items()}
        losses = self.loop.objective.loss(batch, features)
        if not isinstance(losses, Losses):
            fail(f"loss returned {shown(losses)}: return mmssl.Losses(total, parts)")
        return losses

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The objective's, by name."""
        return self.loop.objective.named_buffers()

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """What steps change, such as batch statistics or a memory, is put back."""
        modules = (self.loop.encoders, self.loop.objective)
        kept = [{k: v.clone() for k, v in module.state_dict().items()} for module in modules]
        try:
            yield
        finally:
            for module, state in zip(modules, kept, strict=True):
                module.load_state_dict(state)
                module.zero_grad(set_to_none=True)

    def backward(self, losses: Losses, where: str) -> None:
        """Raises where the gradients are none, or not finite."""
        if not losses.total.requires_grad:
            fail(
                f"the loss has no gradient {where}: where no row counts return a 0 that depends "
                "on the features, such as features.pooled.sum() * 0, or ranks would wait for each "
                "other in the backward pass"
            )
        losses.total.backward()
        loop = self.loop
        parameters = chain(loop.encoders.named_parameters(), loop.objective.named_parameters())
        broken = [
            n for n, p in parameters if p.grad is not None and not bool(p.grad.isfinite().all())
        ]
        if broken:
            fail(
                f"the gradient of {broken[0]} is not finite {where}: guard divisions, roots and "
                "logarithms (torch.where passes on the gradient of the branch it does not take)"
            )


def _value(losses: Losses) -> float:
    return float(losses.total.detach())


def _filled(features: Features, present: Tensor) -> Features:
    """Features with something in the rows of absent samples, where encoders left zeros."""
    generator = torch.Generator().manual_seed(1)  # the global one is the objective's

    def fill(x: Tensor) -> Tensor:
        if x.is_floating_point():
            other = torch.randn(x.shape, generator=generator).to(x)
        elif x.dtype == torch.bool:
            other = ~x
        else:
            return x  # numbers of something: others might be out of range
        return torch.where(present.to(x.device).view(-1, *[1] * (x.ndim - 1)), x, other)

    return features.map(fill)


def _apart(ours: float, theirs: float) -> bool:
    """Do figures differ by more than rounding?"""
    return not abs(ours - theirs) <= _LOSS * max(1e-3, abs(ours))


def fits_recipe(case: Case) -> None:
    """It builds behind the recipe's encoders, and begins its first round"""
    rounds = case.spec.build().rounds
    require(
        isinstance(rounds, int) and rounds >= 0, f"rounds is {rounds!r}: set a whole number >= 0"
    )
    case.loop.objective.plan(samples=10**6, ranks=8)


def has_a_loss(case: Case) -> None:
    """The loss is a finite scalar with a gradient, its parts are detached scalars"""
    with case.undone():
        losses = case.losses(case.batch)
        if not isinstance(losses.total, Tensor) or losses.total.shape != ():
            fail(f"the loss is {shown(losses.total)}: return a scalar, such as its mean")
        require(math.isfinite(_value(losses)), f"the loss is {_value(losses)}")
        for what, figures in (("part", losses.parts), ("count", losses.counts)):
            for name, value in figures.items():
                if not isinstance(value, Tensor) or value.shape != ():
                    fail(f"the {what} {name!r} is {shown(value)}: it must be a scalar tensor")
                require(
                    not value.requires_grad,
                    f"the {what} {name!r} carries a gradient: detach it, or it keeps the graph of "
                    "every step in memory",
                )
                require(math.isfinite(float(value)), f"the {what} {name!r} is {float(value)}")
        unknown = set(losses.counts) - set(losses.parts)
        require(not unknown, f"counts are of parts, and there is none called {sorted(unknown)}")
        case.backward(losses, "")
        trained = [*case.loop.encoders.parameters()]
        if any(p.requires_grad for p in trained) and not case.loop.settings.freeze_encoders:
            require(
                any(p.grad is not None and bool(p.grad.any()) for p in trained),
                "no encoder gets a gradient from the loss: it teaches them nothing; is something "
                "detached?",
            )


def takes_any_presence(case: Case) -> None:
    """A missing modality leaves the loss finite, with the same parts"""
    with case.undone():
        sound = [name for name, buffer in case.buffers() if bool(buffer.isfinite().all())]
        names = list(case.losses(case.batch).parts)
    for where, batch in case.gaps():
        with case.undone():
            losses = case.losses(batch)
            require(
                math.isfinite(_value(losses)),
                f"the loss is {_value(losses)} {where}: divide by the number of rows that "
                "count, at least 1 (mmssl.training.distributed.global_mean)",
            )
            if list(losses.parts) != names:
                fail(
                    f"the loss has the parts {list(losses.parts)} {where}, and {names} otherwise: "
                    "name the same ones in every step; one without rows is 0"
                )
            for name, part in losses.parts.items():
                require(math.isfinite(float(part)), f"the part {name!r} is {float(part)} {where}")
            case.backward(losses, where)
            broken = [n for n, b in case.buffers() if n in sound and not bool(b.isfinite().all())]
            require(not broken, f"{broken[:1]} is finite before a step {where}, and not after it")


def ignores_absent(case: Case) -> None:
    """What stands in absent rows does not change the loss"""
    names = list(case.batch.present)
    if len(names) < 2:
        not_applicable("there is one modality, and a row without it is in no batch")
    for name in names:
        with case.undone():
            batch = case.without({name: slice(0, None, 2)})
            once = case.losses(batch)
        with case.undone():
            other = Batch(**{**vars(batch), "clips": dict(batch.clips)})
            other.clips[name] = case.batch.clips[name]
            again = case.losses(other, filled=True)
        figures = {"the loss": (_value(once), _value(again))}
        for part, value in once.parts.items():
            figures[f"the part {part!r}"] = float(value), float(again.parts[part])
        for what, (before, after) in figures.items():
            if _apart(before, after):
                fail(
                    f"clips or features of rows without {name} change {what} (from {before:.6g} "
                    f"to {after:.6g}): leave out rows by batch.present, also as negatives, in "
                    "means and in batch statistics"
                )


def is_deterministic(case: Case) -> None:
    """The same batch and generator give the same loss and gradients"""
    found: list[tuple[Tensor, list[Tensor]]] = []
    for _ in range(2):
        with case.undone():
            losses = case.losses(case.batch)
            case.backward(losses, "")
            parameters = chain(case.loop.encoders.parameters(), case.loop.objective.parameters())
            gradients = [p.grad.clone() for p in parameters if p.grad is not None]
            found.append((losses.total.detach(), gradients))
    (loss, gradients), (again, others) = found
    apart = difference(again, loss) or next(
        (x for a, b in zip(others, gradients, strict=True) if (x := difference(a, b, 1e-6))), ""
    )
    if apart:
        fail(
            f"the same batch gave another loss or gradient the second time ({apart}): draw from "
            "Draws(batch.seeds, ...) or torch's global generator, and keep all state in buffers"
        )


def validates(case: Case) -> None:
    """In validation it has a loss of the same parts, and changes no state"""
    with case.undone():
        names = list(case.losses(case.batch).parts)
    loop = case.loop
    with case.undone():
        loop.encoders.eval()
        loop.objective.eval()
        before = {k: v.clone() for k, v in loop.objective.state_dict().items()}
        try:
            with torch.no_grad():
                losses = case.losses(case.batch, augment=False)
        finally:
            loop.train_mode()
        require(math.isfinite(_value(losses)), f"the loss is {_value(losses)}")
        require(
            list(losses.parts) == names,
            f"it has the parts {list(losses.parts)} in validation, and {names} in training",
        )
        after = loop.objective.state_dict()
        for name in before:
            if found := difference(after[name], before[name]):
                fail(
                    f"{name} changes in validation ({found}): change buffers only where "
                    "self.training is true and batch.split is 'train'"
                )


def resumes(case: Case) -> None:
    """Built anew from its checkpoint it has the same loss"""
    with case.undone():
        expected = case.losses(case.batch).total.detach()
    again = ready(tiny(case.material.recipe), case.folder)
    twin = Case(case.material, case.spec)
    twin.__dict__ |= {"loop": again, "batch": case.batch}
    with twin.undone():
        found = difference(twin.losses(case.batch).total.detach(), expected)
    if found:
        fail(
            f"resumed from a checkpoint it has another loss ({found}): keep what a step needs in "
            "parameters and buffers, and load the round's files in begin_round where "
            "round.resumed is true"
        )
    own, theirs = case.loop.objective.state_dict(), again.objective.state_dict()
    for name in own:
        require(name in theirs, f"{name} is missing in the state of a resumed objective")


def finishes(case: Case) -> None:
    """Finished, it fits one that has not been trained"""
    recipe = tiny(case.material.recipe)
    with temporary_folder() as folder:
        loop = ready(recipe, folder)
        loop.objective.finish()
        file = folder / "objective.pt"
        checkpoints.write_atomically(
            file, lambda path: torch.save(loop.objective.state_dict(), path)
        )
        state = torch.load(file, weights_only=True)
    train, _ = assembly.build_datasets(recipe)
    fresh = assembly.build_objective(recipe, assembly.build_encoders(recipe), train)
    try:
        fresh.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        fail(
            f"what finish() leaves does not fit an objective that was built and not trained: "
            f"{reason}. Drop in finish() what begin_round or training added"
        )


def computes_in_bf16(case: Case) -> None:
    """In bf16 the loss and its gradients are finite"""
    with case.undone(), own_kernels():
        with autocast(torch.device("cpu"), "bf16"):
            losses = case.losses(case.batch)
        require(
            math.isfinite(_value(losses)),
            f"the loss is {_value(losses)} under bf16 autocast: compute logits, exponentials "
            "and norms in float32 (x.float())",
        )
        case.backward(losses, "under bf16 autocast")


def aligns(case: Case) -> None:
    """Embeddings of a space are [B, D] of one D"""
    loop = case.loop
    with case.undone(), torch.no_grad():
        loop.encoders.eval()
        loop.objective.eval()
        try:
            _, features = case.features(case.batch, augment=False)
            spaces = loop.objective.embeddings(features)
        finally:
            loop.train_mode()
    if not spaces:
        not_applicable("it aligns no modalities")
    for space, embeddings in spaces.items():
        require(len(embeddings) > 1, f"the space {space!r} holds one modality: nothing to compare")
        sizes = {name: tuple(x.shape) for name, x in embeddings.items()}
        width = next(iter(sizes.values()))[-1]
        for name, size in sizes.items():
            if size != (len(case.batch), width):
                fail(
                    f"embeddings in {space!r} are {sizes}: each must be [B, D] = "
                    f"[{len(case.batch)}, {width}], of {name} too"
                )
            require(name in features, f"embeddings in {space!r} are of an unknown modality {name}")


def agrees_on_ranks(case: Case) -> None:
    """Loss and gradients of 1 and 2 ranks are equal"""
    if case.spec.build().rounds == 0:
        not_applicable("it has no rounds and trains nothing")
    text = altered(
        tiny(case.material.recipe, steps=1),
        ["training.sync_batch_norm=true", "training.precision=fp32", "trackers=[]"],
    ).dump()
    for quiet in (False, True):
        with temporary_folder() as folder:
            (folder / "one").mkdir()
            one = first_step(text, str(folder / "one"), quiet)
            if one["drew"] and not quiet:
                continue  # ranks draw for themselves, what cannot be compared: as in evaluation
            if one["drew"]:
                fail(
                    "in evaluation mode the loss draws from torch's global generator, which is "
                    "another one on each rank: draw from Draws(batch.seeds, ...)"
                )
            (folder / "several").mkdir()
            several = on_ranks(first_step, text, str(folder / "several"), quiet)
        break
    for there in several:
        _compare(one, there)


def _compare(one: dict[str, Any], there: dict[str, Any]) -> None:
    rule = (
        "the mean over ranks of a loss must be the loss of the global batch: see "
        "mmssl.training.distributed (global_mean where rows are left out, gather where rows are "
        "compared with each other)"
    )
    for name, ours in {"loss": one["loss"], **one["parts"]}.items():
        theirs = there["loss"] if name == "loss" else there["parts"].get(name)
        if theirs is None:
            fail(f"on {SIZE} ranks the part {name!r} is missing: name the same on every rank")
        share = name != "loss" and 0 <= ours <= 1  # of rows, such as an accuracy
        if _apart(ours, theirs) and not (share and abs(ours - theirs) <= _TIES):
            fail(f"{name} is {ours:.6g} in one process and {theirs:.6g} on {SIZE} ranks; {rule}")
    largest = max(
        (float(g.norm()) for g in one["gradients"].values() if g is not None), default=0.0
    )
    for name, gradient in one["gradients"].items():
        other = there["gradients"][name]
        ours = torch.zeros(()) if gradient is None else gradient
        theirs = torch.zeros(()) if other is None else other
        apart, length = float((ours - theirs).norm()), float(ours.norm())
        if apart > _GRADIENT * length + ROUNDING_OF_GRADIENTS * largest:
            fail(
                f"the gradient of {name} differs by {apart:.2g} between 1 and {SIZE} ranks, at a "
                f"length of {length:.2g}; {rule}"
            )


#: As a share of the largest gradient: of a parameter that hardly matters only noise is left.
ROUNDING_OF_GRADIENTS = 1e-4


TESTS = (
    fits_recipe,
    has_a_loss,
    takes_any_presence,
    ignores_absent,
    is_deterministic,
    validates,
    resumes,
    finishes,
    computes_in_bf16,
    aligns,
    agrees_on_ranks,
)
