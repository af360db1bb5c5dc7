"""``mmssl run``: pretrain and evaluate what a recipe describes."""

import sys
from typing import Annotated

import typer


def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Fields to set, such as training.epochs=3."),
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
    """
    from mmssl.cli.terminal import Terminal, show_results
    from mmssl.data.skipped import read_ledger
    from mmssl.pipeline.plan import make_plan
    from mmssl.pipeline.run_folder import RunFolder
    from mmssl.pipeline.stages import read_results, stage_names
    from mmssl.recipe import load
    from mmssl.training.interruption import Interrupted

    resolved = load(recipe, overrides or [])
    plan = make_plan(resolved)
    terminal = Terminal()
    if dry_run:
        terminal.plan(plan)
        return
    folder = RunFolder(resolved)
    with folder.locked():
        left = [stage for stage in stage_names(resolved) if not folder.finished(stage)]
        try:
            if left:
                folder.begin(sys.argv)
                terminal.say(plan.summary)
                resolved.launch.build().launch(resolved, left, terminal)
            else:
                terminal.say("every stage of this run is finished; nothing to do")
        except (Interrupted, KeyboardInterrupt):
            print(
                f"mmssl: interrupted; nothing is lost: run the same command to go on in "
                f"{folder.path}",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
    ledger = folder.path / "skipped.jsonl"
    show_results(terminal, read_results(folder), folder.path, list(read_ledger(ledger)))
