"""``mmssl evaluate``: further measures of a finished run, and further training within one."""

import json
from pathlib import Path

import pytest
from small_runs import RECIPE, Started, environment, mmssl

from mmssl.training import kept_features
from mmssl.training.kept_features import load

DATA = "{use: synthetic, videos: 32, side: 32, fps: 8, seconds: 1}"
TEST = "{use: synthetic, videos: 16, side: 32, fps: 8, seconds: 1, split: test}"
PROBE = ("--with", "linear_probe", f"train={DATA}", f"test={TEST}", "regularisation=[0.01]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished run."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "recipe.yaml").write_text(RECIPE)
    done = mmssl("run", "recipe.yaml", "objective.rounds=1", "training.epochs=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    probe = f"{{use: linear_probe, train: {DATA}, test: {TEST}}}"
    (folder / "part.yaml").write_text(f"extends: []\nevaluations:\n  mine: {probe}\n")
    (folder / "runs" / "second").mkdir()
    kept = (folder / "runs" / "small" / "recipe.yaml").read_text()
    (folder / "runs" / "second" / "recipe.yaml").write_text(kept)
    return folder


def metrics(place: Path, name: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(
        (place / "runs" / "small" / "evaluations" / name / "metrics.json").read_text()
    )
    return found


def test_a_finished_run_is_measured_in_another_way(place: Path) -> None:
    done = mmssl("evaluate", "small", *PROBE, "--name", "probe", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "Linear probe: top-1" in done.stdout
    assert metrics(place, "probe")["video/train_samples"] == 32
    # It is one of the run's evaluations now, as if the recipe had named it.
    assert "probe" in mmssl("status", "small", cwd=place).stdout
    # Also when the recipe, which does not name it, is started again with something to do.
    clusters = ("evaluations={clusters: {use: clusters}}", "objective.rounds=1")
    more = mmssl("run", "recipe.yaml", *clusters, "training.epochs=1", cwd=place)
    assert more.returncode == 0, more.stderr
    assert "probe" in mmssl("status", "small", cwd=place).stdout
    again = mmssl("evaluate", "runs/small", *PROBE, "--name", "probe", cwd=place)
    assert "nothing to do" in again.stdout
    other = mmssl("evaluate", "small", *PROBE, "clips=2", "--name", "probe", cwd=place)
    assert other.returncode == 2
    assert "has an evaluation 'probe' with other parameters" in other.stderr


def test_evaluations_of_another_recipe(place: Path) -> None:
    part = (
        f"extends: []\nevaluations:\n  mine: {{use: linear_probe, train: {DATA}, test: {TEST}}}\n"
    )
    (place / "part.yaml").write_text(part)
    weights = "runs/small/checkpoints/encoders.safetensors"
    parameters = ("evaluations.mine.clips=2", "evaluations.mine.untrained=false")
    done = mmssl("evaluate", weights, "--with", "part.yaml", *parameters, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "video/gain" not in metrics(place, "mine")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("small",), "--with is missing"),
        (("none", *PROBE), "there is no run 'none'"),
        (("small", "--with", "linear_prob"), "did you mean 'linear_probe'?"),
        (("small", "--with", "recipe.yaml"), "names no evaluations"),
        (("small", *PROBE, "clipz=2"), "evaluations.linear_probe.clipz: unknown key"),
        (("recipe.yaml", *PROBE), "is in no run's folder"),
        (("s*", *PROBE), "are 2 runs: name one"),
        (("small", "--with", "part.yaml", "clips=3"), "write evaluations.NAME.KEY=VALUE"),
        (("small", "--with", "part.yaml", "evaluations.mine=null"), "names no evaluations"),
        (("small", *PROBE, "only=[vidoe]"), "the recipe has no modality 'vidoe'"),
    ],
)
def test_mistakes(words: tuple[str, ...], message: str, place: Path) -> None:
    done = mmssl("evaluate", *words, cwd=place)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_is_not_finished_is_refused(place: Path) -> None:
    done = mmssl("evaluate", "second", *PROBE, cwd=place)
    assert done.returncode == 2
    assert "is not finished" in done.stderr


def test_features_go_on_after_a_kill(place: Path) -> None:
    """Killed once a block of features was there: that block is not computed again."""
    data = "{use: synthetic, videos: 600, side: 32, fps: 8, seconds: 1}"
    words = ("evaluate", "small", "--with", "linear_probe", f"train={data}", f"test={TEST}")
    words = (*words, "regularisation=[0.01]", "untrained=false", "--name", "killed")
    folder = place / "runs" / "small" / "evaluations" / "killed"
    first = folder / "features-01" / "000000.npz"
    started = Started(*words, cwd=place, env=environment(place))
    started.wait_until(first.is_file)
    started.kill()
    assert started.all_gone()
    assert not (folder / "metrics.json").exists()
    # Without the sound of some rows, which can be told in the end.
    block = load(first)
    block.present["audio"][:100] = False
    kept_features._write(first, block)
    done = mmssl(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert metrics(place, "killed")["video/train_samples"] == 600
    assert metrics(place, "killed")["audio/train_samples"] == 500
    assert not list(folder.glob("features-*"))
