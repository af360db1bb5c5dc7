"""``mmssl profile``: where the time of a recipe's training goes."""

from typing import Annotated

import typer

from mmssl.completion import names


def profile(
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
            help="Fields to set, such as data.workers=8.",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps to measure, after some that are not.")
    ] = 30,
) -> None:
    """Measure some training steps of a recipe, and say what would make it faster.

    Prints what a clip costs in each part of reading and of training, how many clips a second each
    part alone could reach, and what to change. The run's folder is not touched.

    Examples:
      mmssl profile recipes/quickstart.yaml
      mmssl profile xdc_small data.train.path=good.csv data.workers=8
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.data.cores import cores
    from mmssl.pipeline import assembly
    from mmssl.pipeline.advice import advice, look_at
    from mmssl.pipeline.plan import make_plan
    from mmssl.pipeline.profiling import profile as measure
    from mmssl.recipe import load

    resolved = load(recipe, overrides or [])
    plan = make_plan(resolved)
    terminal = Terminal()
    terminal.say(plan.summary)
    terminal.say("pseudo-labels are random here: those of the first round are not made")
    found = measure(resolved, steps, terminal)
    table = found.table()
    terminal.table(table.title, table.columns, table.rows)
    terminal.say(found.summary())
    dataset, _ = assembly.build_datasets(resolved)
    lines = advice(
        found,
        resolved,
        device=assembly.choose_device(resolved).type,
        dataset=dataset,
        source=look_at(dataset),
        available=cores(),
    )
    for line in lines:
        terminal.say(f"- {line}")
    if found.unreadable:
        first = found.unreadable[0]
        terminal.say(
            f"{len({failure.row for failure in found.unreadable})} samples could not be read; the "
            f"first was {first.id}: {first.reason}. mmssl data check names all"
        )
