"""Callbacks: when they are called, what they may do, and that kills change nothing of it."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe_components
import torch
from ranks import RankFailed, on_ranks
from safetensors.torch import load_file
from test_training import Killed, kill_at
from torch import Tensor
from toy_runs import changed, outcome, pretraining
from toys import Agreement

from mmssl.contracts import Callback, Losses, RunContext, Tracker
from mmssl.errors import UserError
from mmssl.pipeline import assembly
from mmssl.pipeline.stages import placed
from mmssl.recipe import load
from mmssl.training import checkpoints, distributed
from mmssl.training.interruption import Interrupted
from mmssl.training.log import read_log
from mmssl.training.loop import Pretraining
from mmssl.training.progress import Silent


class Average(Callback):
    """Weights of the encoders, averaged over steps; the run keeps the average."""

    def __init__(self, decay: float = 0.8) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}

    def on_run_start(self, run: RunContext) -> None:
        if not run.resumed:
            self.weights = {n: p.detach().clone() for n, p in run.encoders.named_parameters()}

    def on_step_end(self, run: RunContext, losses: Losses) -> None:
        for name, parameter in run.encoders.named_parameters():
            self.weights[name].lerp_(parameter.detach(), 1 - self.decay)
        if run.step % 5 == 0:
            run.report({"distance": self.distance(run)})

    def on_round_end(self, run: RunContext) -> None:
        run.report({"end of round": float(run.round), "distance": self.distance(run)})

    def on_run_end(self, run: RunContext) -> None:
        with torch.no_grad():
            for name, parameter in run.encoders.named_parameters():
                parameter.copy_(self.weights[name])
        run.report({"kept": 1.0})

    def distance(self, run: RunContext) -> float:
        pairs = [(p.detach(), self.weights[n]) for n, p in run.encoders.named_parameters()]
        return float(sum(((a - b) ** 2).sum() for a, b in pairs))

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights = dict(state["weights"])


class Notes(Callback):
    """What it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.weights: list[dict[str, Tensor]] = []

    def _note(self, what: str, run: RunContext, *more: Any) -> None:
        assert run.folder.is_dir()
        assert (run.seed, run.rounds, run.device.type) == (3, run.objective.rounds, "cpu")
        assert run.encoders.training
        self.seen.append((what, run.round, run.step, run.epoch, *more))

    def on_run_start(self, run: RunContext) -> None:
        self.seen.append(("start", run.round, run.step, run.epoch, run.resumed))
        self._keep(run)

    def on_step_end(self, run: RunContext, losses: Losses) -> None:
        assert not losses.total.requires_grad
        self._note("step", run, set(losses.parts))
        self._keep(run)

    def on_round_end(self, run: RunContext) -> None:
        self._note("round", run)

    def on_checkpoint(self, run: RunContext, path: Path) -> None:
        state = checkpoints.load(path)
        assert state["state"]["global_step"] == run.step
        self.seen.append(("saved", run.round, run.step, run.epoch))

    def on_run_end(self, run: RunContext) -> None:
        self.seen.append(("end", run.round, run.step, run.epoch))

    def _keep(self, run: RunContext) -> None:
        self.weights.append({n: p.detach().clone() for n, p in run.encoders.named_parameters()})


# 6 steps an epoch.
def short(folder: Path, **more: Any) -> Any:
    more = {"objective": Agreement(), "epochs": 1, **more}
    return pretraining(folder, **more)


def test_each_moment_comes_in_its_order(tmp_path: Path) -> None:
    notes = Notes()
    short(tmp_path / "run", callbacks={"notes": notes}).run()
    parts = {"distance"}
    sixth = 1 / 6
    steps = [("step", 1, i, pytest.approx(i * sixth), parts) for i in range(1, 7)]
    assert (
        notes.seen
        == [
            ("start", 1, 0, 0.0, False),
            ("saved", 1, 0, 0.0),  # before the round
            ("saved", 1, 0, 0.0),  # when it has begun
            *steps[:4],
            ("saved", 1, 4, pytest.approx(4 * sixth)),
            *steps[4:],
            ("round", 1, 6, 1.0),
            ("saved", 1, 6, 0.0),
            ("end", 1, 6, 0.0),
        ]
    )
    notes.seen.clear()
    short(tmp_path / "run", callbacks={"notes": notes}).run()
    assert notes.seen == [("start", 1, 6, 0.0, True), ("end", 1, 6, 0.0)]


