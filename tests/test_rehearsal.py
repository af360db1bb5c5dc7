"""A rehearsal of preemption: passes where all state is saved, and finds what is not."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import RECIPE, Started, environment, mmssl

from mmssl.pipeline.plan import make_plan
from mmssl.pipeline.rehearsal import differences, rehearse, settings
from mmssl.recipe import load
from mmssl.training.progress import Silent

# An objective whose loss depends on how often this process computed it: a checkpoint does not know.
FORGETFUL = '''\
from mmssl import hookimpl


@hookimpl
def register_objectives(register):
    register("forgetful", "forgetful:Forgetful")


def __getattr__(name):
    from mmssl.contracts import Losses, Objective

    class Forgetful(Objective):
        """Features of both modalities should be near each other, ever more urgently."""

        calls = 0

        def loss(self, batch, features):
            self.calls += 1
            video, audio = (f.pooled for f in features.values())
            return Losses(self.calls * ((video - audio) ** 2).mean())

    return {"Forgetful": Forgetful}[name]
'''

# What `mmssl run` leaves in a run's folder, and how it behaves, without its costs.
ACTOR = """\
import json, os, signal, sys, time
from pathlib import Path

how, *_, runs, name = sys.argv[1:]
run = Path(json.loads(runs.removeprefix("runs="))) / name.removeprefix("name=")
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
step = max((int(p.stem[5:]) for p in run.glob("checkpoints/step-*.pt")), default=0)
log = run / "log.jsonl"
lines = log.read_text().splitlines()[:step] if log.exists() else []
log.write_text("".join(line + "\\n" for line in lines))
stop = False


def told(number, frame):
    global stop
    stop = True


if how != "loses":
    signal.signal(signal.SIGUSR2, told if how != "ignores" else signal.SIG_IGN)
if step and how == "stays":
    sys.exit("mmssl: there is no way on")
while step < 24 and not stop:
    time.sleep(0.04)
    step += 1
    with log.open("a") as file:
        print(json.dumps({"kind": "step", "step": step, "loss": 1 / step}), file=file)
    if how == "loses" and step > 3:
        continue
    if step % 2 == 0:
        (run / "checkpoints" / f"step-{step:08}.pt").touch()
if stop:
    (run / "checkpoints" / f"step-{step:08}.pt").touch()
    sys.exit(130)
(run / "checkpoints" / "encoders.safetensors").write_bytes(b"whatever")
"""


def lines_of(table: str) -> list[list[str]]:
    """The cells of a drawn table's rows, but for its head."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in table.splitlines()
        if line.startswith("│")
    ]


# The whole command


