"""``mmssl run``: pretrain and evaluate what a recipe describes."""

import sys
from collections.abc import Collection
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from mmssl.completion import names

if TYPE_CHECKING:
    from mmssl.cli.terminal import Terminal
    from mmssl.contracts import Launcher
    from mmssl.pipeline.plan import Plan
    from mmssl.pipeline.run_folder import RunFolder
    from mmssl.recipe import Recipe


def run(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or the name of a shipped recipe.", autocompletion=names.recipes
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            autocompletion=names.fields,
            help="Fields to set, such as training.epochs=3.",
        ),
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(
            help="How to start the stages: inline, local, slurm; short for launch.use=.",
            autocompletion=names.launchers,
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,C",
            autocompletion=names.swept,
            help="Make a run for each value; again: for each pair.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; read no media, write nothing.")
    ] = False,
) -> None:
    """Pretrain and evaluate what a recipe describes.

    Starting a run again goes on where it was left; a finished one does nothing.

    Examples:
      mmssl run recipes/quickstart.yaml
      mmssl run quickstart name=wide backbones.video.width=0.25
      mmssl run recipes/xdc_ig65m.yaml --dry-run
      mmssl run xdc_small --launch slurm launch.partition=gpu launch.gpus_per_node=8
      mmssl run quickstart --sweep training.optimizer.lr=1e-3,3e-3,1e-2
    """
    from mmssl.pipeline.plan import make_plan
    from mmssl.pipeline.sweeps import runs_of

    chosen = [] if launch is None else [f"launch.use={launch}"]
    recipes = runs_of(recipe, [*chosen, *(overrides or [])], sweep or [])
    launcher: Launcher = recipes[0].launch.build()
    for each in recipes:
        launcher.check(each)
    start([(each, make_plan(each)) for each in recipes], launcher, dry_run)


def start(
    runs: "list[tuple[Recipe, Plan]]",
    launcher: "Launcher",
    dry_run: bool,
    only: Collection[str] | None = None,
) -> None:
    """Launch what is not finished, as one of the ranks if there are several.

    Args:
        runs: recipes and what they would do.
        launcher: how.
        dry_run: only say what would be done.
        only: these stages; None for all.
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.errors import UserError
    from mmssl.pipeline import assembly
    from mmssl.pipeline.run_folder import RunFolder
    from mmssl.training import distributed
    from mmssl.training.interruption import Interrupted
    from mmssl.training.progress import Silent

    folders = [RunFolder(recipe) for recipe, _ in runs]
    terminal = Terminal()
    if dry_run:
        for _, plan in runs:
            if distributed.place().rank == 0:
                terminal.plan(plan)
        return
    main = True
    try:
        device = assembly.choose_device(runs[0][0]).type if launcher.here else "cpu"
        with distributed.joined(device) as here, ExitStack() as held:
            main = here.rank == 0
            left = distributed.on_main(lambda: [_left(folder, held, only) for folder in folders])
            progress = terminal if main else Silent()
            for (_, plan), stages in zip(runs, left, strict=True):
                if stages:
                    progress.say(plan.summary)
            work = [(r, stages) for (r, _), stages in zip(runs, left, strict=True) if stages]
            if not work:
                progress.say("every stage of this run is finished; nothing to do")
            elif len(runs) == 1:
                launcher.launch(*work[0], progress)
            else:
                launcher.launch_all(work, progress)
    except (Interrupted, KeyboardInterrupt):
        if main:
            where = folders[0].path if len(folders) == 1 else folders[0].path.parent
            print(
                f"mmssl: interrupted; nothing is lost: run the same command to go on in {where}",
                file=sys.stderr,
            )
        raise typer.Exit(130) from None
    except UserError:
        if main:
            raise
        raise typer.Exit(2) from None  # rank 0 tells
    if main:
        _show(terminal, folders, only)


def _left(folder: "RunFolder", held: ExitStack, only: Collection[str] | None) -> list[str]:
    """The stages that are not finished, of a run that is held from now on."""
    from mmssl.pipeline.stages import stage_names

    held.enter_context(folder.locked())
    folder.refuse_another_recipe()
    stages = [s for s in stage_names(folder.recipe) if only is None or s in only]
    left = [stage for stage in stages if not folder.finished(stage)]
    if left:
        folder.prepare()
    return left


def _show(terminal: "Terminal", folders: "list[RunFolder]", only: Collection[str] | None) -> None:
    """What runs that are finished by now have found."""
    from mmssl.cli.terminal import show_results
    from mmssl.data.skipped import read_ledger
    from mmssl.pipeline.evaluation import read_results
    from mmssl.pipeline.stages import stage_names

    finished = [f for f in folders if all(map(f.finished, only or stage_names(f.recipe)))]
    if len(folders) == 1 and finished:
        (folder,) = folders
        skipped = list(read_ledger(folder.path / "skipped.jsonl"))
        found = read_results(folder)
        shown = {name: result for name, result in found.items() if only is None or name in only}
        show_results(terminal, shown, folder.path, skipped)
    elif finished:
        names = " ".join(str(folder.path) for folder in finished)
        terminal.say(f"mmssl compare {names}")
