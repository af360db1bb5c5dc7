"""Sweeps and the comparison of what they found."""

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm, fake_slurm
from small_runs import RECIPE, mmssl, steps

from mmssl.cli import main
from mmssl.errors import UserError
from mmssl.pipeline.comparison import compare
from mmssl.pipeline.records import Records, find_runs
from mmssl.pipeline.run_folder import RunFolder
from mmssl.pipeline.sweeps import runs_of
from mmssl.recipe import load

__all__ = ["fake_slurm"]

EVALUATIONS = """\
evaluations:
  clusters: {use: clusters}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe."""
    (tmp_path / "recipe.yaml").write_text(RECIPE + EVALUATIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*words: str) -> int:
    """The exit code of the command line in this process."""
    before, sys.argv = sys.argv, ["mmssl", *words]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("main returned")


# Names and values


def test_a_sweep_is_the_product_of_its_values(place: Path) -> None:
    sweeps = ["objective.clusters=4,8", "training.optimizer.lr=1e-3,2e-3,0.1"]
    found = runs_of("recipe.yaml", ["name=grid", "seed=3"], sweeps)
    expected = [
        (f"grid.clusters-{clusters}.lr-{lr}", clusters, float(lr), 3)
        for clusters in (4, 8)
        for lr in ("1e-3", "2e-3", "0.1")
    ]
    parameters = [(r.name, r.objective.parameters, r.training.optimizer.parameters) for r in found]
    seen = [
        (n, o["clusters"], t["lr"], r.seed) for (n, o, t), r in zip(parameters, found, strict=True)
    ]
    assert seen == expected
    assert [r.name for r in runs_of("recipe.yaml", [], [])] == ["small"]


