"""Runs that earlier versions began go on, and what they finished is not done again.

``tests/earlier`` holds what a version without recipe formats, callbacks and states of trackers
wrote of a run: its recipe, and which stages it had finished. The rest of that run, which is large,
is made here by the present version, and put back into the format of then.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_runs import Started, mmssl, outcome, steps

import mmssl as api
from mmssl.errors import UserError
from mmssl.formats import Format
from mmssl.pipeline import evaluation
from mmssl.pipeline.jobs import load_run
from mmssl.pipeline.records import STARTED, Records
from mmssl.pipeline.run_folder import RunFolder
from mmssl.recipe import compose, load

EARLIER = Path(__file__).parent / "earlier"


def aged(run: Path) -> None:
    """Put a run back into the state in which an earlier version left it."""
    shutil.copy(EARLIER / "recipe.yaml", run)
    shutil.copy(EARLIER / "stages" / "recipe.json", run / "stages")
    for finished in EARLIER.glob("stages/*.json"):
        if (run / "stages" / finished.name).is_file():
            shutil.copy(finished, run / "stages")
    for name in ("clusters", "near", "probe"):
        started = run / "evaluations" / name / "started.json"
        if started.is_file():
            record = json.loads((EARLIER / "stages" / f"evaluate-{name}.json").read_text())
            started.write_text(json.dumps(record["fingerprint"]))
    for path in run.glob("checkpoints/step-*.pt"):
        state = torch.load(path, weights_only=True)
        del state["callbacks"], state["trackers"]
        torch.save({**state, "format": 1}, path)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a recipe that says what the earlier run's did, as a person would write it today."""
    folder = tmp_path_factory.mktemp("earlier")
    shutil.copy(EARLIER / "recipe.yaml", folder / "small.yaml")
    done = mmssl("run", "small.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def times(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_a_run_that_an_earlier_version_left_half_trained_goes_on(workplace: Path) -> None:
    run = workplace / "again" / "small"
    started = Started("run", "small.yaml", "runs=again", cwd=workplace)
    started.wait_until(lambda: steps(run) >= 11)
    started.kill()
    aged(run)
    assert "format" not in yaml.safe_load((run / "recipe.yaml").read_text())
    done = mmssl("run", "small.yaml", "runs=again", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert outcome(run) == outcome(workplace / "runs" / "small")
    assert yaml.safe_load((run / "recipe.yaml").read_text())["format"] == 1


def test_what_an_earlier_version_finished_is_not_done_again(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "small"
    shutil.copytree(workplace / "runs" / "small", run)
    shutil.copy(workplace / "small.yaml", tmp_path)
    aged(run)
    before = times(run)
    monkeypatch.chdir(tmp_path)
    done = mmssl("run", "small.yaml", cwd=tmp_path)
    assert "every stage of this run is finished" in done.stdout, done.stderr
    assert times(run) == before
    assert all(Records(run).finished(stage) for stage in ("pretrain", "clusters", "probe", "near"))
    api.load_encoder(run)
    # Without one of its evaluations, and with one more: the others are known to be done.
    added = ["evaluations.near=null", "evaluations.more={use: clusters, top: 1}"]
    folder = RunFolder(load("small.yaml", added))
    folder.prepare()
    stages = {stage: folder.finished(stage) for stage in ("pretrain", "clusters", "probe", "more")}
    assert stages == {"pretrain": True, "clusters": True, "probe": True, "more": False}
    records = Records(run)
    assert records.stages == ["pretrain", "clusters", "probe", "more", "near"]
    assert all(records.finished(stage) for stage in ("pretrain", "clusters", "probe", "near"))
    assert {name for name, at in times(run).items() if before.get(name) != at} == {
        "recipe.yaml",
        "stages/recipe.json",
        *(f"stages/{name}.json" for name in ("pretrain", "evaluate-clusters", "evaluate-near")),
        "stages/evaluate-probe.json",
        *(f"evaluations/{name}/started.json" for name in ("clusters", "near", "probe")),
    }
    assert mmssl("export", "runs/small", cwd=tmp_path).returncode == 0
    done = mmssl("report", "runs/small", "--no-media", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_job_goes_on_in_the_folder_of_an_earlier_version(tmp_path: Path) -> None:
    """It was queued before mmssl was updated; nobody but it writes there meanwhile."""
    run = tmp_path / "runs" / "small"
    shutil.copytree(EARLIER, run)
    written = (run / "recipe.yaml").read_bytes()
    finished = run / "stages" / "evaluate-near.json"
    half_done = run / "evaluations" / "near"
    (half_done / "features").mkdir(parents=True)
    fingerprint = json.loads(finished.read_text())["fingerprint"]
    (half_done / STARTED).write_text(json.dumps(fingerprint))
    finished.unlink()
    (run / "stages" / "pretrain.json").unlink()
    folder = RunFolder(load_run(run))
    evaluation._begin(half_done, folder.fingerprint("near"))
    assert (half_done / "features").is_dir()
    for stage in ("pretrain", "near"):
        assert not folder.finished(stage)
        folder.finish(stage)
        assert folder.finished(stage)
        assert Records(run).finished(stage), "what mmssl status and mmssl export ask"
    assert (run / "recipe.yaml").read_bytes() == written
    folder.prepare()
    assert all(RunFolder(load_run(run)).finished(stage) for stage in ("pretrain", "near", "probe"))
    assert all(Records(run).finished(stage) for stage in ("pretrain", "near", "probe"))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("objective.clusters=5", r"objective.clusters was 4, is 5"),
        ("training.clip_norm=1", r"training.clip_norm was None, is 1.0"),
    ],
)
def test_another_recipe_is_still_another(
    override: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EARLIER, tmp_path / "runs" / "small")
    folder = RunFolder(load(EARLIER / "recipe.yaml", [override]))
    assert not folder.finished("pretrain")
    with pytest.raises(UserError, match=reason):
        folder.prepare()
    with pytest.raises(UserError, match=r"objective\.sizes was 3, is not set"):
        _with(tmp_path, lambda plain: plain["objective"].update(sizes=3)).prepare()


def _with(place: Path, change: Callable[[dict[str, Any]], None]) -> RunFolder:
    """The earlier run, of which the recipe said something else."""
    path = place / "runs" / "small" / "stages" / "recipe.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    return RunFolder(load(EARLIER / "recipe.yaml"))


def test_an_evaluation_of_another_kind_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EARLIER, tmp_path / "runs" / "small")
    folder = RunFolder(load(EARLIER / "recipe.yaml", ["evaluations.clusters.top=5"]))
    assert (folder.finished("pretrain"), folder.finished("probe")) == (True, True)
    assert not folder.finished("clusters")
    folder.prepare()
    assert (folder.finished("pretrain"), folder.finished("probe")) == (True, True)
    assert not folder.finished("clusters")


def test_an_evaluation_whose_plugin_has_gone_is_in_no_other_one_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there = shutil.copytree(EARLIER, tmp_path / "runs" / "small") / "recipe.yaml"
    text = there.read_text()
    assert text.count("\nevaluations:\n") == 1
    there.write_text(text.replace("\nevaluations:\n", "\nevaluations:\n  gone: {use: gone}\n"))
    folder = RunFolder(load(EARLIER / "recipe.yaml"))
    assert all(folder.finished(stage) for stage in ("pretrain", "clusters", "probe"))


# Formats of recipes


def written(folder: Path, **files: str) -> Path:
    text = (EARLIER / "recipe.yaml").read_text()
    for name, head in files.items():
        (folder / f"{name}.yaml").write_text(head + (text if "extends" not in head else ""))
    return folder / "my.yaml"


def test_a_recipe_may_say_its_format_and_a_resolved_one_always_does(tmp_path: Path) -> None:
    recipe = load(written(tmp_path, my="format: 1\n"))
    assert recipe == load(written(tmp_path, my=""))
    assert recipe.dump().startswith("format: 1\n")
    heads = {"base": "format: 1\n", "my": "extends: base.yaml\n"}
    assert load(written(tmp_path, **heads)).format == 1


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            "format: 2\n",
            "my.yaml:1: format: was written by a newer mmssl than this one, which is 0.1.0 (its "
            "format is 2, formats up to 1 are read): pip install -U mmssl",
        ),
        ("\nformat: one\n", "my.yaml:2: format: its format is 'one', not a number from 1 to 1"),
        ("format: 0\n", "my.yaml:1: format: its format is 0, not a number from 1 to 1"),
        ("format: true\n", "my.yaml:1: format: its format is True, not a number from 1 to 1"),
    ],
)
def test_a_recipe_of_another_format_is_refused(head: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(written(tmp_path, my=head))
    assert str(caught.value).removeprefix(f"{tmp_path}/") == said


def test_each_file_is_brought_to_the_present_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if formats 1 and 2 had written other words for what is ``seed`` now."""

    def to_2(content: dict[str, Any]) -> dict[str, Any]:
        return {{"sed": "sead"}.get(key, key): node for key, node in content.items()}

    def to_3(content: dict[str, Any]) -> dict[str, Any]:
        return {{"sead": "seed"}.get(key, key): node for key, node in content.items()}

    monkeypatch.setattr(compose, "RECIPE", Format(3, {1: to_2, 2: to_3}, "write it anew"))
    text = (EARLIER / "recipe.yaml").read_text().replace("seed: 1\n", "", 1)
    (tmp_path / "base.yaml").write_text("format: 1\nsed: 11\n" + text)
    (tmp_path / "my.yaml").write_text("extends: base.yaml\n")
    assert load(tmp_path / "my.yaml").seed == 11
    (tmp_path / "my.yaml").write_text("extends: base.yaml\nformat: 2\nsead: 12\n")
    assert load(tmp_path / "my.yaml").seed == 12
    (tmp_path / "my.yaml").write_text("extends: base.yaml\nseed: 13\n")
    assert load(tmp_path / "my.yaml").seed == 13
    monkeypatch.setattr(compose, "RECIPE", Format(3, {2: to_3}, "write it anew"))
    with pytest.raises(UserError, match=r"in format 1, which 0.1.0 does not read any more: write"):
        load(tmp_path / "my.yaml")
