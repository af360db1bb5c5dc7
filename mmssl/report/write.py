"""From a run's folder to ``report/index.html``."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmssl.errors import UserError
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
        UserError: no stage of the run ever began, its recipe cannot be read, or its folder
            cannot be written to.
    """
    contents = collect(run, media=amount.media)
    path = run.path / "report" / "index.html"
    with _written(path):  # before the work, not after it
        path.parent.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    look(run.path, contents, amount, progress)
    page = render(contents)
    # What a file system made of a file's name need not be text.
    content = page.encode("utf-8", errors="replace")
    with _written(path):
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            if _is_dead(leftover.name.split(".")[-2]):
                leftover.unlink(missing_ok=True)
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _is_dead(process: str) -> bool:
    """Is there no process of this number, so that a file of it is left over?"""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, PermissionError):  # no number; somebody else's
        pass
    return False
