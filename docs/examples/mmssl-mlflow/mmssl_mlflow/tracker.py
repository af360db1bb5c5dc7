"""The tracker ``mlflow``: a run's figures in MLflow, each of them once, across kills.

MLflow cannot take back what was logged, and a killed run does again what came after its last
checkpoint. So a figure waits until a checkpoint holds it::

    track -> new -- state_dict (a checkpoint is written) --> pending --> MLflow
                                                             |  by the next record, when the
                                                             v  checkpoint is safely there
                                                     in the checkpoint, too

A resumed run sends what its checkpoint says was pending, but for what has arrived already: the
same figures, so that it does not matter how far sending had come. A checkpoint asks nothing of the
network: it may be the last thing that a run is given time for.
"""

import math
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from mmssl import Tracker, UserError

# What MLflow takes: characters of a metric's name, metrics and parameters in one request, and the
# length of a parameter's value.
_NOT_IN_NAMES = re.compile(r"[^\w./ :-]")
_METRICS, _PARAMS, _LENGTH = 1000, 100, 6000

_OWN = ("kind", "step", "round")

# The run's tag by which a later process finds it; MLflow's own id is known too late for the
# checkpoint that the run begins with.
_TAG = "mmssl.id"

Point = tuple[str, float, int, int]  # name, value, time in milliseconds, step


class MLflow(Tracker):
    """Sends every figure of the log to MLflow, and the recipe as the MLflow run's parameters.

    Figures arrive when a checkpoint holds them, so a run that is killed and started again goes on
    in the same MLflow run, with each figure once.

    Args:
        uri: MLflow's tracking server, such as http://localhost:5000; null: the folder ``mlruns`` in
            the run's folder.
        experiment: the name of MLflow's experiment, which is made if there is none.
    """

    def __init__(self, *, uri: str | None = None, experiment: str = "mmssl") -> None:
        self.uri = uri
        self.experiment = experiment
        self._id = uuid.uuid4().hex
        self._new: list[Point] = []
        self._pending: list[Point] = []
        self._there: set[tuple[str, int]] = set()
        self._run: str | None = None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The MLflow run of the checkpoint, and what it may not have got yet."""
        self._id = state["id"]
        self._pending = [(name, value, at, step) for name, value, at, step in state["pending"]]

    def state_dict(self) -> dict[str, Any]:
        """What is sent when this checkpoint is there, or by the process that goes on from it."""
        self._pending, self._new = [*self._pending, *self._new], []
        return {"id": self._id, "pending": self._pending}

    def open(self, folder: Path, step: int) -> None:
        """Find the MLflow run that an earlier process made, if there was one."""
        self._folder = folder
        uri = self.uri or (folder.absolute() / "mlruns").as_uri()
        if uri.startswith("file:"):
            # MLflow keeps this store as it is, and wants to be told that this is known.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        with _told(uri):
            self._client = MlflowClient(uri)
            found = self._find()
            if found is None:
                return
            self._run = found.info.run_id
            self._client.update_run(self._run, status="RUNNING")
            self._there = {
                (name, metric.step)
                for name in found.data.metrics
                for metric in self._client.get_metric_history(self._run, name)
            }

    def track(self, record: Mapping[str, Any]) -> None:
        """Keep a record's numbers until the next checkpoint, each under its kind and name."""
        self._send()
        now = round(time.time() * 1000)
        for name, value in record.items():
            if name in _OWN or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            name = _NOT_IN_NAMES.sub("_", f"{record['kind']}/{name}")
            self._new.append((name, float(value), now, int(record["step"])))

    def close(self) -> None:
        """Send the rest: nothing comes after it, or it is known by name and step if it does."""
        self._pending, self._new = [*self._pending, *self._new], []
        self._send()
        if self._run is not None:
            # The loop closes trackers while the exception that ends it, if one does, is raised.
            error = sys.exc_info()[0]
            stopped = "KILLED" if error is not None else "FINISHED"
            with _told(self._client.tracking_uri):
                self._client.set_terminated(self._run, stopped)

    def _send(self) -> None:
        """Log what is pending, but for what an earlier process has logged."""
        points = [point for point in self._pending if (point[0], point[3]) not in self._there]
        try:
            self._log(points)
        except UserError:
            # Some may have arrived: who goes on from a checkpoint asks, this process no more.
            self._there.update((name, step) for name, _, _, step in points)
            raise
        self._pending = []

    def _log(self, points: Sequence[Point]) -> None:
        if not points:
            return
        with _told(self._client.tracking_uri):
            if self._run is None:
                self._run = self._make()
            for first in range(0, len(points), _METRICS):
                metrics = [Metric(*point) for point in points[first : first + _METRICS]]
                self._client.log_batch(self._run, metrics=metrics)

    def _find(self) -> Run | None:
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        tagged = f"tags.`{_TAG}` = '{self._id}'"
        found = self._client.search_runs([experiment.experiment_id], tagged, max_results=1)
        return found[0] if found else None

    def _make(self) -> str:
        number = self._experiment()
        tags = {_TAG: self._id, "mmssl.folder": str(self._folder.absolute())}
        run = self._client.create_run(number, run_name=self._folder.name, tags=tags)
        params = [Param(name, value[:_LENGTH]) for name, value in _parameters(self._folder)]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(run.info.run_id, params=params[first : first + _PARAMS])
        return str(run.info.run_id)

    def _experiment(self) -> str:
        """Its number; of runs that start together several find none, and one makes it."""
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self.experiment))
            except MlflowException:
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """What MLflow refuses is for whoever runs mmssl to know, in a line."""
    try:
        yield
    except MlflowException as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"MLflow at {uri}: {reason}; the run goes on when it is started again"
        ) from error


def _parameters(folder: Path) -> Iterator[tuple[str, str]]:
    """The run's recipe, ``training.optimizer.lr`` and so on; nothing for a part of a run."""
    file = folder / "recipe.yaml"
    if file.is_file():
        yield from _leaves(yaml.safe_load(file.read_text(encoding="utf-8")), "")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield _NOT_IN_NAMES.sub("_", name), str(value)
