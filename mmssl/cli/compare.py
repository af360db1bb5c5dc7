"""``mmssl compare``: what runs differ in, and what they found."""

from typing import Annotated

import typer

from mmssl.completion import names


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs' folders, or names under ./runs.",
            autocompletion=names.runs,
        ),
    ],
    by: Annotated[str | None, typer.Option(help="The metric to sort by, the best first.")] = None,
    lowest: Annotated[
        bool, typer.Option("--lowest", help="The lowest is the best, as of a loss.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put the metrics of runs side by side, with the fields in which their recipes differ.

    Examples:
      mmssl compare runs/lr.*
      mmssl compare runs/lr.* --by linear_probe/video/top1
      mmssl compare runs/lr.* --by loss --lowest --json
    """
    import json

    from mmssl.cli.terminal import Terminal
    from mmssl.pipeline.comparison import compare as compare_runs
    from mmssl.pipeline.records import find_runs

    table = compare_runs(find_runs(runs), by, lowest=lowest)
    if as_json:
        print(json.dumps([table.record(row) for row in table.rows], indent=1, ensure_ascii=False))
        return
    terminal = Terminal()
    terminal.table("", table.columns, [table.cells(row) for row in table.rows])
