"""``mmssl table``: a paper's table beside what runs here have measured."""

from pathlib import Path
from typing import Annotated

import typer

from mmssl.completion import names


def table(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A shipped table, or a YAML file; none: list them.", autocompletion=names.tables
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder that holds the runs' folders.")] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Print a paper's table with the figures measured here beside the paper's.

    Nothing is run. What has no run yet says so, and which recipe would measure it.

    Examples:
      mmssl table
      mmssl table methods_small
      mmssl table xdc_1_methods --runs /data/runs --markdown
    """
    import json
    from dataclasses import asdict

    from mmssl.cli.terminal import Terminal
    from mmssl.pipeline.tables import collect, load_table, markdown, shown
    from mmssl.recipe.compose import shipped_tables

    terminal = Terminal()
    if name is None:
        known = [(known, load_table(known).title) for known, _ in shipped_tables()]
        terminal.table("", ("table", "title"), known)
        return
    collected = collect(load_table(name), runs)
    if as_json:
        cells = {
            row: {column: asdict(cell) for column, cell in cells.items()}
            for row, cells in collected.cells.items()
        }
        print(json.dumps(cells, indent=1, ensure_ascii=False))
        return
    titles, rows = shown(collected)
    source = f"{collected.table.title} ({collected.table.source})".removesuffix(" ()")
    if as_markdown:
        print(markdown(titles, rows))
    else:
        terminal.table(source, titles, rows)
    if collected.table.note:
        terminal.say(collected.table.note)
    several = {cell.runs for cells in collected.cells.values() for cell in cells.values()}
    if max(several) > 1:
        terminal.say(f"±: standard deviation over {max(several)} runs")
    best = max(cell.best_of for cells in collected.cells.values() for cell in cells.values())
    if best > 1:
        terminal.say(f"the best of {best} evaluations of each run, as in the paper")
    for figure in collected.incomplete():
        terminal.say(f"not complete: {figure}")
    for row, recipe in collected.not_run():
        how = f"mmssl run {recipe}" if recipe else "no recipe for it is shipped yet"
        terminal.say(f"not run: {row}: {how}")
