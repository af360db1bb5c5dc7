"""A rehearsal of preemption: a recipe at tiny size, killed again and again, beside one left alone.

::

    undisturbed   ------------------------------------------------>  log, clusters, encoders
    disturbed     ---x   ----x   ------x   ---x   ---------------->  the same?
                   kill   preempt  kill      kill
                          (SIGUSR2) in relabelling

Both are runs of the command line, in processes of their own. What is done to the second one
follows what is seen in its folder, steps in the log and files of clusters, and not the clock.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mmssl.errors import UserError
from mmssl.recipe import Recipe
from mmssl.training.interruption import AGAIN, Interrupted, StopRequests, stop_requests
from mmssl.training.log import read_log
from mmssl.training.progress import Progress

# Steps of one round, or of two together, and clips of a step for each rank and micro-batch, at
# most: few enough for a CPU, more steps than what is done to a run needs, and more than one clip
# for batch statistics.
_STEPS, _CLIPS, _CHECKPOINT_EVERY = 24, 4, 2

# Rounds, where the objective lets them be set: of the second one on, labels depend on training.
_ROUNDS = 2

# Seconds between two looks at a run's folder, and between two drawings of what is seen there.
_LOOK_EVERY, _DRAW_EVERY = 0.002, 0.5

# How long ranks may take to end after they lost one, and processes after they were killed.
_ENDS_WITHIN, _GONE_WITHIN = 120.0, 10.0

# What the clock decides.
_TIMES = ("clips_per_second", "data_wait")


def settings(recipe: Recipe, *, ranks: int, samples: int) -> list[str]:
    """What makes a recipe small enough to rehearse, as overrides; nothing is made larger but this.

    A step has a clip for each rank and micro-batch at least; a single round has 24 steps, each of
    several 12.

    Args:
        recipe: the one that is to be run in earnest.
        ranks: processes that train together.
        samples: of the training data, at most.

    Raises:
        UserError: its objective trains nothing.
    """
    training, data = recipe.training, recipe.data
    parts = training.accumulate * ranks
    batch = parts * max(1, min(_CLIPS, training.batch_size // parts))
    rounds: int = recipe.objective.build().rounds
    if rounds == 0:
        raise recipe.error(("objective",), "trains nothing: there is nothing to rehearse")
    fields: dict[str, Any] = {
        "data.limit": min(samples, data.limit or samples),
        "training.batch_size": batch,
        "training.epoch_size": batch * _steps(rounds),
        "training.epochs": 1,
        "training.log_every": 1,
        "training.checkpoint.steps": _CHECKPOINT_EVERY,
        "training.compile": "false",
        "device": "cpu",
        "evaluations": "null",
        "trackers": "[]",
        "launch": "inline" if ranks == 1 else f"{{use: local, processes: {ranks}}}",
    }
    if data.validation is not None:
        fields |= {"data.validation": "null", "training.early_stop": "null"}
    if training.final_round is not None and training.final_round.epochs is not None:
        fields["training.final_round.epochs"] = 1
    if "rounds" in recipe.objective.parameters:
        fields["objective.rounds"] = min(_ROUNDS, rounds)
    return [f"{field}={value}" for field, value in fields.items()]


def _steps(rounds: int) -> int:
    """Of a round, of so many."""
    return _STEPS if rounds == 1 else _STEPS // 2


@dataclass(frozen=True)
class Report:
    """What a rehearsal found.

    Attributes:
        events: what was done to the run, when, and where it went on: rows of a table.
        compared: what both runs left, in words.
        differences: between them, the first of each kind; empty where there is none.
    """

    events: list[tuple[str, str, str]]
    compared: str
    differences: list[str]


def rehearse(recipe: Recipe, command: list[str], *, ranks: int, progress: Progress) -> Report:
    """Run a small recipe twice, one time with kills and a preemption, and compare.

    Both run folders are removed, unless something differs or fails: then it is said where they
    are.

    Args:
        recipe: with its `settings`.
        command: what starts it, to which ``runs`` and ``name`` are added.
        ranks: processes that train together; of more than one, one is killed alone, too.
        progress: who watches.

    Raises:
        UserError: the recipe does not run at this size even if left alone, or nothing can be
            written.
        Interrupted: a signal came; nothing is left.
    """
    with stop_requests() as stop:
        return _rehearse(recipe, command, ranks, stop, progress)


def _rehearse(
    recipe: Recipe, command: list[str], ranks: int, stop: StopRequests, progress: Progress
) -> Report:
    try:
        Path(recipe.runs).mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f"{recipe.name}.rehearsal-", dir=recipe.runs))
    except OSError as error:
        reason = f"({error.strerror}): set runs=..."
        raise UserError(f"the folder {recipe.runs} cannot be written {reason}") from error
    command = [*command, f"runs={_quoted(place.absolute())}"]
    rounds: int = recipe.objective.build().rounds
    undisturbed, disturbed = (
        _Run(place / name, command, rounds, stop, progress) for name in ("undisturbed", "disturbed")
    )
    keep = True
    try:
        progress.say(f"first left alone, for {_steps(rounds) * rounds} steps")
        undisturbed.start()
        undisturbed.goes_on_until(lambda: False)
        if undisturbed.code != 0:
            raise UserError(
                f"left alone, the run ended with {undisturbed.code}: {undisturbed.last_line()} "
                f"(it had {recipe.data.limit} samples at most: --samples changes that)"
            )
        progress.say("now the same, disturbed")
        report = _disturb(disturbed, ranks, undisturbed.path)
        keep = bool(report.differences)
    except (Interrupted, KeyboardInterrupt):
        keep = False
        raise
    finally:
        undisturbed.kill()
        disturbed.kill()
        if keep:
            progress.say(f"kept, with all that was said: {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    return report


def _quoted(path: Path) -> str:
    """A path that means itself on the command line."""
    return json.dumps(str(path), ensure_ascii=False).replace("${", "$${")


class _Broken(Exception):
    """The disturbed run did what no run may; the text says what."""


class _Run:
    """One of the two runs: started, watched by its folder, struck, and started again.

    Args:
        path: its folder.
        command: what starts it, but for its name.
        rounds: how many it has.
        stop: is the rehearsal to end? Only looked at where a process is known, and can be killed.
        progress: who watches.
    """

    def __init__(
        self,
        path: Path,
        command: list[str],
        rounds: int,
        stop: StopRequests,
        progress: Progress,
    ) -> None:
        self.path = path
        self.rounds = rounds
        self.steps = _steps(rounds)  # of a round
        self.progress = progress
        self._stop = stop
        self._output = path.with_name(f"{path.name}.txt")
        self._command = [*command, f"name={path.name}"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The one that was started last."""
        assert self._process is not None
        return self._process

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def start(self) -> None:
        """Start it, or go on with it: the command is the same."""
        with open(self._output, "ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a group that can be killed, and that Ctrl-C spares
            )

    def goes_on_until(self, seen: Callable[[], bool], within: float | None = None) -> bool | None:
        """Watch it, and show how far it is.

        Args:
            seen: what is waited for.
            within: seconds; None waits as long as it takes.

        Returns:
            True as soon as it was seen, None when the run ended before, False when time is up.

        Raises:
            Interrupted: a signal came.
        """
        began = drawn = time.monotonic()
        done = self.saved()
        title = f"{self.path.name} run"
        with self.progress.task(title, self.steps * self.rounds, done) as advance:
            while True:
                ended = self.code is not None  # before looking at what it left
                if seen():
                    return True
                if ended:
                    return None
                if self._stop.is_set():
                    raise self._stop.interrupted()
                now = time.monotonic()
                if within is not None and now - began > within:
                    return False
                if now - drawn > _DRAW_EVERY:
                    step, drawn = self.step(), now
                    # The log still has steps that the run is about to cut off, and make again.
                    advance(max(0, step - done), round=self._doing(step))
                    done = max(done, step)
                time.sleep(_LOOK_EVERY)

    def step(self) -> int:
        """The last one in its log; 0 before the first."""
        steps = [record["step"] for record in read_log(self.path) if record["kind"] == "step"]
        return int(steps[-1]) if steps else 0

    def saved(self) -> int:
        """The step of its newest checkpoint, where it would go on."""
        found = self.path.glob("checkpoints/step-*.pt")
        return max((int(path.stem.removeprefix("step-")) for path in found), default=0)

    def clusters(self, number: int) -> int:
        """How many files a round's relabelling has left so far."""
        return sum(1 for _ in self.path.glob(f"clusters/round-{number:02d}/*"))

    def _doing(self, step: int) -> str:
        number = min(step // self.steps + 1, self.rounds)
        if step == self.steps * self.rounds:
            return f"{number} ends"
        if step % self.steps:
            return f"{number} trains"
        begun = (self.path / "clusters" / f"round-{number:02d}").is_dir()
        return f"{number} relabels" if begun else f"{number} starts"

    def last_line(self) -> str:
        """What it said last."""
        lines = self._output.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return last.removeprefix("mmssl: ").strip()

    def kill(self) -> None:
        """``kill -9`` of all its processes that live, until they are gone."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + _GONE_WITHIN
        while _processes(self.process.pid) and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY)

    def preempt(self) -> None:
        """Tell it as a cluster would; it is to save its state and to end."""
        self.process.send_signal(AGAIN)
        self.goes_on_until(lambda: False)
        if self.code == 0:
            raise _Broken(f"{AGAIN.name} did not stop the run: it went on to its end")
        if self.saved() < self.step():
            raise _Broken(
                f"{AGAIN.name} lost steps: {self.step()} were made, {self.saved()} are saved"
            )

    def kill_rank(self, rank: int) -> None:
        """``kill -9`` of one rank; the others are to end by themselves."""
        os.kill(self._rank(rank), signal.SIGKILL)
        if self.goes_on_until(lambda: False, within=_ENDS_WITHIN) is False:
            self.kill()
            raise _Broken(f"without rank {rank} the others were at work {_ENDS_WITHIN:.0f} s later")
        self.kill()  # what may be left of the rank: its loader processes

    def _rank(self, rank: int) -> int:
        """The process of a local rank; its loader processes have the same variables."""
        found = {
            pid: parent
            for pid, parent in _processes(self.process.pid).items()
            if f"SUBMITIT_LOCAL_GLOBALID={rank}".encode() in _variables(pid)
        }
        first = [pid for pid, parent in found.items() if parent not in found]
        if len(first) != 1:
            raise _Broken(f"the process of rank {rank} is not to be found")
        return first[0]


def _processes(group: int) -> dict[int, int]:
    """The living processes of a group, as /proc shows them, and their parents."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has gone meanwhile
            continue
        if int(of) == group and state not in "ZX":
            found[int(stat.parent.name)] = int(parent)
    return found


def _variables(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has gone meanwhile
        return []


# What is done to the run


@dataclass(frozen=True)
class _Event:
    """Something that is done to a run.

    Attributes:
        name: of what is done.
        strike: does it.
        step: after which step of the run.
        relabelling: the round in whose relabelling, rather, where it leaves files.
    """

    name: str
    strike: Callable[[_Run], None]
    step: int
    relabelling: int | None = None


def _events(rounds: int, ranks: int) -> Iterator[_Event]:
    """Steps are far from each other and from the end: a run goes on until it is struck, and one
    of several ranks for some steps until it hears that it is to stop."""
    yield _Event("kill -9", _Run.kill, 3)
    yield _Event(f"preemption ({AGAIN.name})", _Run.preempt, 5)
    if rounds > 1:
        yield _Event("kill -9", _Run.kill, _steps(rounds) + 1, relabelling=2)
    if ranks > 1:
        yield _Event("kill -9 of rank 1 alone", lambda run: run.kill_rank(1), 17)
    else:
        yield _Event("kill -9", _Run.kill, 17)


def _disturb(run: _Run, ranks: int, undisturbed: Path) -> Report:
    """Do all of it to a run, let it end, and compare."""
    done: list[tuple[str, str, str]] = []
    run.start()
    try:
        for event in _events(run.rounds, ranks):
            done.append(_strike(run, event))
            run.start()
        run.goes_on_until(lambda: False)
        if run.code != 0:
            raise _Broken(f"it did not go on, but ended with {run.code}: {run.last_line()}")
    except _Broken as error:
        return Report(done, "nothing", [str(error)])
    found = list(differences(undisturbed, run.path))
    return Report(done, _compared(undisturbed), found)


def _strike(run: _Run, event: _Event) -> tuple[str, str, str]:
    """Wait for the moment, do it, and say what came of it."""
    # Lines of the log that the run is about to cut off are no news, nor are files that were there.
    step = max(event.step, run.step() + 1)
    watched = event.relabelling
    if watched is not None and run.clusters(watched):
        watched = None

    def seen() -> bool:
        return run.step() >= step or (watched is not None and run.clusters(watched) > 0)

    if run.goes_on_until(seen) is None:
        if run.code == 0:
            raise _Broken(f"it was over before the {event.name}: run the rehearsal again")
        raise _Broken(f"it did not go on, but ended with {run.code}: {run.last_line()}")
    event.strike(run)
    when = f"after step {run.step()}"
    if watched is not None and run.step() == run.steps * (watched - 1):
        when = f"relabelling for round {watched} (files so far: {run.clusters(watched)})"
    saved = f"step {run.saved()}"
    run.progress.say(f"{event.name} {when}; resumed at {saved}")
    return event.name, when, saved


# What came of it


def differences(undisturbed: Path, disturbed: Path) -> Iterator[str]:
    """What two runs did not compute alike to the last bit: the first of each kind of thing.

    Args:
        undisturbed: a finished run's folder.
        disturbed: another's.
    """
    for kind in ("step", "round", "callback"):
        pairs = list(zip_longest(_records(undisturbed, kind), _records(disturbed, kind)))
        different = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
        if different:
            yield f"{_first(kind, *different[0])} ({len(different)} of {len(pairs)} differ)"
    ours, theirs = _arrays(undisturbed), _arrays(disturbed)
    changed = sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
    if changed:
        yield f"{changed[0]} differs ({len(changed)} of {len(ours)} arrays of clusters do)"
    yield from _encoders(undisturbed, disturbed)


def _records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if name not in _TIMES}
        for record in read_log(run)
        if record["kind"] == kind
    ]


