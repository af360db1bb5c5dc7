"""Completion of what is typed after ``mmssl``, in bash, zsh and fish.

A script of the shell (``mmssl.bash`` and its like, in this folder) calls ``mmssl`` with the
variable ``_MMSSL_COMPLETE``, which names the shell, and with the words that were typed as
arguments, the unfinished one last. What comes back is a line for each candidate, tabs between its
parts::

    done   VALUE  HELP    a whole word: a space follows
    open   VALUE  HELP    more of the word follows: objective.
    files  VALUE          a path follows VALUE, which the shell completes itself

- `mmssl.completion.line`: which parameter of which verb the unfinished word is;
- `mmssl.completion.names`: names of recipes, components, runs, ...;
- `mmssl.completion.fields`: ``KEY=VALUE`` of a recipe;
- `mmssl.completion.parameters`: a component's parameters, without importing it;
- `mmssl.completion.bash`: what bash alone needs.

Nothing here imports torch or numpy: a key that takes seconds to answer is not pressed twice.
"""

import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")

# Seconds that one plugin may take to load before nobody waits for what it brings.
_PATIENCE = 2.0

#: Set by the shells' scripts.
VARIABLE = "_MMSSL_COMPLETE"


def script(shell: str) -> str:
    """What a shell is to run before it completes, for one of `SHELLS`."""
    return Path(__file__).with_name(f"mmssl.{shell}").read_text()


def answer(shell: str, words: Sequence[str], root: Callable[[Sequence[str]], Any]) -> None:
    """Print the candidates.

    Whatever else is printed meanwhile, by a plugin as it is imported, goes to the standard error,
    and so does the traceback of a mistake: the scripts drop both.

    Args:
        shell: whose script asks.
        words: what it passed.
        root: gives typer's command for the words after ``mmssl``.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    from mmssl import guests
    from mmssl.completion import bash, line

    # Half of a library harms nobody in a process that answers and ends: it computes nothing.
    guests.TIME_LIMIT = guests.LIBRARY_LIMIT = _PATIENCE
    if shell == "bash":
        typed = bash.split(*words)
        found = [typed.reply(each) for each in line.candidates(root(typed.words), typed.words)]
    else:
        found = line.candidates(root(words), words)
    with replies:
        for each in found:
            if each.value.isprintable():  # a file's name may hold anything
                help_ = textwrap.shorten(each.help.partition(". ")[0], 72, placeholder="...")
                print(each.kind, each.value, help_, sep="\t", file=replies)
