"""The folder that holds everything a run produced.

::

    runs/<name>/
      recipe.yaml          fully resolved: rerunning it reproduces the run
      provenance.json      how often, when, where and with which versions its stages began
      log.jsonl            every logged step, round and validation
      tensorboard/
      skipped.jsonl        samples that could not be read, with the reason
      checkpoints/         training states; once pretraining is done, encoders.safetensors and
                           objective.safetensors
      clusters/round-NN/   pseudo-labels, centroids, health
      evaluations/<name>/  metrics.json, tables.json, figures
      report/index.html    the page that mmssl report makes
      stages/<name>.json   what is finished, and for which recipe
      stages/<name>.ended.json   why a stage ended before it was
      jobs/<name>.json     what a stage was handed over to; jobs/<name>/ has the logs
"""

import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmssl.errors import UserError
from mmssl.pipeline.earlier import filled_in, fingerprints
from mmssl.pipeline.records import (
    PRETRAIN,
    STARTED,
    Job,
    Records,
    fingerprint,
    lock_range,
    pretraining_recipe,
    read_json,
)
from mmssl.recipe import Recipe
from mmssl.registry import discover
from mmssl.training.checkpoints import write_atomically

# How long to try again: whoever asks whether a stage is at work holds its lock for a moment.
_PATIENCE = 1.0

_MISSING = "not set"

# What a file system answers that has no locks: there is nothing to hold then.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


# Files of locks by device and inode. A process that closes such a file loses all its locks on it,
# however often it has it open: so each is opened once, and never closed.
_OPEN: dict[tuple[int, int], int] = {}


def _opened_once(path: Path) -> int:
    """The descriptor of a file of locks."""
    with suppress(FileNotFoundError):
        there = path.stat()
        if (there.st_dev, there.st_ino) in _OPEN:
            return _OPEN[there.st_dev, there.st_ino]
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    there = os.fstat(file)
    return _OPEN.setdefault((there.st_dev, there.st_ino), file)