def _first(kind: str, ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> str:
    if ours is None or theirs is None:
        record, name = (theirs, "undisturbed") if ours is None else (ours, "disturbed")
        assert record is not None
        return f"{kind} {_at(record)} is missing in the {name} run's log"
    field = next(name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name))
    values = f"{ours.get(field)} undisturbed, {theirs.get(field)} disturbed"
    return f"{kind} {_at(ours)}: {field} is {values}"


def _at(record: dict[str, Any]) -> Any:
    """The round's number, or else the step's."""
    return record["round" if record["kind"] == "round" else "step"]


def _arrays(run: Path) -> dict[str, bytes]:
    """The arrays that relabelling left; other files may hold times."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.glob("clusters/**/*")
        if path.suffix in (".npy", ".npz")
    }


def _encoders(undisturbed: Path, disturbed: Path) -> Iterator[str]:
    file = Path("checkpoints") / "encoders.safetensors"
    if (undisturbed / file).read_bytes() == (disturbed / file).read_bytes():
        return
    with (
        safe_open(undisturbed / file, framework="pt") as ours,
        safe_open(disturbed / file, framework="pt") as theirs,
    ):
        for name in ours.keys():  # noqa: SIM118 - not a mapping
            a, b = ours.get_tensor(name), theirs.get_tensor(name)
            if not torch.equal(a, b):
                yield f"final encoders: {name} differs by {float((a - b).abs().max()):.2g} at most"
                return
    yield f"{file} differs"


def _compared(run: Path) -> str:
    arrays = len(_arrays(run))
    labels = f", {arrays} arrays of clusters" if arrays else ""
    return f"{len(_records(run, 'step'))} steps' losses{labels} and the final encoders"