def test_a_callback_changes_what_is_kept(tmp_path: Path) -> None:
    """The average is that of its formula, over weights that somebody else noted."""
    notes, average = Notes(), Average(0.7)
    short(tmp_path / "run", callbacks={"average": average, "notes": notes}).run()
    kept = load_file(tmp_path / "run" / "checkpoints" / "encoders.safetensors")
    count = len(notes.weights)
    assert count == 7
    for name in notes.weights[0]:
        powers = [0.7 ** (count - 1 - i) * (1.0 if i == 0 else 0.3) for i in range(count)]
        expected = sum(p * w[name].double() for p, w in zip(powers, notes.weights, strict=True))
        assert torch.allclose(kept[name].double(), expected, atol=1e-6), name
    assert not torch.equal(kept[name], notes.weights[-1][name])
    short(tmp_path / "without").run()
    plain = load_file(tmp_path / "without" / "checkpoints" / "encoders.safetensors")
    assert all(torch.equal(plain[name], weight) for name, weight in notes.weights[-1].items())


def result(folder: Path) -> tuple[Any, ...]:
    encoders = folder / "checkpoints" / "encoders.safetensors"
    return *outcome(folder), encoders.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    pretraining(folder, callbacks={"average": Average()}).run()
    found = result(folder)
    kinds = [record["kind"] for record in found[0]]
    assert (kinds.count("step"), kinds.count("callback")) == (36, 7 + 3 + 1)
    return found


