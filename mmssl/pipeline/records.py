"""What a run's folder says of its stages, read without building anything (and without torch)."""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmssl.errors import UserError
from mmssl.recipe.compose import resolve

PRETRAIN = "pretrain"

#: In an evaluation's folder: of which recipe it is; another one's is no beginning to go on from.
STARTED = "started.json"

# What may differ between two starts of one run: where and how it computes, not what.
_RESOURCES = (
    "format", "device", "threads", "launch", "runs", "trackers", "description", "evaluations",
)  # fmt: skip
_TRAINING_RESOURCES = ("compile", "channels_last", "log_every", "checkpoint")
_DATA_RESOURCES = ("workers", "prefetch", "time_limit", "max_bad")


def pretraining_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plain recipe that decides what pretraining learns, without resources."""
    plain = {k: v for k, v in recipe.items() if k not in _RESOURCES}
    plain["training"] = {k: v for k, v in plain["training"].items() if k not in _TRAINING_RESOURCES}
    plain["data"] = {k: v for k, v in plain["data"].items() if k not in _DATA_RESOURCES}
    return plain


def fingerprint(recipe: Mapping[str, Any], stage: str) -> str:
    """Of what decides a stage's result: its own part of the recipe and what it builds on."""
    parts: list[Any] = [pretraining_recipe(recipe)]
    if stage != PRETRAIN:
        parts.append(recipe["evaluations"][stage])
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def lock_range(what: str | None) -> tuple[int, int]:
    """Length and start of the bytes of ``.lock`` that stand for a stage, or None for the run."""
    return 1, 0 if what is None else 1 + zlib.crc32(what.encode())


@dataclass(frozen=True)
class Job:
    """A stage that was handed over to a launcher: ``jobs/<stage>.json``.

    Attributes:
        launcher: ``"slurm"`` or ``"local"``.
        job: its id: SLURM's, ``123_4`` in an array, or the process that controls local ranks.
        folder: absolute, where its logs are.
        submitted: when, ISO 8601.
        host: where it was submitted.
        ranks: the number of processes.
        command: what was typed.
        after: the id of the job that it waits for, if it waits for one.
    """

    launcher: str
    job: str
    folder: str
    submitted: str
    host: str
    ranks: int
    command: list[str]
    after: str | None = None

    @property
    def log(self) -> Path:
        """What its main rank prints; the others' have their rank's number for the 0."""
        return Path(self.folder) / f"{self.job}_0_log.out"


@dataclass(frozen=True)
class Records:
    """A run's folder, to be read.

    Args:
        path: of the folder.
    """

    path: Path

    def finish_file(self, stage: str) -> Path:
        """Written when a stage is complete."""
        return self.path / "stages" / f"{_file_name(stage)}.json"

    def ended_file(self, stage: str) -> Path:
        """Written when a stage ends without being complete: ``{"state", "reason", "at"}``."""
        return self.path / "stages" / f"{_file_name(stage)}.ended.json"

    def job_file(self, stage: str) -> Path:
        """Written when a stage is handed over: see `Job`."""
        return self.path / "jobs" / f"{stage}.json"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain data; nothing of it is checked.

        Raises:
            UserError: it cannot be read.
        """
        plain: dict[str, Any] = resolve(self.path / "recipe.yaml", [], {}).python()
        return plain

    @property
    def stages(self) -> list[str]:
        """All stages in their order."""
        return [PRETRAIN, *(self.recipe.get("evaluations") or {})]

    def finished(self, stage: str) -> bool:
        """Was the stage completed for this recipe?"""
        record = read_json(self.finish_file(stage))
        return record is not None and record["fingerprint"] == fingerprint(self.recipe, stage)

    def ended(self, stage: str) -> dict[str, str] | None:
        """How the stage ended, where it is not complete and somebody could still say so."""
        return read_json(self.ended_file(stage))

    def job(self, stage: str) -> Job | None:
        """What it was handed over to, last."""
        record = read_json(self.job_file(stage))
        return None if record is None else Job(**record)

    def starts(self, stage: str) -> list[dict[str, Any]]:
        """Where and when processes began to work at the stage, in order."""
        every = read_json(self.path / "provenance.json") or []
        return [start for start in every if stage in start.get("stages", ())]

    def held(self, stage: str | None) -> bool:
        """Is a process at work at the stage (None: at the run as a whole)?"""
        try:
            with open(self.path / ".lock", "rb") as file:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, *lock_range(stage))
        except (BlockingIOError, PermissionError):
            return True
        except OSError:  # no such file, or no locks on this file system
            return False
        return False  # closing the file has let go of it

    def log(self) -> dict[str, dict[str, Any]]:
        """The last record of each kind at the end of ``log.jsonl``."""
        last: dict[str, dict[str, Any]] = {}
        try:
            with open(self.path / "log.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 18)))
                lines = file.read().split(b"\n")
        except OSError:
            return last
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # the first and the last one may be cut
                continue
            if isinstance(record, dict):
                last[record.get("kind", "")] = record
        return last

    def steps(self) -> int:
        """Optimizer steps of all rounds, at most: some may stop early."""
        training, objective = self.recipe["training"], self.recipe["objective"]
        rounds = objective.get("rounds", 1)
        final = (training.get("final_round") or {}).get("epochs")
        last = training["epochs"] if final is None else final
        epochs = training["epochs"] * (rounds - 1) + last
        return max(1, round(training["epoch_size"] / training["batch_size"])) * int(epochs)


def _file_name(stage: str) -> str:
    return stage if stage == PRETRAIN else f"evaluate-{stage}"


def read_json(path: Path) -> Any:
    """What a file holds; None where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def find_runs(names: list[str]) -> list[Records]:
    """Runs by their folders, by names of runs under ``./runs``, or by patterns of either.

    Raises:
        UserError: there is no such run.
    """
    found: dict[Path, Records] = {}
    for name in names:
        candidates = [Path(name), Path("runs") / name]
        matches = [path for path in candidates if (path / "recipe.yaml").is_file()][:1]
        if not matches and any(c in name for c in "*?["):
            for root, pattern in ((Path(), name), (Path("runs"), name)):
                if not matches and not Path(pattern).is_absolute():
                    there = sorted(root.glob(pattern))
                    matches = [path for path in there if (path / "recipe.yaml").is_file()]
        if not matches:
            raise UserError(
                f"there is no run {name!r}: neither a run's folder nor the name of one in "
                f"{Path('runs').absolute()}"
            )
        found.update((path.resolve(), Records(path)) for path in matches)
    return list(found.values())