@pytest.mark.slow
def test_a_run_that_saves_all_its_state_passes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = mmssl("rehearse", "recipe.yaml", "data.workers=0", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = lines_of(done.stdout)
    assert [event for event, _, _ in rows] == [
        "kill -9",
        "preemption (SIGUSR2)",
        "kill -9",
        "kill -9",
    ]
    assert re.fullmatch("relabelling for round 2 .*|after step 1[3-9]", rows[2][1])
    before = [int(when.split()[-1]) for _, when, _ in (rows[0], rows[1], rows[3])]
    after = [int(resumed.removeprefix("step ")) for _, _, resumed in (rows[0], rows[1], rows[3])]
    # A checkpoint every other step: what a kill costs is less than two, a preemption nothing.
    assert before[0] - 2 < after[0] <= before[0]
    assert before[1] == after[1]
    assert before[2] - 2 < after[2] <= before[2]
    for event, when, resumed in rows:
        assert f"{event} {when}; resumed at {resumed}\n" in done.stdout
    # Two rounds, and of two modalities labels, centroids and what is done to features before.
    assert "equal to the last bit: 24 steps' losses, 12 arrays of clusters and the" in done.stdout
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_state_that_no_checkpoint_holds_is_found(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    site = tmp_path / "site"
    info = site / "forgetful-1.dist-info"
    info.mkdir(parents=True)
    (site / "forgetful.py").write_text(FORGETFUL)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forgetful\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[mmssl]\nforgetful = forgetful\n")
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = environment(tmp_path, PYTHONPATH=paths)
    words = ["recipe.yaml", "objective=forgetful", "data.workers=0"]
    done = mmssl("rehearse", *words, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    rows = lines_of(done.stdout)
    assert [event for event, _, _ in rows] == ["kill -9", "preemption (SIGUSR2)", "kill -9"]
    first = int(rows[0][2].removeprefix("step ")) + 1
    assert f"\n- step {first}: loss is " in done.stdout
    assert f"({24 - first + 1} of 24 differ)\n" in done.stdout
    assert "\n- final encoders: " in done.stdout
    (kept,) = (tmp_path / "runs").iterdir()
    assert f"kept, with all that was said: runs/{kept.name}\n" in done.stdout
    assert (kept / "undisturbed" / "log.jsonl").is_file()
    assert (kept / "disturbed" / "log.jsonl").is_file()


@pytest.mark.slow
def test_one_of_two_ranks_is_killed(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = ["recipe.yaml", "--ranks", "2", "data.workers=0", "objective.rounds=1"]
    done = mmssl("rehearse", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    events = [event for event, _, _ in lines_of(done.stdout)]
    assert events == ["kill -9", "preemption (SIGUSR2)", "kill -9 of rank 1 alone"]
    assert "equal to the last bit: 24 steps' losses" in done.stdout


def test_a_recipe_that_does_not_run_at_all_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = ["recipe.yaml", "--samples", "12", "objective.clusters=13", "data.workers=0"]
    done = mmssl("rehearse", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "left alone, the run ended with 2: " in done.stderr
    assert "13 clusters of video need at least as many samples, but only 12 have" in done.stderr
    assert "it had 12 samples at most: --samples changes that" in done.stderr


def test_a_rehearsal_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    started = Started("rehearse", "recipe.yaml", cwd=tmp_path)
    runs = tmp_path / "runs"
    started.wait_until(lambda: next(runs.glob("*/undisturbed.txt"), None) is not None)
    started.process.terminate()
    assert started.wait() == 130
    assert started.err.read_text() == "mmssl: interrupted; nothing of the rehearsal is left\n"
    assert list(runs.iterdir()) == []
    command = ["pgrep", "-f", str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).stdout == b""


# What is done to a run, and what is expected of it


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "actor.py").write_text(ACTOR)
    return tmp_path / "actor.py"


@pytest.mark.parametrize(
    ("how", "events", "found"),
    [
        ("well", 4, ""),
        ("ignores", 1, "SIGUSR2 did not stop the run: it went on to its end"),
        ("loses", 1, r"SIGUSR2 lost steps: \d+ were made, 2 are saved"),
        ("stays", 1, "it did not go on, but ended with 1: there is no way on"),
    ],
)
def test_how_a_run_behaves(how: str, events: int, found: str, actor: Path) -> None:
    recipe = load("recipe.yaml", settings(load("recipe.yaml"), ranks=1, samples=48))
    command = [sys.executable, str(actor), how]
    report = rehearse(recipe, command, ranks=1, progress=Silent())
    assert len(report.events) == events
    if found:
        (difference,) = report.differences
        assert re.fullmatch(found, difference)
    else:
        assert report.differences == []
        assert report.compared == "24 steps' losses and the final encoders"
    assert bool(list((actor.parent / "runs").iterdir())) == bool(found)


# The small recipe


def test_a_recipe_of_any_size_becomes_small(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        textwrap.dedent("""\
            data:
              train: {use: synthetic, videos: 100000}
              validation: {use: synthetic, videos: 50000, split: test}
              limit: 90000
            objective: {use: xdc, rounds: 30}
            modalities: {video: video, audio: audio}
            backbones: {video: {use: r3d_18, width: 0.125}, audio: resnet18_audio}
            training:
              epoch_size: 1000000
              epochs: 10
              batch_size: 500
              accumulate: 5
              optimizer: {use: sgd, lr: 0.1}
              schedule: {use: step, step_epochs: 3, warmup_epochs: 1}
              final_round: {epochs: 30}
              early_stop: 2
              compile: true
            evaluations: {clusters: clusters}
            device: cuda
            """)
    )
    recipe = load(tmp_path / "recipe.yaml")
    small = load(tmp_path / "recipe.yaml", settings(recipe, ranks=4, samples=300))
    assert (small.data.limit, small.data.validation, small.evaluations) == (300, None, {})
    assert small.training.batch_size == 4 * 5 * 4
    assert (small.device, small.trackers, small.training.compile) == ("cpu", [], False)
    assert (small.launch.use, small.launch.parameters["processes"]) == ("local", 4)
    # Two rounds of twelve steps, the last one as the first.
    assert " 2 rounds, 24 steps, " in make_plan(small).summary
    # What decides what is learned, but for sizes, is the recipe's.
    assert small.training.optimizer == recipe.training.optimizer
    assert small.training.schedule == recipe.training.schedule
    assert small.backbones == recipe.backbones
    assert small.data.train == recipe.data.train


def test_what_is_small_is_not_made_larger(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    words = ["data.limit=20", "training.batch_size=2", "objective.rounds=1"]
    recipe = load(tmp_path / "recipe.yaml", words)
    small = load(tmp_path / "recipe.yaml", [*words, *settings(recipe, ranks=1, samples=300)])
    assert (small.data.limit, small.training.batch_size) == (20, 2)
    assert small.objective == recipe.objective


# What is compared


def left(run: Path, losses: list[float], **other: Any) -> Path:
    """A finished run's folder."""
    (run / "clusters" / "round-01").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    records = [
        {"kind": "step", "step": i, "loss": loss, "clips_per_second": other.get("speed", 1)}
        for i, loss in enumerate(losses, start=1)
    ]
    records.append({"kind": "round", "step": 0, "round": 1, "used": other.get("used", 4)})
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    np.save(run / "clusters" / "round-01" / "video.labels.npy", other.get("labels", [0, 1, 2]))
    (run / "clusters" / "round-01" / "times.json").write_text(str(other.get("speed", 1)))
    weights = {"a": torch.ones(3), "b": torch.tensor([1.0, other.get("weight", 2.0)])}
    save_file(weights, run / "checkpoints" / "encoders.safetensors")
    return run


@pytest.mark.parametrize(
    ("losses", "other", "found"),
    [
        ([0.3, 0.2, 0.1], {"speed": 7}, []),
        (
            [0.3, 0.2000000001, 0.4],
            {},
            ["step 2: loss is 0.2 undisturbed, 0.2000000001 disturbed (2 of 3 differ)"],
        ),
        ([0.3, 0.2], {}, ["step 3 is missing in the disturbed run's log (1 of 3 differ)"]),
        (
            [0.3, 0.2, 0.1, 0.1],
            {},
            ["step 4 is missing in the undisturbed run's log (1 of 4 differ)"],
        ),
        (
            [0.3, 0.2, 0.1],
            {"used": 3, "labels": [0, 1, 1]},
            [
                "round 1: used is 4 undisturbed, 3 disturbed (1 of 1 differ)",
                "clusters/round-01/video.labels.npy differs (1 of 1 arrays of clusters do)",
            ],
        ),
        ([0.3, 0.2, 0.1], {"weight": 2.5}, ["final encoders: b differs by 0.5 at most"]),
    ],
)
def test_the_first_difference_is_named(
    losses: list[float], other: dict[str, Any], found: list[str], tmp_path: Path
) -> None:
    ours, theirs = left(tmp_path / "a", [0.3, 0.2, 0.1]), left(tmp_path / "b", losses, **other)
    assert list(differences(ours, theirs)) == found
