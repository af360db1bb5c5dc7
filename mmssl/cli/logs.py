"""``mmssl logs``: what a stage's main process prints."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mmssl.completion import names

if TYPE_CHECKING:
    from mmssl.pipeline.records import Records
    from mmssl.pipeline.status import Status

# Seconds between two looks at a log, and between two questions how the stage is doing.
_LOOK_EVERY, _ASK_EVERY = 0.5, 5.0


def logs(
    run: Annotated[
        str,
        typer.Argument(help="A run's folder, or its name under ./runs.", autocompletion=names.runs),
    ],
    stage: Annotated[
        str | None,
        typer.Argument(
            help="pretrain or an evaluation; without it the one that runs, or the last",
            autocompletion=names.stages,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the stage ends.")
    ] = False,
) -> None:
    """Print what a stage that was launched as a job prints.

    Examples:
      mmssl logs small
      mmssl logs small pretrain --follow
    """
    from mmssl.errors import UserError
    from mmssl.pipeline.job_log import Tail
    from mmssl.pipeline.records import find_runs
    from mmssl.pipeline.status import statuses

    found = find_runs([run])
    if len(found) > 1:
        raise UserError(f"{run!r} is {len(found)} runs: name one of them")
    chosen = _chosen(found[0], statuses(found)[0], stage)
    job = chosen.job
    assert job is not None
    tail = Tail(job.log)
    asked = time.monotonic()
    while True:
        for line in tail.lines(whole=follow and chosen.active):
            print(line, flush=True)
        if not follow or not chosen.active:
            break
        time.sleep(_LOOK_EVERY)
        if time.monotonic() - asked > _ASK_EVERY:
            asked = time.monotonic()
            chosen = next(s for s in statuses(found)[0] if s.stage == chosen.stage)
            if chosen.job != job:
                break  # another one has taken its place
    if not job.log.is_file():
        print(f"{chosen.stage} is {chosen.described}: it has printed nothing yet")


def _chosen(run: "Records", stages: "list[Status]", name: str | None) -> "Status":
    """The stage that is meant, which was launched as a job."""
    from mmssl.errors import UserError

    names = [status.stage for status in stages]
    if name is not None and name not in names:
        raise UserError(f"{run.path} has no stage {name!r}; there are: {', '.join(names)}")
    launched = [status for status in stages if status.job and name in (None, status.stage)]
    if not launched:
        what = f"{run.path}" if name is None else f"stage {name} of {run.path}"
        raise UserError(f"{what} was not launched as a job: what it printed is in its terminal")
    running = [status for status in launched if status.state == "running"]
    begun = [status for status in launched if status.job and status.job.log.is_file()]
    return (running or begun[-1:] or launched)[0]
