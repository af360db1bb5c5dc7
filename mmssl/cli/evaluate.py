"""``mmssl evaluate``: measure what a run has learned, in a way that its recipe does not name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmssl.completion import names

if TYPE_CHECKING:
    from mmssl.recipe.yaml12 import Node


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run's folder, its name under ./runs, or a checkpoint in it.",
            autocompletion=names.checkpoints,
        ),
    ],
    parameters: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="The evaluator's parameters, such as train.use=ucf101.",
            autocompletion=names.parameters,
        ),
    ] = None,
    evaluator: Annotated[
        str,
        typer.Option(
            "--with",
            help="An evaluator, or a recipe (file or shipped) with evaluations.",
            autocompletion=names.evaluators,
        ),
    ] = "",
    name: Annotated[
        str | None, typer.Option(help="What to call it; by default as the evaluator.")
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(
            help="How to start it, if not as the run was: inline, slurm.",
            autocompletion=names.launchers,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; read no media, write nothing.")
    ] = False,
) -> None:
    """Measure the encoders of a finished run.

    What is found goes into the run's folder beside the recipe's own evaluations, and goes on where
    it was when it is started again. For weights that no run here has made, begin one that trains
    nothing: mmssl run RECIPE objective=scratch backbones.video.weights=FILE

    Examples:
      mmssl evaluate quickstart --with knn train.use=synthetic "test={use: synthetic, split: test}"
      mmssl evaluate runs/xdc --with linear_probe --name ucf train.use=ucf101 train.path=UCF101 ...
      mmssl evaluate runs/xdc --with evaluations/xdc_ucf101
    """
    from mmssl.cli.run import start
    from mmssl.contracts import Launcher
    from mmssl.errors import UserError
    from mmssl.pipeline.jobs import load_run
    from mmssl.pipeline.plan import make_plan
    from mmssl.pipeline.records import PRETRAIN
    from mmssl.pipeline.run_folder import RunFolder

    if not evaluator:
        raise UserError("--with is missing: it names an evaluator (mmssl ls evaluators)")
    run = _run_of(checkpoint)
    before = load_run(run)
    overrides, variants, names = _chosen(evaluator, name, parameters or [])
    # How it is started this time is not what the run's recipe says from now on.
    recipe = load_run(run, overrides, variants)
    for each in names:
        if each in before.evaluations and before.evaluations[each] != recipe.evaluations[each]:
            raise UserError(
                f"{run} has an evaluation {each!r} with other parameters: call this one "
                "otherwise (--name)"
            )
    if not RunFolder(recipe).finished(PRETRAIN):
        raise UserError(f"the pretraining of {run} is not finished: mmssl run its recipe first")
    started = recipe
    if launch is not None:
        started = load_run(run, [*overrides, f"launch={launch}"], variants)
    launcher: Launcher = started.launch.build()
    launcher.check(started)
    start([(recipe, make_plan(started))], launcher, dry_run, only=names)


def _run_of(checkpoint: str) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    from mmssl.errors import UserError
    from mmssl.pipeline.records import find_runs

    path = Path(checkpoint)
    if path.is_file():
        path = path.absolute()
        if path.parent.name != "checkpoints" or not (path.parents[1] / "recipe.yaml").is_file():
            raise UserError(
                f"{path} is in no run's folder; to measure weights from elsewhere: mmssl run "
                f"RECIPE objective=scratch backbones.KEY.weights={path}"
            )
        path = path.parents[1]
    found = find_runs([str(path)])
    if len(found) > 1:
        raise UserError(f"{checkpoint!r} are {len(found)} runs: name one")
    return found[0].path.absolute()


def _chosen(
    evaluator: str, name: str | None, parameters: list[str]
) -> "tuple[list[str], list[Node], list[str]]":
    """What is laid over the run's recipe, and the names of the evaluations in it."""
    import json
    import os

    from mmssl.errors import UserError
    from mmssl.recipe.compose import resolve
    from mmssl.recipe.yaml12 import Node
    from mmssl.registry import discover

    components = discover().components("evaluators")
    known = {c.name for c in components} | {f"{c.owner}/{c.name}" for c in components}
    if evaluator in known:
        name = name or evaluator.rpartition("/")[2]
        fields = [f"use={json.dumps(evaluator)}", *parameters]
        return [f"evaluations.{name}.{field}" for field in fields], [], [name]
    for parameter in parameters:
        if not parameter.strip().startswith("evaluations."):
            raise UserError(
                f"command line: {parameter!r}: of a recipe, its evaluations are run: write "
                "evaluations.NAME.KEY=VALUE"
            )
    try:
        tree = resolve(evaluator, parameters, os.environ)
    except UserError as error:
        if Path(evaluator).suffix or "/" in evaluator:
            raise
        discover().resolve("evaluators", evaluator)  # says which there are
        raise error
    assert isinstance(tree.value, dict)
    part = tree.value.get("evaluations")
    whole = part.value if part is not None and isinstance(part.value, dict) else {}
    found = {key: node for key, node in whole.items() if node.value is not None}
    if part is None or not found:
        raise UserError(f"{evaluator}: names no evaluations")
    if name is not None:
        if len(found) > 1:
            raise UserError(f"--name: {evaluator} has {len(found)} evaluations")
        found = {name: next(iter(found.values()))}
    return [], [Node({"evaluations": Node(found, part.place)}, tree.place)], list(found)