# 3 rounds of 12 steps, a checkpoint every 4 steps.
@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("mmssl.training.loop.Pretraining.step", 7),
        ("mmssl.training.loop.Pretraining._begin_round", 2),
        ("mmssl.training.checkpoints.save", 6),
        ("test_callbacks.Average.on_run_start", 1),
        ("test_callbacks.Average.on_step_end", 20),
        ("test_callbacks.Average.on_round_end", 2),
        ("test_callbacks.Average.on_run_end", 1),
        ("mmssl.contracts.Callback.on_checkpoint", 7),
        ("mmssl.training.loop.save_weights", 1),  # after on_run_end
    ],
)
def test_a_kill_changes_nothing_of_what_callbacks_did(
    where: str,
    count: int,
    undisturbed: tuple[Any, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, where, count)
        with pytest.raises(Killed):
            pretraining(folder, callbacks={"average": Average()}).run()
    pretraining(folder, callbacks={"average": Average()}).run()
    assert result(folder) == undisturbed


class Stops(Callback):
    """Asks the process to stop at a step, and notes whether it was let to its end."""

    def __init__(self, step: int | None) -> None:
        self.step, self.ended = step, False

    def on_step_end(self, run: RunContext, losses: Losses) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_run_end(self, run: RunContext) -> None:
        self.ended = True


def test_only_the_process_that_completes_a_run_ends_it(tmp_path: Path) -> None:
    stops = Stops(step=3)
    with pytest.raises(Interrupted):
        short(tmp_path / "run", callbacks={"stops": stops}).run()
    assert not stops.ended
    stops = Stops(step=None)
    short(tmp_path / "run", callbacks={"stops": stops}).run()
    assert stops.ended


class Fails(Callback):
    """Raises at a moment."""

    def __init__(self, moment: str, error: Exception) -> None:
        self.error = error
        setattr(self, moment, self.fail)

    def fail(self, *arguments: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "moment",
    ["on_run_start", "on_step_end", "on_round_end", "on_checkpoint", "on_run_end", "state_dict"],
)
def test_a_callback_that_fails_is_named(moment: str, tmp_path: Path) -> None:
    fine, fails = Callback(), Fails(moment, UserError("out of luck"))
    with pytest.raises(UserError, match=r"^callbacks.1: out of luck$"):
        short(tmp_path / "one", callbacks={"fine": fine, "my/fails": fails}).run()
    fails = Fails(moment, ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError, match="a defect") as caught:
        short(tmp_path / "two", callbacks={"my/fails": fails}).run()
    note = f"(raised by {moment} of the callback 'my/fails', callbacks.0)"
    assert caught.value.__notes__ == [note]


def test_what_cannot_be_read_again_is_never_saved(tmp_path: Path) -> None:
    class Counts(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"count": np.int64(3)}

    with pytest.raises(TypeError, match=r"state_dict\(\)\['count'\] is a numpy.int64") as caught:
        short(tmp_path / "run", callbacks={"my/counts": Counts()}).run()
    assert "my/counts" in caught.value.__notes__[0]
    assert not list(tmp_path.glob("run/checkpoints/*.pt"))


def test_names_of_figures_that_every_record_has_are_refused(tmp_path: Path) -> None:
    class Reports(Callback):
        def on_step_end(self, run: RunContext, losses: Losses) -> None:
            run.report({"step": 3.0})

    with pytest.raises(ValueError, match="a figure cannot be called 'step'"):
        short(tmp_path / "run", callbacks={"reports": Reports()}).run()


class Everywhere(Average):
    """Meets the other ranks at every moment, and notes who was there."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[Any] = []

    def on_step_end(self, run: RunContext, losses: Losses) -> None:
        super().on_step_end(run, losses)
        ranks = distributed.share_objects((distributed.rank(), run.step))
        loss = float(distributed.mean(losses.total))
        self.met.append((ranks, loss, self.distance(run)))

    def on_checkpoint(self, run: RunContext, path: Path) -> None:
        self.met.append(distributed.share_objects((distributed.rank(), run.step, path.name)))


def on_a_rank(folder: Path) -> list[Any]:
    callback = Everywhere()
    short(folder, callbacks={"c": callback}, dropout=0.0, settings=changed(log_every=1)).run()
    return callback.met


def test_every_rank_is_called_at_the_same_points(tmp_path: Path) -> None:
    one, other = on_ranks(2, on_a_rank, tmp_path / "run")
    assert one == other
    steps = [met for met in one if isinstance(met, tuple)]
    assert [ranks for ranks, *_ in steps] == [[(0, i), (1, i)] for i in range(1, 7)]
    saved = [met for met in one if isinstance(met, list)]
    assert saved[-1] == [(0, 6, "step-00000006.pt"), (1, 6, "step-00000006.pt")]
    logged = [r["loss"] for r in read_log(tmp_path / "run") if r["kind"] == "step"]
    assert [loss for _, loss, _ in steps] == pytest.approx(logged)
    (alone,) = on_ranks(1, on_a_rank, tmp_path / "alone")
    distances = [met[2] for met in alone if isinstance(met, tuple)]
    assert [distance for *_, distance in steps] == pytest.approx(distances, rel=1e-4)


class LastFails(Callback):
    """Is at its end on every rank but the last one."""

    def on_run_end(self, run: RunContext) -> None:
        if distributed.rank() == distributed.size() - 1:
            raise UserError("out of luck")


def failing_on_a_rank(folder: Path) -> None:
    short(folder, callbacks={"c": LastFails()}).run()


def test_a_run_that_ends_badly_on_one_rank_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(RankFailed) as caught:
        on_ranks(2, failing_on_a_rank, tmp_path / "run")
    assert caught.value.errors[1] == "UserError: callbacks.0: out of luck"
    assert caught.value.errors[0]
    assert (tmp_path / "run" / "checkpoints" / "step-00000006.pt").is_file()
    assert not list(tmp_path.rglob("*.safetensors"))


class Counts(Tracker):
    """Counts records, and remembers the count."""

    def __init__(self) -> None:
        self.count, self.opened, self.loaded = 0, -1, False

    def open(self, folder: Path, step: int) -> None:
        self.opened = step

    def track(self, record: Mapping[str, Any]) -> None:
        self.count += 1

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert self.opened == -1, "states are loaded before a tracker is opened"
        self.count, self.loaded = state["count"], True


def test_trackers_keep_a_state_and_may_change_between_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    first, second = Counts(), Counts()
    with monkeypatch.context() as patch:
        kill_at(patch, "mmssl.training.loop.Pretraining.step", 7)  # behind the checkpoint at 4
        with pytest.raises(Killed):
            short(folder, epochs=2, trackers={"my/counts": first, "my/counts#2": second}).run()
    assert (first.count, first.loaded) == (6, False)
    gone_on, new = Counts(), Counts()
    short(folder, epochs=2, trackers={"other/counts": new, "my/counts": gone_on}).run()
    records = len(read_log(folder))
    assert (gone_on.count, gone_on.opened, gone_on.loaded) == (records, 4, True)
    assert (new.count, new.opened, new.loaded) == (records - 4, 4, False)


class Unreachable(Counts):
    """Fails to close, or to tell its state after some times."""

    def __init__(self, error: Exception, *, tells: int | None = None) -> None:
        super().__init__()
        self.error, self.tells = error, tells
        self.told, self.signals_wait = 0, False

    def close(self) -> None:
        self.signals_wait = signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        if self.tells is None:
            raise self.error

    def state_dict(self) -> dict[str, Any]:
        self.told += 1
        if self.tells is not None and self.told > self.tells:
            raise self.error
        return super().state_dict()


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def heard(job: Pretraining) -> list[str]:
    job.progress = progress = Heard()
    return progress.lines


def test_trackers_that_fail_to_close_leave_a_stop_a_stop(tmp_path: Path) -> None:
    first, second = Unreachable(UserError("no answer")), Unreachable(OSError("nor here"))
    job = short(
        tmp_path / "run",
        callbacks={"stops": Stops(step=3)},
        trackers={"my/first": first, "my/second": second},
    )
    lines = heard(job)
    with pytest.raises(Interrupted):
        job.run()
    assert lines == ["tracker my/first: no answer", "tracker my/second: OSError: nor here"]
    assert first.signals_wait
    assert second.signals_wait


def test_trackers_that_fail_to_close_leave_another_error_that_error(tmp_path: Path) -> None:
    fails = Fails("on_step_end", UserError("out of luck"))
    job = short(
        tmp_path / "run",
        callbacks={"fails": fails},
        trackers={"my/far": Unreachable(UserError("no answer"))},
    )
    lines = heard(job)
    with pytest.raises(UserError, match="out of luck"):
        job.run()
    assert lines == ["tracker my/far: no answer"]


def test_a_whole_run_tells_of_trackers_that_fail_to_close(tmp_path: Path) -> None:
    far, farther = Unreachable(UserError("no answer")), Unreachable(UserError("nor here"))
    job = short(tmp_path / "run", trackers={"my/far": far, "my/farther": farther})
    lines = heard(job)
    with pytest.raises(UserError, match="no answer"):
        job.run()
    assert lines == ["tracker my/farther: nor here"]


@pytest.mark.parametrize(("tells", "step"), [(0, 0), (2, 4)])  # two are before the first step
def test_a_tracker_without_a_state_does_not_cost_the_checkpoint(
    tmp_path: Path, tells: int, step: int
) -> None:
    """The run ends behind it, and goes on there with what the tracker told last, if anything."""
    folder = tmp_path / "run"
    far = Unreachable(UserError("no answer"), tells=tells)
    with pytest.raises(UserError, match="no answer"):
        short(folder, trackers={"my/far": far}).run()
    assert (folder / "checkpoints" / f"step-{step:08d}.pt").is_file()
    gone_on = Counts()
    short(folder, trackers={"my/far": gone_on}).run()
    assert (gone_on.opened, gone_on.loaded) == (step, tells > 0)
    # Without those of the steps between the two checkpoints.
    assert gone_on.count == len(read_log(folder)) - step


def test_a_tracker_without_a_state_leaves_a_stop_a_stop(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    far = Unreachable(UserError("no answer"), tells=2)
    job = short(folder, callbacks={"stops": Stops(step=3)}, trackers={"my/far": far})
    lines = heard(job)
    with pytest.raises(Interrupted):
        job.run()
    assert lines == ["tracker my/far: no answer"]
    assert (folder / "checkpoints" / "step-00000003.pt").is_file()


def test_states_of_a_list_are_told_apart_by_component_and_place(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    listed = "trackers: [tiny/tensorboard, {use: tensorboard, tag: x}]\n"
    file.write_text(recipe_components.RECIPE + listed)
    recipe = load(file, environ={}, registry=recipe_components.registry())
    named = assembly.build_named(recipe.trackers)
    assert [(name, board.tag) for name, board in named.items()] == [
        ("tiny/tensorboard", ""),
        ("tiny/tensorboard#2", "x"),
    ]
    # What one of a list says of a mistake, as callbacks do, is told with its place.
    told = placed(recipe, UserError("trackers.1: out of luck"))
    assert str(told) == f"{file}:20: trackers.1: out of luck"
