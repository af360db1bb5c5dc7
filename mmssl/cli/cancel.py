"""``mmssl cancel``: stop a run's jobs."""

from typing import Annotated

import typer

from mmssl.completion import names


def cancel(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs' folders, or names under ./runs.",
            autocompletion=names.runs,
        ),
    ],
) -> None:
    """Stop the jobs of runs; what is saved stays, and `mmssl run` goes on from there.

    Example:
      mmssl cancel small
    """
    from mmssl.pipeline.records import find_runs
    from mmssl.pipeline.status import cancel as cancel_run

    for run in find_runs(runs):
        for line in cancel_run(run) or ["nothing runs"]:
            print(f"{run.path}: {line}")
