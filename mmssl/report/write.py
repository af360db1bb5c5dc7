"""From a run's folder to ``report/index.html``."""

from pathlib import Path

from mmssl.pipeline.records import Records
from mmssl.report.collect import collect
from mmssl.report.looking import Amount, look
from mmssl.report.page import render
from mmssl.training.checkpoints import write_atomically
from mmssl.training.progress import Progress


def write_report(run: Records, amount: Amount, progress: Progress) -> Path:
    """Make a run's report, of what is there, and put it in place of an earlier one.

    Args:
        run: the run's folder; a run that is at work may be looked at too.
        amount: how much to show.
        progress: who watches.

    Returns:
        The page.

    Raises:
        UserError: no stage of the run ever began, or its recipe cannot be read.
    """
    contents = collect(run, media=amount.media)
    look(run.path, contents, amount, progress)
    page = render(contents)
    path = run.path / "report" / "index.html"
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    # What a file system made of a file's name need not be text.
    content = page.encode("utf-8", errors="replace")
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path
