"""What holds of callbacks, trackers and launchers: what happens around training.

That a run which names them is killed and gone on with alike is a check of its recipe.
"""

import difflib
import io
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mmssl.contracts import Callback, Launcher, Tracker
from mmssl.errors import UserError
from mmssl.pipeline.rehearsal import differences
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe.component import ComponentSpec
from mmssl.testing.check import fail, not_applicable, require
from mmssl.testing.crew import on_ranks
from mmssl.testing.loops import temporary_folder, tiny
from mmssl.testing.material import Material, altered, reloaded
from mmssl.testing.runs import quoted, threads_of, whole_run
from mmssl.training import checkpoints
from mmssl.training.progress import Silent


class Case:
    """A callback, tracker or launcher as a recipe names it.

    Args:
        material: of the recipe.
        spec: what it says.
    """

    def __init__(self, material: Material, spec: ComponentSpec) -> None:
        self.material = material
        self.spec = spec

    @cached_property
    def made(self) -> Any:
        """The component, built."""
        return self.spec.build()


def overrides_moments(case: Case) -> None:
    """Its methods on_... are moments that there are"""
    known = [name for name in dir(Callback) if name.startswith("on_")]
    for name in dir(case.made):
        if name.startswith("on_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"meant {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            fail(f"{name!r} is never called; {hint}")


def keeps_state(case: Case) -> None:
    """Its state survives a checkpoint"""
    state = case.made.state_dict()
    if not isinstance(state, dict):
        fail(f"state_dict() returned a {type(state).__name__}: return a dict")
    try:
        checkpoints.storable(state)
    except TypeError as error:
        fail(f"a checkpoint cannot hold its state: {error}")
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    twin = case.spec.build()
    twin.load_state_dict(torch.load(file, weights_only=True))
    require(
        _same(twin.state_dict(), state),
        "what load_state_dict() takes back is not what state_dict() gave: let them name the same",
    )


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, torch.Tensor):
        return isinstance(ours, torch.Tensor) and torch.equal(ours.cpu(), theirs.cpu())
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[k], v) for k, v in theirs.items())
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


def agrees_on_ranks(case: Case) -> None:
    """With it the encoders of 2 ranks end up equal"""
    with temporary_folder() as folder:
        text = altered(tiny(case.material.recipe), ["trackers=[]"]).dump()
        first, second = on_ranks(whole_run, text, str(folder))
    require(
        first == second,
        "the ranks' encoders differ at the run's end: what a callback changes of them must follow "
        "from the seed and the step, on every rank, or be sent from rank 0 "
        "(mmssl.training.distributed.from_main)",
    )


def _records() -> list[dict[str, Any]]:
    common = {"round": 1}
    steps = [
        {"kind": "step", "step": step, "epoch": 0.5, "loss": 1.0 / step, "lr": 0.1, **common}
        for step in (1, 2)
    ]
    return [
        {"kind": "round", "step": 0, "video/nmi": 0.5, **common},
        *steps,
        {"kind": "validation", "step": 2, "loss": None, "accuracy": 0.5, **common},
        {"kind": "callback", "step": 2, "figure": 3.0, **common},
    ]


def tracks(case: Case) -> None:
    """It takes every kind of record, and figures that are null"""
    with temporary_folder() as folder:
        tracker: Tracker = case.spec.build()
        tracker.open(folder, 0)
        try:
            for record in _records():
                tracker.track(record)
                checkpoints.storable(tracker.state_dict())
        finally:
            tracker.close()


def reopens(case: Case) -> None:
    """It goes on after a kill, from the step of the checkpoint"""
    with temporary_folder() as folder:
        killed: Tracker = case.spec.build()
        killed.open(folder, 0)
        records = _records()
        for record in records[:2]:
            killed.track(record)
        state = checkpoints.storable(killed.state_dict())
        killed.track(records[2])  # which is cut off, and tracked again
        again: Tracker = case.spec.build()
        again.load_state_dict(state)
        again.open(folder, 1)
        for record in records[2:]:
            again.track(record)
        again.close()
        killed.close()


def stays_in_folder(case: Case) -> None:
    """Without being told otherwise it writes into the run's folder alone"""
    here = Path.cwd()
    before = set(here.iterdir())
    with temporary_folder() as folder:
        tracker: Tracker = case.spec.build()
        tracker.open(folder, 0)
        for record in _records():
            tracker.track(record)
        tracker.close()
    new = set(here.iterdir()) - before
    if new:
        fail(
            f"it wrote {', '.join(sorted(path.name for path in new))} into the working directory: "
            "a run's files belong into the folder that open() is given"
        )


def says_its_ranks(case: Case) -> None:
    """It says how many ranks a stage has, and checks a recipe"""
    launcher: Launcher = case.made
    for stage in ("pretrain", *case.material.recipe.evaluations):
        ranks = launcher.ranks_of(stage)
        require(
            isinstance(ranks, int) and ranks >= 1,
            f"ranks_of({stage!r}) is {ranks!r}: a stage has one process at least",
        )
    require(isinstance(launcher.here, bool), "here must be true or false: does it compute here?")
    try:
        launcher.check(case.material.recipe)
    except UserError as error:
        not_applicable(f"its check says that it cannot work here: {error}")


def launches(case: Case) -> None:
    """A run that it launches is the run that this process would make"""
    launcher: Launcher = case.made
    if not launcher.here:
        not_applicable("it computes elsewhere: try it there by `mmssl rehearse`")
    undisturbed = case.material.run.stage("pretrain")
    if launcher.ranks_of("pretrain") > 1:
        not_applicable("of several ranks each draws its own dropout: nothing to compare with")
    with temporary_folder() as folder, threads_of(case.material.recipe):
        recipe = reloaded(case.material.run.recipe.dump(), [f"runs={quoted(folder)}"])
        run = RunFolder(recipe)
        with run.locked():
            run.prepare()
            launcher.launch(recipe, ["pretrain"], Silent())
        require(run.finished("pretrain"), "launch() returned before the stage was finished")
        for found in differences(undisturbed, run.path):
            fail(f"launched by it, the run is another one: {found}")


CALLBACK_TESTS = (overrides_moments, keeps_state, agrees_on_ranks)
TRACKER_TESTS = (tracks, reopens, keeps_state, stays_in_folder)
LAUNCHER_TESTS = (says_its_ranks, launches)
