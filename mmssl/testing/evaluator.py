"""What holds of every evaluator, behind the encoders of a tiny run of its recipe."""

import json
import math
import shutil
from functools import cached_property
from numbers import Number
from typing import Any

from mmssl.contracts import Evaluation
from mmssl.pipeline import assembly, evaluation
from mmssl.pipeline.run_folder import RunFolder
from mmssl.testing.check import fail, require
from mmssl.testing.crew import SIZE, on_ranks
from mmssl.testing.loops import temporary_folder
from mmssl.testing.material import Material, reloaded, seed_everything
from mmssl.testing.runs import TinyRun, quoted, threads_of
from mmssl.training.progress import Silent


class Case:
    """An evaluation of a recipe.

    Args:
        material: of the recipe.
        name: of the evaluation.
    """

    def __init__(self, material: Material, name: str) -> None:
        self.material = material
        self.name = name

    @property
    def run(self) -> TinyRun:
        """Whose encoders are measured."""
        return self.material.run

    @cached_property
    def found(self) -> Evaluation:
        """What it finds, asked without the stage around it."""
        run = self.run
        run.stage("pretrain")
        with threads_of(run.recipe), temporary_folder() as folder:
            seed_everything(1)
            context = evaluation.Context(
                recipe=run.recipe,
                run_folder=run.path,
                folder=folder,
                device=assembly.choose_device(run.recipe),
                components=assembly.measured_modalities(run.recipe, self.name),
                pretraining_data=assembly.build_datasets(run.recipe)[0],
                title=self.name,
                progress=Silent(),
            )
            found: Evaluation = run.recipe.evaluations[self.name].build().evaluate(context)
        return found


def finds_figures(case: Case) -> None:
    """It returns metrics by name, rectangular tables, and figures"""
    found = case.found
    if not isinstance(found, Evaluation):
        fail(f"evaluate returned a {type(found).__name__}: return mmssl.Evaluation")
    require(bool(found.metrics), "it found no metrics: a run is compared with others by them")
    for name, value in found.metrics.items():
        if not isinstance(name, str) or not isinstance(value, int | float):
            fail(
                f"the metric {name!r} is a {type(value).__name__}: give each a name and a number "
                "(float(x) of a tensor or of NumPy's)"
            )
    for table in found.tables:
        for row in table.rows:
            require(
                len(row) == len(table.columns),
                f"a row of the table {table.title!r} has {len(row)} cells for "
                f"{len(table.columns)} columns",
            )
    for name, figure in found.figures.items():
        require(
            bool(name) and "/" not in name and hasattr(figure, "savefig"),
            f"the figure {name!r} must be matplotlib's, under a file's name without ending",
        )
    try:
        json.dumps([[list(row) for row in table.rows] for table in found.tables])
    except TypeError as error:
        fail(f"a table cannot be written as JSON ({error}): put text and numbers into its cells")


def writes_them(case: Case) -> None:
    """As a stage it writes what it found"""
    path = case.run.stage(case.name)
    written = json.loads((path / "evaluations" / case.name / "metrics.json").read_text())
    require(bool(written), "its stage wrote no metrics")


def is_deterministic(case: Case) -> None:
    """Asked again it finds the same"""
    path = case.run.stage(case.name)
    first = json.loads((path / "evaluations" / case.name / "metrics.json").read_text())
    again = case.found.metrics
    for name, value in first.items():
        other = again.get(name)
        same = value == other or (value is None and not math.isfinite(_number(other)))
        if not same:
            fail(
                f"{name} was {value}, and is {other} when it is measured again: draw from a "
                "generator that context.seed seeds, and let nothing depend on the order of a set"
            )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Number) else math.nan  # type: ignore[arg-type]


def works_on_ranks(case: Case) -> None:
    """On 2 ranks it comes to its end, with the same metrics' names"""
    run = case.run
    path = run.stage("pretrain")
    with temporary_folder() as folder:
        copy = folder / path.name
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns("evaluations", ".lock"))
        recipe = reloaded(run.recipe.dump(), [f"runs={quoted(folder)}"])
        on_ranks(_evaluate, recipe.dump(), case.name)
        file = copy / "evaluations" / case.name / "metrics.json"
        written = json.loads(file.read_text())
    if missing := set(case.found.metrics) ^ set(written):
        fail(
            f"on {SIZE} ranks there is another metric than on one: {sorted(missing)[0]}. What is "
            "returned on rank 0 is what counts; every rank must make the same calls of the context"
        )


def _evaluate(text: str, name: str) -> None:
    recipe = reloaded(text)
    evaluation.evaluate(recipe, name, RunFolder(recipe), Silent())


TESTS = (finds_figures, writes_them, is_deterministic, works_on_ranks)
