"""``mmssl status``: how the stages of runs are doing."""

from typing import Annotated

import typer

from mmssl.completion import names


def status(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Runs' folders, or names under ./runs.",
            autocompletion=names.runs,
        ),
    ],
) -> None:
    """Show how far the stages of runs are, where they run, and why one does not.

    Examples:
      mmssl status small
      mmssl status runs/lr.*
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.pipeline.records import PRETRAIN, find_runs
    from mmssl.pipeline.status import statuses

    terminal = Terminal()
    found = find_runs(runs)
    for run, stages in zip(found, statuses(found), strict=True):
        last = run.log()
        rows = []
        for stage in stages:
            progress, loss = "", None
            if stage.stage == PRETRAIN and "step" in last:
                progress = f"{last['step']['step']:,}/{run.steps():,} steps"
                loss = last["step"].get("loss")
            job = stage.job.job if stage.job else ""
            rows.append((stage.stage, stage.described, job, progress, loss, stage.restarts or None))
        columns = ("stage", "state", "job", "progress", "loss", "restarts")
        terminal.table(str(run.path), columns, rows)
        for stage in stages:
            if stage.job and stage.job.log.is_file():
                terminal.say(f"{stage.stage}: {stage.job.log}")