class RunFolder:
    """One run's folder.

    Args:
        recipe: whose ``runs`` and ``name`` say where it is.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.path = Path(recipe.runs) / recipe.name
        self.records = Records(self.path)
        self._start: dict[str, Any] | None = None

    def fingerprint(self, stage: str) -> str:
        """Of what decides a stage's result: its own part of the recipe and what it builds on.

        As the folder's recipe has it: a job may find one that an earlier version wrote.
        """
        now = fingerprint(self.recipe.plain(), stage)
        written, today = self._earlier(stage) or (now, now)
        return written if today == now else now

    @contextmanager
    def locked(self, stage: str | None = None) -> Iterator[None]:
        """Hold the run, or one of its stages, so that no second process works at it.

        Args:
            stage: None for the run, which whoever starts or submits stages holds.

        Raises:
            UserError: another process does, or the folder cannot be written.
        """
        if self._hold(stage, patience=_PATIENCE):
            with self._released(stage):
                yield
            return
        what = f"{self.path} is" if stage is None else f"stage {stage} of {self.path} is"
        raise UserError(
            f"{what} in use by another process: wait for it, or give this run another name "
            "(name=...)"
        )

    def _hold(self, what: str | None, patience: float) -> bool:
        """Lock the bytes that stand for it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = _opened_once(self.path / ".lock")
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written ({error.strerror}): set runs=... "
                "or name=..."
            ) from error
        deadline = time.monotonic() + patience
        while True:
            try:
                # Not flock, whose lock loader processes inherit: they outlive a killed parent.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *lock_range(what))
            except (BlockingIOError, PermissionError):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                return True
            else:
                return True

    @contextmanager
    def _released(self, what: str | None) -> Iterator[None]:
        try:
            yield
        finally:
            with suppress(OSError):  # no locks on this file system, or the folder is gone
                file = _opened_once(self.path / ".lock")
                fcntl.lockf(file, fcntl.LOCK_UN, *lock_range(what))

    def prepare(self) -> None:
        """Write the recipe; whoever calls it holds the run.

        Raises:
            UserError: the folder belongs to a run of another recipe.
        """
        self.refuse_another_recipe()
        added = self._added()
        self._adopt()
        _clear(self.path, ".recipe.yaml.*.tmp")
        _clear(self.path / "stages", ".recipe.json.*.tmp")
        text = self.recipe.dump(added)
        write_atomically(self.path / "recipe.yaml", lambda path: path.write_text(text))
        _write_json(self.path / "stages" / "recipe.json", pretraining_recipe(self.recipe.plain()))

    def _added(self) -> dict[str, Any]:
        """Evaluations that `mmssl evaluate` added to the run, and that the recipe does not name."""
        try:
            before = self.records.recipe.get("evaluations") or {}
        except UserError:  # there is none yet
            return {}
        return {
            name: plain
            for name, plain in before.items()
            if name not in self.recipe.evaluations
            and (self.records.finished(name) or self.records.job(name))
        }

    def begin(self, stage: str, command: list[str]) -> None:
        """Note that this process begins a stage, and clear away what a killed one left half.

        Whoever calls it holds the stage.
        """
        self._clear_half_done(stage)
        self.records.ended_file(stage).unlink(missing_ok=True)
        path = self.path / "provenance.json"
        # Stages that run at once note themselves in one file.
        self._hold(path.name, patience=60)
        with self._released(path.name):
            _clear(self.path, f".{path.name}.*.tmp")
            starts: list[dict[str, Any]] = read_json(path) or []
            if self._start not in starts:
                self._start = {**_provenance(command), "stages": []}
                starts.append(self._start)
            self._start = starts[starts.index(self._start)]
            self._start["stages"].append(stage)
            _write_json(path, starts)

    def _clear_half_done(self, stage: str) -> None:
        """Temporary files of the stage's own: other stages may be at work."""
        _clear(self.path / "stages", f".{self.records.finish_file(stage).stem}.*.tmp")
        evaluation = f"evaluations/{stage}"
        for folder in ("checkpoints", "clusters") if stage == PRETRAIN else (evaluation,):
            _clear(self.path / folder, "**/.*.tmp")

    def refuse_another_recipe(self) -> None:
        """Look for what decides what is learned, without the resources that it takes.

        Raises:
            UserError: the folder belongs to a run of another recipe.
        """
        path = self.path / "stages" / "recipe.json"
        if not path.is_file():
            return
        before = json.loads(path.read_text())
        now = json.loads(json.dumps(pretraining_recipe(self.recipe.plain())))
        if not any(_differences(before, now)):
            return
        before = json.loads(json.dumps(pretraining_recipe(filled_in(before))))
        # What was set is of more interest than fields that were not there yet.
        changed = sorted(_differences(before, now), key=lambda found: found[1] == _MISSING)
        if changed:
            where, old, new = changed[0]
            raise UserError(
                f"{self.path} holds a run of another recipe ({where} was {old}, is {new}): give "
                "this one another name (name=...), or delete the folder"
            )

    def finished(self, stage: str) -> bool:
        """Was this stage completed for this recipe?

        Also where it has fields by now that it did not have then.
        """
        record = read_json(self.records.finish_file(stage))
        if record is None:
            return False
        now = fingerprint(self.recipe.plain(), stage)
        return record["fingerprint"] in (now, self.fingerprint(stage))

    def _earlier(self, stage: str) -> tuple[str, str] | None:
        """Fingerprints of a stage of the folder's recipe: as it was written, and as it is today."""
        records = Records(self.path)  # read anew: `mmssl evaluate` may add to it meanwhile
        if not (self.path / "recipe.yaml").is_file() or stage not in records.stages:
            return None
        return fingerprints(records.recipe, stage)

    def _adopt(self) -> None:
        """Know what was done of this recipe when it had fewer fields under today's fingerprints."""
        if not (self.path / "recipe.yaml").is_file():
            return
        plain = self.recipe.plain()
        evaluations = self.records.recipe.get("evaluations") or {}
        everything = {**plain, "evaluations": {**evaluations, **plain["evaluations"]}}
        for stage in self.records.stages:
            file, now = self.records.finish_file(stage), fingerprint(everything, stage)
            started = self.evaluation(stage) / STARTED
            record, begun = read_json(file), read_json(started)
            known = {begun, record and record["fingerprint"]} - {None, now}
            if not known:
                continue
            written, today = fingerprints(self.records.recipe, stage)
            if stage in evaluations and stage not in self.recipe.evaluations:
                today = now  # added by `mmssl evaluate`; its own part is kept as it was written
            if today != now:
                continue
            if record and record["fingerprint"] == written:
                _write_json(file, {**record, "fingerprint": now})
            if begun == written:
                _write_json(started, now)

    def finish(self, stage: str) -> None:
        """Note that a stage is complete."""
        record = {"fingerprint": self.fingerprint(stage), "at": now()}
        _write_json(self.records.finish_file(stage), record)

    def hand_over(self, stage: str, job: Job) -> None:
        """Note which job is to run a stage."""
        _write_json(self.records.job_file(stage), asdict(job))

    def evaluation(self, name: str) -> Path:
        """Where an evaluation's results belong."""
        return self.path / "evaluations" / name


def end_stage(folder: Path, stage: str, state: str, reason: str) -> None:
    """Note that a stage ended before it was complete; of several failures the first is believed.

    Args:
        folder: the run's.
        stage: its name.
        state: ``"failed"`` or ``"interrupted"``.
        reason: one line.
    """
    records = Records(folder)
    before = records.ended(stage)
    if before is None or (before["state"], state) == ("interrupted", "failed"):
        ended = {"state": state, "reason": reason, "at": now()}
        _write_json(records.ended_file(stage), ended)


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two plain recipes differ; the order of components counts, too, where they have keys.

    A ring of modalities goes in that order, and an optimizer knows its parameters by their number.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        if _of_components(before) and before.keys() == now.keys() and [*before] != [*now]:
            yield f"the order of {path}", ", ".join(before), ", ".join(now)
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(
                before.get(key, _MISSING), now.get(key, _MISSING), f"{path}.{key}" if path else key
            )
    elif before != now:
        yield path, before, now


def _of_components(plain: dict[str, Any]) -> bool:
    return bool(plain) and all(isinstance(v, dict) and "use" in v for v in plain.values())


def _clear(folder: Path, pattern: str) -> None:
    for half in folder.glob(pattern):
        half.unlink(missing_ok=True)


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1)))


def now() -> str:
    """The time, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _provenance(command: list[str]) -> dict[str, Any]:
    packages = {}
    for requirement in importlib.metadata.requires("mmssl") or []:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra, or meant for another platform
    return {
        "at": now(),
        "command": command,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "git": _git_commit(),
        "packages": packages,
        "plugins": {plugin.name: plugin.version for plugin in discover().plugins},
    }


def _git_commit() -> str | None:
    """The commit of the working folder, if it is a checkout and git is there."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
