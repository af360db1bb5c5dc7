"""The papers' tables beside what runs have measured."""

import json
import statistics
import sys
from pathlib import Path

import pytest

from mmssl.cli import main
from mmssl.errors import UserError
from mmssl.pipeline.records import Records, fingerprint
from mmssl.pipeline.tables import collect, load_table, markdown, shown
from mmssl.recipe.compose import shipped_recipes, shipped_tables

TABLE = """\
title: Methods
source: a paper
columns:
  UCF: {metric: "ucf_*/video/top1"}
  ESC: {metric: esc/audio/top1, digits: 2}
  loss: {metric: loss, scale: 1, lowest: true}
rows:
  XDC: {paper: {UCF: 74.2, ESC: 78}, run: "study.xdc.seed-*", recipe: quickstart}
  mixed: {run: {UCF: study.xdc.seed-0, ESC: other}}
  others': {paper: {UCF: 50.25}}
  to come: {paper: {ESC: 70}, run: never}
"""


def make_run(folder: Path, evaluations: dict[str, dict[str, float]]) -> None:
    recipe = {
        "training": {},
        "data": {},
        "evaluations": {name: {"use": "linear_probe"} for name in evaluations},
    }
    (folder / "stages").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    for name, metrics in evaluations.items():
        (folder / "evaluations" / name).mkdir(parents=True)
        (folder / "evaluations" / name / "metrics.json").write_text(json.dumps(metrics))
        finished = {"fingerprint": fingerprint(Records(folder).recipe, name), "at": ""}
        (folder / "stages" / f"evaluate-{name}.json").write_text(json.dumps(finished))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, (low, high) in enumerate([(0.5, 0.75), (0.8, 0.25), (0.5, 0.5)]):
        found = {"ucf_a": {"video/top1": low}, "ucf_b": {"video/top1": high}}
        make_run(tmp_path / f"study.xdc.seed-{seed}", found)
    make_run(tmp_path / "other", {"esc": {"audio/top1": 0.12345}, "ucf_a": {"video/top1": 1.0}})
    (tmp_path / "t.yaml").write_text(TABLE)
    return tmp_path


def test_figures_are_the_papers_and_the_runs(runs: Path) -> None:
    collected = collect(load_table(str(runs / "t.yaml")), runs)
    best = [75.0, 80.0, 50.0]
    cell = collected.cells["XDC"]["UCF"]
    assert cell.measured == pytest.approx(statistics.mean(best))
    assert cell.deviation == pytest.approx(statistics.stdev(best))
    assert (cell.paper, cell.runs, cell.best_of) == (74.2, 3, 2)
    titles, rows = shown(collected)
    assert titles == ["", "UCF paper", "UCF measured", "ESC paper", "ESC measured", "loss"]
    assert rows == [
        ["XDC", "74.2", "68.3 ± 16.1", "78.00", "not run", "not run"],
        ["mixed", "-", "75.0", "-", "12.35", ""],
        ["others'", "50.2", "", "-", "", ""],
        ["to come", "-", "not run", "70.00", "not run", "not run"],
    ]
    assert collected.not_run() == [("to come", None)]
    assert markdown(titles, rows).splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"


def test_a_row_may_be_a_part_of_a_run(runs: Path) -> None:
    text = TABLE.replace("ESC: other}}", "ESC: other}, metric: {UCF: ucf_b/video/top1}}")
    (runs / "t.yaml").write_text(text)
    cells = collect(load_table(str(runs / "t.yaml")), runs).cells
    assert (cells["mixed"]["UCF"].measured, cells["mixed"]["UCF"].best_of) == (75.0, 1)
    assert cells["mixed"]["ESC"].measured == pytest.approx(12.345)
    assert cells["XDC"]["UCF"].best_of == 2
    (runs / "t.yaml").write_text(text.replace("metric: {UCF: ucf_b", "metric: {UFC: ucf_b"))
    with pytest.raises(UserError, match=r"rows.mixed: there is no column 'UFC'"):
        load_table(str(runs / "t.yaml"))


def test_an_evaluation_that_is_not_finished_counts_for_nothing(runs: Path) -> None:
    (runs / "other" / "stages" / "evaluate-esc.json").unlink()
    cells = collect(load_table(str(runs / "t.yaml")), runs).cells
    assert cells["mixed"]["ESC"].measured is None


def test_the_command(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setattr(sys, "argv", ["mmssl", "table", "t.yaml", "--runs", "."])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "Methods (a paper)" in out
    assert "68.3 ± 16.1" in out
    assert "the best of 2 evaluations of each run" in out
    assert "not run: to come: no recipe for it is shipped yet" in out


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("ESC: 78", "ESK: 78", "rows.XDC: there is no column 'ESK'"),
        ("recipe: quickstart", "recipe: quickstar", "rows.XDC.recipe: there is no recipe"),
        ("digits: 2", "digits: two", "columns.ESC.digits: expected a whole number"),
        ("metric: loss", "metrik: loss", "unknown key; did you mean 'metric'?"),
        ("title: Methods", "- title", "t.yaml:"),
    ],
)
def test_mistakes_in_a_table(before: str, after: str, message: str, runs: Path) -> None:
    (runs / "t.yaml").write_text(TABLE.replace(before, after))
    with pytest.raises(UserError) as error:
        load_table(str(runs / "t.yaml"))
    assert message in str(error.value)


def test_an_unknown_table() -> None:
    with pytest.raises(UserError, match="did you mean 'methods_small'"):
        load_table("method_small")


def test_tables_are_no_recipes() -> None:
    names = {name for name, _ in shipped_tables()}
    assert {"methods_small", "xdc_1_methods", "vatt_2", "avbert_1c"} <= names
    assert not any(recipe.startswith("tables/") for recipe, _ in shipped_recipes())


def test_figures_of_fewer_runs_are_named(runs: Path) -> None:
    (runs / "study.xdc.seed-1" / "stages" / "evaluate-ucf_b.json").unlink()
    for name in ("ucf_a", "ucf_b"):
        (runs / "study.xdc.seed-0" / "stages" / f"evaluate-{name}.json").unlink()
    table = load_table(str(runs / "t.yaml"))
    assert collect(table, runs).incomplete() == []  # no figure to compare with
    make_run(runs / "study.xdc.seed-7", {"esc": {"audio/top1": 0.5}})
    make_run(runs / "study.xdc.seed-8", {"esc": {"audio/top1": 0.5}})
    make_run(runs / "study.xdc.seed-9", {"esc": {"audio/top1": 0.5}})
    assert collect(table, runs).incomplete() == ["XDC, UCF: 2 of 3 runs"]


def test_a_table_of_ones_own_names_ones_own_recipe(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    (runs / "mine.yaml").write_text("extends: quickstart\n")
    (runs / "t.yaml").write_text(TABLE.replace("recipe: quickstart", "recipe: mine.yaml"))
    assert load_table("t.yaml").rows["XDC"].recipe == "mine.yaml"
