"""``mmssl rehearse``: try preemption before a cluster does it."""

import shlex
import sys
from typing import Annotated

import typer

from mmssl.completion import names


def rehearse(
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
            help="Fields to set, as for `mmssl run`.",
        ),
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="Processes that train together; one is killed alone, too.")
    ] = 1,
    samples: Annotated[
        int,
        typer.Option(min=1, help="Samples at most; relabelling reads them all in each round."),
    ] = 512,
) -> int:
    """Try preemption: run a recipe at tiny size, kill it again and again, compare.

    The recipe runs twice on this machine's CPU, for 24 small steps in two rounds or one. One run
    is left alone. The other is killed, preempted, killed while it relabels and killed again, and
    goes on each time. Exit code 0: both logged equal losses and left equal labels and encoders.

    Examples:
      mmssl rehearse quickstart
      mmssl rehearse my.yaml data.train.path=good.csv --ranks 2
      mmssl rehearse xdc_ig65m objective.clusters=64 --samples 200
    """
    from mmssl.cli.terminal import Terminal

    own = overrides or []
    terminal = Terminal()
    with terminal.task("reading the recipe", None):
        from mmssl.errors import UserError
        from mmssl.pipeline.plan import make_plan
        from mmssl.pipeline.rehearsal import rehearse as try_out
        from mmssl.pipeline.rehearsal import settings
        from mmssl.recipe import load
        from mmssl.training import distributed
        from mmssl.training.interruption import Interrupted

        if distributed.place().size > 1:
            raise UserError(
                "rehearse starts processes itself: run it once, without torchrun or srun"
            )
        own += settings(load(recipe, own), ranks=ranks, samples=samples)
        small = load(recipe, own)
        plan = make_plan(small)
    terminal.say(plan.summary)
    terminal.say(shlex.join(["mmssl", "run", recipe, *own]))
    command = [sys.executable, sys.argv[0], "run", recipe, *own]
    try:
        found = try_out(small, command, ranks=ranks, progress=terminal)
    except (Interrupted, KeyboardInterrupt):
        print("mmssl: interrupted; nothing of the rehearsal is left", file=sys.stderr)
        raise typer.Exit(130) from None
    terminal.table("what was done to the run", ("event", "when", "resumed at"), found.events)
    if not found.differences:
        terminal.say(f"equal to the last bit: {found.compared}")
        return 0
    terminal.say("not as the undisturbed run:")
    for difference in found.differences:
        terminal.say(f"- {difference}")
    return 1
