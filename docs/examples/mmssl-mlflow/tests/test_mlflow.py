"""What MLflow's own client reads back is the run's log, also after kills."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mmssl import UserError
from mmssl_mlflow.tracker import MLflow

MMSSL = str(Path(sys.executable).with_name("mmssl"))

# Two rounds of 2 epochs of 3 steps, and a checkpoint every 5 steps.
SMALL = ("data.train.videos=48", "training.epoch_size=48", "threads=1", "device=cpu")
STEPS = 12


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


def environment(place: Path) -> dict[str, str]:
    own = {"MMSSL_CACHE": str(place / "cache"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**{k: v for k, v in os.environ.items() if k != "MLFLOW_ALLOW_FILE_STORE"}, **own}


def start(place: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [MMSSL, "run", "mmssl_mlflow/quickstart", *SMALL, *overrides],
        cwd=place,
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def completed(place: Path, *overrides: str) -> None:
    process = start(place, *overrides)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def logged(folder: Path) -> list[dict[str, Any]]:
    file = folder / "log.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def steps(folder: Path) -> int:
    return sum(record["kind"] == "step" for record in logged(folder))


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Figures of the log by MLflow's names, in order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in logged(folder):
        for name, value in record.items():
            if name not in ("kind", "step", "round") and isinstance(value, int | float):
                found.setdefault(f"{record['kind']}/{name}", []).append((record["step"], value))
    return found


def only_run(client: MlflowClient, experiment: str = "mmssl") -> Run:
    there = client.get_experiment_by_name(experiment)
    assert there is not None
    (run,) = client.search_runs([there.experiment_id])
    return run


def read_back(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient((folder / "mlruns").absolute().as_uri())


def test_mlflow_has_the_log_and_the_recipe(place: Path) -> None:
    completed(place, "name=whole")
    folder = place / "runs" / "whole"
    client = client_of(folder)
    run = only_run(client)
    assert steps(folder) == STEPS
    assert read_back(client, run) == expected(folder)
    assert len(expected(folder)["step/loss"]) == STEPS
    assert {"validation/loss", "step/lr"} < set(run.data.metrics)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "whole")
    params = run.data.params
    assert params["training.optimizer.lr"] == "0.002"
    assert (params["objective.use"], params["data.validation.videos"]) == ("xdc", "24")
    assert run.data.tags["mmssl.folder"] == str(folder.absolute())


def test_a_killed_run_goes_on_in_the_same_run_of_mlflow(place: Path) -> None:
    folder = place / "runs" / "killed"
    for moment in (4, 8):  # behind the checkpoints at 0 and 6
        process = start(place, "name=killed")
        while steps(folder) < moment and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    completed(place, "name=killed")
    client = client_of(folder)
    run = only_run(client)
    assert read_back(client, run) == expected(folder)
    assert steps(folder) == STEPS
    assert run.info.status == "FINISHED"


def test_a_run_that_is_stopped_says_so_and_goes_on(place: Path) -> None:
    folder, store = place / "runs" / "stopped", (place / "store").as_uri()
    options = ("name=stopped", f"trackers=[{{use: mlflow, uri: {store!r}, experiment: mine}}]")
    process = start(place, *options)
    while steps(folder) < 4 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    client = MlflowClient(store)
    assert only_run(client, "mine").info.status == "KILLED"
    assert read_back(client, only_run(client, "mine")) == expected(folder)
    completed(place, *options)
    run = only_run(client, "mine")
    assert run.info.status == "FINISHED"
    assert read_back(client, run) == expected(folder)
    assert not (folder / "mlruns").exists()


# The tracker alone


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("name: x\nobjective: {use: y, list: [], none: null}\n")
    return tmp_path


def record(step: int, **figures: Any) -> Mapping[str, Any]:
    return {"kind": "step", "step": step, "round": 1, "loss": step / 10, **figures}


def history(folder: Path, name: str = "step/loss") -> list[int]:
    client = client_of(folder)
    return [m.step for m in client.get_metric_history(only_run(client).info.run_id, name)]


def test_figures_wait_for_a_checkpoint_that_holds_them(folder: Path) -> None:
    tracker = MLflow()
    tracker.open(folder, 0)
    tracker.track(record(1))
    tracker.track(record(2, text="no figure", **{"bad": float("nan"), "video+audio": 3}))
    first = tracker.state_dict()
    assert client_of(folder).get_experiment_by_name("mmssl") is None
    tracker.track(record(3))  # the checkpoint is there
    assert history(folder) == [1, 2]
    assert history(folder, "step/video_audio") == [2]
    second = tracker.state_dict()
    tracker.close()
    assert history(folder) == [1, 2, 3]
    assert only_run(client_of(folder)).data.params == {
        "name": "x",
        "objective.use": "y",
        "objective.list": "[]",
        "objective.none": "None",
    }
    for state in (first, second):  # whichever checkpoint it goes on from
        again = MLflow()
        again.load_state_dict(json.loads(json.dumps(state)))
        again.open(folder, 2)
        again.track(record(3))
        again.state_dict()
        again.close()
        assert history(folder) == [1, 2, 3]


@pytest.mark.parametrize("call", range(1, 6))
def test_killed_while_figures_are_sent(
    call: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmssl_mlflow.tracker._METRICS", 2)
    tracker, made = MLflow(), 0
    tracker.open(folder, 0)

    def dying(own: Callable[..., Any]) -> Callable[..., Any]:
        def method(*args: Any, **more: Any) -> Any:
            nonlocal made
            made += 1
            if made == call:
                raise Killed
            return own(*args, **more)

        return method

    for name in ("create_experiment", "create_run", "log_batch"):
        method = getattr(tracker._client, name)
        monkeypatch.setattr(tracker._client, name, dying(method))
    for step in range(1, 6):
        tracker.track(record(step))
    state = tracker.state_dict()
    with pytest.raises(Killed):
        tracker.track(record(6))
    again = MLflow()
    again.load_state_dict(state)
    again.open(folder, 5)
    again.track(record(6))
    again.close()
    assert history(folder) == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_keeps_what_an_outage_leaves_unsent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MLflow()
    tracker.open(folder, 0)
    tracker.track(record(1))
    tracker.state_dict()
    with monkeypatch.context() as outage:
        outage.setattr(tracker._client, "get_experiment_by_name", refuses)
        state = tracker.state_dict()
        with pytest.raises(UserError, match="out of order"):
            tracker.track(record(2))
        later = tracker.state_dict()
        tracker.close()
    for kept in (state, later):
        again = MLflow()
        again.load_state_dict(json.loads(json.dumps(kept)))
        again.open(folder, 1)
        again.close()
        assert history(folder) == [1]


def test_runs_that_start_together_share_the_experiment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MLflow()
    tracker.open(folder, 0)
    find, seen = tracker._client.get_experiment_by_name, 0

    def outrun(name: str) -> Any:
        """Finds none, and then another run makes it."""
        nonlocal seen
        seen += 1
        if seen == 1:
            client_of(folder).create_experiment(name)
            return None
        return find(name)

    monkeypatch.setattr(tracker._client, "get_experiment_by_name", outrun)
    tracker.track(record(1))
    tracker.close()
    assert history(folder) == [1]


def test_an_experiment_that_cannot_be_made_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MLflow()
    tracker.open(folder, 0)
    monkeypatch.setattr(tracker._client, "create_experiment", refuses)
    tracker.track(record(1))
    with pytest.raises(UserError, match="out of order"):
        tracker.close()


def refuses(*arguments: Any, **more: Any) -> Any:
    raise MlflowException("out of order")


def test_a_server_that_does_not_answer_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = MLflow(uri="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"^MLflow at http://127\.0\.0\.1:9: .*goes on when it is"):
        tracker.open(tmp_path, 0)
