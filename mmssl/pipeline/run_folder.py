"""The folder that holds everything a run produced.

::

    runs/<name>/
      recipe.yaml          fully resolved: rerunning it reproduces the run
      provenance.json      how often, when, where and with which versions it ran
      log.jsonl            every logged step, round and validation
      tensorboard/
      skipped.jsonl        samples that could not be read, with the reason
      checkpoints/         training states; encoders.safetensors once pretraining is done
      clusters/round-NN/   pseudo-labels, centroids, health
      evaluations/<name>/  metrics.json, tables.json, figures
      stages/<name>.json   what is finished, and for which recipe
"""

import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmssl.errors import UserError
from mmssl.recipe import Recipe
from mmssl.registry import discover
from mmssl.training.checkpoints import write_atomically

# What may differ between two starts of one run: where and how it computes, not what.
_RESOURCES = ("device", "threads", "launch", "runs", "trackers", "description", "evaluations")
_TRAINING_RESOURCES = ("compile", "channels_last", "log_every", "checkpoint")
_DATA_RESOURCES = ("workers", "prefetch", "time_limit", "max_bad")


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def pretraining_recipe(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that decides what pretraining learns, without resources."""
    plain = {k: v for k, v in recipe.plain().items() if k not in _RESOURCES}
    plain["training"] = {k: v for k, v in plain["training"].items() if k not in _TRAINING_RESOURCES}
    plain["data"] = {k: v for k, v in plain["data"].items() if k not in _DATA_RESOURCES}
    return plain


class RunFolder:
    """One run's folder.

    Args:
        recipe: whose ``runs`` and ``name`` say where it is.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.path = Path(recipe.runs) / recipe.name

    def fingerprint(self, stage: str) -> str:
        """Of what decides a stage's result: its own part of the recipe and what it builds on."""
        parts: list[Any] = [pretraining_recipe(self.recipe)]
        if stage != "pretrain":
            parts.append(self.recipe.plain()["evaluations"][stage])
        return _digest(parts)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run, so that no second process works in the same folder.

        Raises:
            UserError: another process does, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a")  # noqa: SIM115 - closed below
        except OSError as error:
            raise UserError(
                f"the run folder {self.path} cannot be written ({error.strerror}): set runs=... "
                "or name=..."
            ) from error
        with lock:
            try:
                # Not flock, whose lock loader processes inherit: they outlive a killed parent.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise UserError(
                    f"{self.path} is in use by another process: wait for it, or give this run "
                    "another name (name=...)"
                ) from error
            yield

    def begin(self, command: list[str]) -> None:
        """Write the recipe and where this process runs; clear away what a killed one left half.

        Raises:
            UserError: the folder belongs to a run of another recipe.
        """
        self._refuse_another_recipe()
        for half in self.path.rglob(".*.tmp"):
            half.unlink(missing_ok=True)
        text = self.recipe.dump()
        write_atomically(self.path / "recipe.yaml", lambda path: path.write_text(text))
        write_atomically(
            self.path / "stages" / "recipe.json",
            lambda path: path.write_text(json.dumps(pretraining_recipe(self.recipe))),
        )
        provenance = self.path / "provenance.json"
        starts = json.loads(provenance.read_text()) if provenance.is_file() else []
        starts.append(_provenance(command))
        write_atomically(provenance, lambda path: path.write_text(json.dumps(starts, indent=1)))

    def _refuse_another_recipe(self) -> None:
        path = self.path / "stages" / "recipe.json"
        if not path.is_file():
            return
        before, now = json.loads(path.read_text()), pretraining_recipe(self.recipe)
        changed = next(_differences(before, json.loads(json.dumps(now))), None)
        if changed:
            where, old, new = changed
            raise UserError(
                f"{self.path} holds a run of another recipe ({where} was {old}, is {new}): give "
                "this one another name (name=...), or delete the folder"
            )

    def finished(self, stage: str) -> bool:
        """Was this stage completed for this recipe?"""
        path = self._stage(stage)
        if not path.is_file():
            return False
        return bool(json.loads(path.read_text())["fingerprint"] == self.fingerprint(stage))

    def finish(self, stage: str) -> None:
        """Note that a stage is complete."""
        record = {"fingerprint": self.fingerprint(stage), "at": _now()}
        write_atomically(self._stage(stage), lambda path: path.write_text(json.dumps(record)))

    def _stage(self, stage: str) -> Path:
        name = stage if stage == "pretrain" else f"evaluate-{stage}"
        return self.path / "stages" / f"{name}.json"

    def evaluation(self, name: str) -> Path:
        """Where an evaluation's results belong."""
        return self.path / "evaluations" / name


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            missing = "not set"
            yield from _differences(
                before.get(key, missing), now.get(key, missing), f"{path}.{key}" if path else key
            )
    elif before != now:
        yield path, before, now


def _now() -> str:
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
        "at": _now(),
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