def test_values_with_commas_and_names_that_folders_may_have(place: Path) -> None:
    sweep = "training.optimizer={use: sgd, lr: 0.1},'adamw',{use: adamw, beta2: 0.95}"
    found = runs_of("recipe.yaml", [], [sweep])
    assert [run.training.optimizer.use for run in found] == ["sgd", "adamw", "adamw"]
    assert [run.name for run in found] == [
        "small.optimizer-use_sgd_lr_0.1",
        "small.optimizer-adamw",
        "small.optimizer-use_adamw_beta2_0.95",
    ]
    found = runs_of("recipe.yaml", [], ['description="a, b",../../etc'])
    assert [run.description for run in found] == ["a, b", "../../etc"]
    assert [run.name for run in found] == ["small.description-a_b", "small.description-.._.._etc"]


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["seed"], "write KEY=VALUE,VALUE"),
        (["seed=1,,2"], "write KEY=VALUE,VALUE"),
        (["seed="], "write KEY=VALUE,VALUE"),
        (["seed=1,two"], "seed: expected a whole number"),
        (["seed=1", "seed=2"], "swept twice"),
        (["seed=1,1"], "two runs would be called 'small.seed-1'"),
        (["name=a,b"], "name is the same in all runs"),
        (["launch.nodes=1,2"], "launch is the same in all runs"),
        ([f"description={'x' * 101},y"], "name: expected at most 100 letters"),
    ],
)
def test_mistakes_in_a_sweep(sweeps: list[str], message: str, place: Path) -> None:
    with pytest.raises(UserError) as raised:
        runs_of("recipe.yaml", [], sweeps)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_wrong_value_and_nothing_is_started(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("run", "recipe.yaml", "--sweep", "modalities.video.crop=16,20,64")
    assert command(*words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "crop" in line
    assert not (place / "runs").exists()


# Running


@pytest.mark.slow
def test_runs_one_after_the_other_whatever_becomes_of_one(place: Path) -> None:
    sweep = ("--sweep", "training.optimizer.lr=1e30,0.002", "training.epochs=1")
    done = mmssl("run", "recipe.yaml", *sweep, cwd=place)
    assert done.returncode == 2
    assert done.stderr == "mmssl: 1 of 2 runs failed: small.lr-1e30\n"
    assert "small.lr-1e30 failed: the loss is nan" in done.stdout
    good = place / "runs" / "small.lr-0.002"
    assert steps(good) == 8
    assert (good / "evaluations/clusters/metrics.json").is_file()

    # The one that failed was never measured, and what lacks a figure comes last.
    by = ("--by", "clusters/video/purity", "--lowest")
    done = mmssl("compare", "small.lr-*", *by, "--json", cwd=place)
    first, second = json.loads(done.stdout)
    assert (first["run"], second["run"]) == ("runs/small.lr-0.002", "runs/small.lr-1e30")
    assert first["recipe"] == {"training.optimizer.lr": 0.002}
    assert "clusters/video/purity" in first["metrics"]


def test_a_sweep_is_an_array_for_each_stage(
    place: Path, fake_slurm: FakeSlurm, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = ("--launch", "slurm", "launch.array_parallelism=2", "--sweep", "seed=1,2,3,4,5")
    finished = RunFolder(load("recipe.yaml", ["seed=2", "name=small.seed-2"]))
    finished.prepare()
    finished.finish("pretrain")
    all_done = RunFolder(load("recipe.yaml", ["seed=4", "name=small.seed-4"]))
    all_done.prepare()
    all_done.finish("pretrain")
    all_done.finish("clusters")
    assert command("run", "recipe.yaml", *sweep) == 0
    printed = capfd.readouterr().out
    found = [
        (o["job-name"], o.get("array"), o.get("dependency"))
        for o in map(fake_slurm.options, fake_slurm.scripts())
    ]
    assert found == [
        ("small.seed.pretrain", "0-2%2", None),
        ("small.seed.clusters", "0-2%2", "aftercorr:101"),
        ("small.seed-2.clusters", None, None),
    ]
    assert "small.seed-3: clusters submitted as job 102_1, after job 101_1\n" in printed
    jobs = {
        seed: [
            job.job if (job := Records(place / "runs" / f"small.seed-{seed}").job(stage)) else None
            for stage in ("pretrain", "clusters")
        ]
        for seed in range(1, 6)
    }
    assert jobs == {
        1: ["101_0", "102_0"],
        2: [None, "103"],
        3: ["101_1", "102_1"],
        4: [None, None],
        5: ["101_2", "102_2"],
    }
    # Each member of an array finds its own run.
    from submitit.core.utils import DelayedSubmission

    for stage, array in (("pretrain", "101"), ("clusters", "102")):
        logs = place / "runs" / ".sweeps" / f"small.seed.{stage}"
        for index, seed in enumerate((1, 3, 5)):
            member = DelayedSubmission.load(logs / f"{array}_{index}_submitted.pkl").function
            assert member.name == stage
            assert Path(member.folder) == place / "runs" / f"small.seed-{seed}"

    # Once more, while some live: only what died is submitted, each after its own pretraining.
    fake_slurm.queue(
        {"101_0": "RUNNING", "101_1": "COMPLETED", "101_2": "FAILED", "103": "RUNNING"}
        | {"102_0": "CANCELLED", "102_1": "CANCELLED", "102_2": "PENDING|Dependency"}
    )
    RunFolder(load("recipe.yaml", ["seed=3", "name=small.seed-3"])).finish("pretrain")
    assert command("run", "recipe.yaml", *sweep) == 0
    scripts = [job for job in fake_slurm.scripts() if int(job) > 103]
    found = [
        (o["job-name"], o.get("array"), o.get("dependency"))
        for o in map(fake_slurm.options, scripts)
    ]
    assert found == [
        ("small.seed-5.pretrain", None, None),
        ("small.seed-5.clusters", None, "afterok:104"),
        ("small.seed-3.clusters", None, None),
        ("small.seed-1.clusters", None, "afterok:101_0"),
    ]
    assert fake_slurm.calls("scancel") == ["102_2"]


# Comparing


def made(place: Path, name: str, *overrides: str, loss: float, **metrics: float) -> None:
    """A run as one leaves it, as far as comparisons look."""
    folder = RunFolder(load(place / "recipe.yaml", [f"name={name}", *overrides]))
    folder.prepare()
    record = {"kind": "step", "step": 16, "loss": loss}
    (folder.path / "log.jsonl").write_text(json.dumps(record) + "\n")
    if metrics:
        out = folder.evaluation("clusters")
        out.mkdir(parents=True)
        (out / "metrics.json").write_text(json.dumps(metrics))
        folder.finish("clusters")


@pytest.fixture
def three(place: Path) -> Path:
    made(place, "a", "seed=1", loss=2.5, purity=0.5, nmi=0.1)
    made(place, "b", "seed=2", "training.optimizer={use: sgd, lr: 0.1}", loss=1.5, purity=0.7)
    made(place, "c", "seed=2", "device=auto", loss=2.0)
    return place


def records(three: Path, *words: str, capfd: Any) -> list[dict[str, Any]]:
    assert command("compare", "runs/a", "b", "c", "--json", *words) == 0
    found: list[dict[str, Any]] = json.loads(capfd.readouterr().out)
    return found


def test_compared_runs_show_what_they_differ_in(
    three: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, third = records(three, capfd=capfd)
    assert first["recipe"]["seed"] == 1
    assert first["recipe"]["training.optimizer.use"] == "adamw"
    assert second["recipe"]["training.optimizer.lr"] == 0.1
    assert "training.optimizer.beta2" not in second["recipe"]
    assert third["recipe"]["device"] == "auto"
    assert "training.epochs" not in first["recipe"]
    assert first["metrics"] == {"loss": 2.5, "clusters/purity": 0.5, "clusters/nmi": 0.1}
    assert third["metrics"] == {"loss": 2.0}
    assert command("compare", "runs/[ab]") == 0
    shown = capfd.readouterr().out
    titles, *rows = [
        [cell.strip() for cell in line[1:-1].replace("┃", "│").split("│")]
        for line in shown.splitlines()
        if line[0] in "┃│"
    ]
    assert titles[:4] == ["run", "seed", "use", "lr"]
    assert [row[:4] for row in rows] == [["a", "1", "adamw", "0.002"], ["b", "2", "sgd", "0.1"]]
    assert "0.700" in rows[1]


@pytest.mark.parametrize(
    ("words", "order"),
    [
        ([], "abc"),
        (["--by", "purity"], "bac"),
        (["--by", "clusters/purity", "--lowest"], "abc"),
        (["--by", "loss", "--lowest"], "bca"),
        (["--by", "nmi"], "abc"),
    ],
)
def test_compared_runs_are_sorted(
    words: list[str], order: str, three: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = records(three, *words, capfd=capfd)
    assert "".join(record["run"][-1] for record in found) == order


def test_a_metric_that_no_run_has(three: Path) -> None:
    runs = find_runs(["a", "b"])
    with pytest.raises(UserError, match="no run has such a metric; did you mean 'clusters/purity'"):
        compare(runs, "clusters/purty")


def test_metrics_of_another_recipe_are_not_shown(three: Path) -> None:
    RunFolder(load("recipe.yaml", ["name=a", "seed=1", "evaluations.clusters.round=1"])).prepare()
    (row,) = compare(find_runs(["a"])).rows
    assert row.metrics == {"loss": 2.5}


def sweeping(place: Path, sweep: str) -> None:
    text = (place / "recipe.yaml").read_text()
    (place / "study.yaml").write_text(f"{text}\nsweep:\n{textwrap.indent(sweep, '  ')}\n")


def test_a_recipe_may_say_which_runs_it_stands_for(place: Path) -> None:
    sweeping(
        place,
        "method:\n"
        "  none: {objective: scratch}\n"
        "  few: {objective: {clusters: 4}, training: {epochs: 3}}\n"
        "  as it is:\n"
        "seed: [7, 8]",
    )
    found = runs_of("study.yaml", ["name=study"], [])
    assert [recipe.name for recipe in found] == [
        f"study.{method}.seed-{seed}" for method in ("none", "few", "as_it_is") for seed in (7, 8)
    ]
    plain = load("recipe.yaml", [])
    assert [recipe.seed for recipe in found] == [7, 8] * 3
    assert found[0].objective.use == "scratch"
    assert found[2].objective.parameters["clusters"] == 4
    assert found[2].training.epochs == 3
    assert found[4].objective == plain.objective
    # The command line comes last, and its values stand for the recipe's.
    one, *others = runs_of("study.yaml", ["name=study", "training.epochs=1"], ["seed=5"])
    assert [recipe.name for recipe in others] == ["study.few.seed-5", "study.as_it_is.seed-5"]
    assert {recipe.training.epochs for recipe in (one, *others)} == {1}
    assert one.seed == 5
    # Alone, and where it is extended, it is a recipe like any other.
    assert load("study.yaml", ["name=x"]).plain() == load("recipe.yaml", ["name=x"]).plain()


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("seed: 3", "sweep.seed: expected a list of values, or parts of a recipe by name"),
        ("seed: []", "sweep.seed: expected a list"),
        ("method: {a: xdc}", "sweep.method.a: expected a part of a recipe"),
        ("method: {a: {name: x}}", "sweep.method.a: name is the same in all runs"),
        ("runs: [a, b]", "sweep.runs: runs is the same in all runs"),
        ("method: {a: {objective: {clusterz: 3}}}", "objective.clusterz: unknown key"),
        ("seed: [1, 1]", "two runs would be called"),
    ],
)
def test_mistakes_in_a_recipes_sweep(sweep: str, message: str, place: Path) -> None:
    sweeping(place, sweep)
    with pytest.raises(UserError, match=re.escape(message)):
        runs_of("study.yaml", [], [])


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("seed=5", "seed is what 'seed' sweeps"),
        ("objective=sdc", "objective is what 'method' sweeps"),
        ("objective.use=sdc", "objective.use is what 'method' sweeps"),
        ("training={epochs: 1}", "training is what 'method' sweeps"),
        ("training.epochs=1", None),
        ("objective.clusters=6", None),
        ("sweep.seed=null", None),
    ],
)
def test_runs_are_what_their_names_say(override: str, refused: str | None, place: Path) -> None:
    sweeping(
        place,
        "method:\n  sdc: {objective: {use: sdc, clusters: 4}}\n"
        "  long: {training: {epochs: 3}}\nseed: [7, 8]",
    )
    if refused is None:
        assert {r.name.split(".")[1] for r in runs_of("study.yaml", [override], [])} == {
            "sdc",
            "long",
        }
        return
    with pytest.raises(UserError, match=re.escape(refused)):
        runs_of("study.yaml", [override], [])
