"""kill -9 at any moment, then the same command: nothing is lost and nothing is different.

Real processes, real files, real signals. Only the process that was started is killed; its
loader processes are orphans for some seconds, in which the command is started again.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest
from small_runs import (
    RECIPE,
    Started,
    leftovers,
    make_videos,
    mmssl,
    outcome,
    steps,
    write_manifest,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmssl.errors import UserError
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import load
from mmssl.training.log import read_log
from mmssl.training.progress import Silent
from mmssl_media.synthetic import Synthetic

# 2 rounds of 2 epochs of 4 steps, a checkpoint every 3 steps. Centroids are fitted on 20 of 48
# samples, so that labelling is a pass of its own.
SETTINGS = """\
extends: small.yaml
name: killed
data:
  train: {use: manifest, path: train.csv}
  validation: {use: manifest, path: validation.csv}
objective: {clusters: 4, points_per_centroid: 5}
training: {checkpoint: {steps: 3}}
evaluations:
  clusters: {use: clusters}
  probe:
    use: linear_probe
    train: {use: manifest, path: validation.csv}
    test: {use: manifest, path: validation.csv}
    untrained: false
    regularisation: [0.01]
"""
STEPS = 16


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, some of them damaged or silent, lists of them, and the recipe."""
    folder = tmp_path_factory.mktemp("kill")
    videos = make_videos(folder / "videos", 48)
    whole = Path(videos[9][0]).read_bytes()
    Path(videos[9][0]).write_bytes(whole[: len(whole) // 2])
    Path(videos[41][0]).write_bytes(b"")
    with av.open(videos[30][0]) as source, av.open(str(folder / "mute.mp4"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    (folder / "mute.mp4").replace(videos[30][0])
    write_manifest(folder / "train.csv", videos)
    write_manifest(folder / "validation.csv", videos[16:24])
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "recipe.yaml").write_text(SETTINGS)
    return folder


@pytest.fixture
def place(workplace: Path, tmp_path: Path) -> Path:
    """A folder to run in, where a run finds the same files under the same names."""
    for name in ("train.csv", "validation.csv", "small.yaml", "recipe.yaml"):
        shutil.copy(workplace / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> dict[str, Any]:
    done = mmssl("run", "recipe.yaml", cwd=workplace)
    assert done.returncode == 0, done.stderr
    folder = workplace / "runs" / "killed"
    result = outcome(folder)
    assert steps(folder) == STEPS
    assert len([r for r in result["log"] if r["kind"] == "validation"]) == 4
    assert [r["round"] for r in result["log"] if r["kind"] == "round"] == [1, 2]
    labels = result["clusters"]["clusters/round-02/audio.labels.npy"]
    assert [row for row, label in enumerate(labels) if label == -100] == [9, 30, 41]
    labels = result["clusters"]["clusters/round-02/video.labels.npy"]
    assert [row for row, label in enumerate(labels) if label == -100] == [9, 41]
    assert set(result["metrics"]) == {"clusters", "probe"}
    assert leftovers(folder) == []
    return result


def go_on(place: Path) -> None:
    done = mmssl("run", "recipe.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@dataclass(frozen=True)
class Moment:
    """When to kill: as soon as ``seen``; it was that moment if ``still`` holds of what is left."""

    seen: Callable[[Path], bool]
    still: Callable[[Path], bool]


def at_step(number: int) -> Moment:
    return Moment(lambda run: steps(run) >= number, lambda run: steps(run) == number)


def any_file(pattern: str) -> Callable[[Path], bool]:
    return lambda run: next(run.glob(pattern), None) is not None


CHAINS = {
    "in epochs": {
        "at the first steps": at_step(2),
        "in the middle of an epoch": at_step(7),
        "in the last epoch": at_step(14),
    },
    "in relabelling": {
        "before clusters are fitted": Moment(
            any_file("clusters/round-02"), lambda run: not any_file("clusters/round-02/*")(run)
        ),
        "between centroids and labels": Moment(
            any_file("clusters/round-02/labelling"), any_file("clusters/round-02/labelling")
        ),
        "between labels and the first step": Moment(
            any_file("clusters/round-02/health.json"), lambda run: steps(run) == 8
        ),
    },
    "between parts": {
        "between rounds": Moment(
            lambda run: steps(run) >= 8,
            lambda run: steps(run) == 8 and not any_file("clusters/round-02/health.json")(run),
        ),
        "while a checkpoint is written": Moment(
            lambda run: steps(run) >= 9 and any_file("checkpoints/.step-*.tmp")(run),
            any_file("checkpoints/.step-*.tmp"),
        ),
        "in an evaluation": Moment(
            any_file("evaluations/probe"), lambda run: not any_file("stages/*probe.json")(run)
        ),
    },
}


def killed(place: Path, name: str, when: Moment) -> Started:
    """Start or go on, and kill at that moment. A busy machine may let it pass: then again."""
    run, before = place / "runs" / "killed", place / "before"
    shutil.rmtree(before, ignore_errors=True)
    if run.is_dir():
        shutil.copytree(run, before)
    for _ in range(5):
        started = Started("run", "recipe.yaml", cwd=place)
        started.wait_until(lambda: when.seen(run))
        started.kill()
        if when.still(run):
            return started
        shutil.rmtree(run)
        if before.is_dir():
            shutil.copytree(before, run)
    return pytest.fail(f"{name}: the moment was missed five times")


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_killed(chain: str, place: Path, undisturbed: dict[str, Any]) -> None:
    run = place / "runs" / "killed"
    every = [killed(place, name, when) for name, when in CHAINS[chain].items()]
    go_on(place)
    assert outcome(run) == undisturbed
    assert leftovers(run) == []
    assert all(started.all_gone() for started in every)


def number_of_starts(run: Path) -> int:
    path = run / "provenance.json"
    return len(json.loads(path.read_text())) if path.is_file() else 0


@pytest.mark.slow
def test_killed_at_random_again_and_again(place: Path, undisturbed: dict[str, Any]) -> None:
    run = place / "runs" / "killed"
    draws = random.Random(7)
    every: list[Started] = []
    for attempt in range(1, 20):
        starts = number_of_starts(run)
        every.append(Started("run", "recipe.yaml", cwd=place))
        process = every[-1].process
        # A start that finds everything finished leaves no trace of itself.
        every[-1].wait_until(
            lambda process=process, before=starts: (
                process.poll() is not None or number_of_starts(run) > before
            )
        )
        # Ever longer, as a run whose every start is too short for a single step never ends.
        time.sleep(draws.uniform(0, 1.5 * attempt))
        if every[-1].process.poll() is not None:
            break
        every[-1].process.send_signal(signal.SIGKILL)
        if every[-1].wait() == 0:
            break
    assert every[-1].wait() == 0, every[-1].err.read_text()
    assert len(every) > 2, "hardly ever killed"
    assert outcome(run) == undisturbed
    assert leftovers(run) == []
    assert all(started.all_gone() for started in every)

    # Curves have no doubled steps either.
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("step/loss")]
    logged = [(r["step"], r["loss"]) for r in read_log(run) if r["kind"] == "step"]
    assert losses == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in logged]


def test_stopped_by_ctrl_c_and_continued(place: Path, undisturbed: dict[str, Any]) -> None:
    run = place / "runs" / "killed"
    started = Started("run", "recipe.yaml", cwd=place)
    started.wait_until(lambda: steps(run) >= 5)
    started.signal_all(signal.SIGINT)
    assert started.wait() == 130
    assert started.err.read_text().splitlines() == [
        "mmssl: interrupted; nothing is lost: run the same command to go on in runs/killed"
    ]
    assert steps(run) < STEPS
    assert started.all_gone(1)
    saved = max(int(path.stem[5:]) for path in run.glob("checkpoints/step-*.pt"))
    assert saved == steps(run), "the step at which it was stopped is not lost"
    go_on(place)
    assert outcome(run) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_while_videos_are_written(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = 240
    text = RECIPE.replace("videos: 48, side: 32", f"videos: {videos}, side: 64")
    (tmp_path / "recipe.yaml").write_text(text)
    written = lambda: sorted((tmp_path / "cache").rglob("*.mp4"))  # noqa: E731
    started = Started("run", "recipe.yaml", cwd=tmp_path)
    started.wait_until(lambda: len(written()) >= 10)
    started.signal_all(number)
    if number == signal.SIGINT:
        assert started.wait() == 130
        assert "Traceback" not in started.err.read_text()
        assert len(started.err.read_text().splitlines()) == 1
    else:
        assert started.wait() == -number
    assert started.all_gone()
    names = written()
    assert 10 <= len(names) < videos
    for path in names:
        with av.open(str(path)) as file:
            assert sum(1 for _ in file.decode(video=0)) == 8, f"{path} is not whole"
        with av.open(str(path)) as file:
            assert sum(frame.samples for frame in file.decode(audio=0)) >= 16_000
    before = {path: path.stat().st_mtime_ns for path in names}

    # Going on writes the missing ones only.
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    Synthetic(videos=videos, side=64, fps=8, seconds=1.0).materialise(Silent())
    assert len(written()) == videos
    assert {path: path.stat().st_mtime_ns for path in names} == before


def test_a_run_is_free_again_as_soon_as_its_process_is_killed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    run = RunFolder(load("recipe.yaml"))
    for _ in range(5):  # a loader process may end by itself at that very moment
        shutil.rmtree(run.path, ignore_errors=True)
        started = Started("run", "recipe.yaml", cwd=place)
        started.wait_until(lambda: steps(run.path) >= 1)
        with pytest.raises(UserError, match="is in use by another process"), run.locked():
            pass
        # Between two passes there are none.
        started.wait_until(lambda: len(started.alive()) > 1)  # noqa: B023 - called at once
        started.kill()
        if started.alive():
            break
    assert started.alive(), "loader processes outlive the killed one for some seconds"
    with run.locked():
        pass
    assert started.all_gone()
