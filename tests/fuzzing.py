"""What fuzz tests share: how many examples, and the command line in this process."""

import contextlib
import io
import os
import sys
from typing import Any

from hypothesis import HealthCheck, settings

from mmssl.cli import main

#: So many times more examples are tried where it is set, and other ones each time.
_TIMES = int(os.environ.get("FUZZ_EXAMPLES", "1"))


def fuzz(examples: int) -> Any:
    """The same examples each time, or many new ones."""
    return settings(
        max_examples=examples * _TIMES,
        derandomize=_TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["mmssl", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else 1), out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("main() returned")
