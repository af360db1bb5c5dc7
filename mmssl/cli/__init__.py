"""The command line. One file for each verb; what a verb needs is imported when it runs."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from mmssl import __version__
from mmssl.cli.cancel import cancel
from mmssl.cli.check_plugin import check_plugin
from mmssl.cli.compare import compare
from mmssl.cli.completion import completion
from mmssl.cli.copy import copy
from mmssl.cli.describe import describe
from mmssl.cli.doctor import doctor
from mmssl.cli.embed import embed
from mmssl.cli.evaluate import evaluate
from mmssl.cli.export import export
from mmssl.cli.logs import logs
from mmssl.cli.ls import ls
from mmssl.cli.new_plugin import new_plugin
from mmssl.cli.plugins import plugins
from mmssl.cli.profile import profile
from mmssl.cli.rehearse import rehearse
from mmssl.cli.report import report
from mmssl.cli.run import run
from mmssl.cli.schema import schema
from mmssl.cli.search import search
from mmssl.cli.status import status
from mmssl.cli.table import table
from mmssl.errors import UserError, one_line, printable
from mmssl.registry import Registration, discover

app = typer.Typer(
    name="mmssl",
    help="Self-supervised learning from video, sound and text, assembled by YAML recipes.",
    add_completion=False,  # mmssl.completion knows more
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_VERBS = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        run,
        copy,
        evaluate,
        status,
        logs,
        cancel,
        compare,
        table,
        report,
        profile,
        rehearse,
        export,
        embed,
        search,
        ls,
        describe,
        plugins,
        new_plugin,
        check_plugin,
        schema,
        doctor,
        completion,
    )
}


def _help(verb: Callable[..., object]) -> str:
    """A docstring as typer prints it, with the lines of its examples left as they are."""
    return re.sub(r"^(Examples?:\n)", "\b\n\\1", inspect.getdoc(verb) or "", flags=re.M)


for name, verb in _VERBS.items():
    app.command(name, help=_help(verb))(verb)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit(0)


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """Options that come before the verb."""


def _add_commands_of_plugins(words: Sequence[str]) -> None:
    """The groups that plugins bring; the commands themselves only where their group is named."""
    groups: dict[str, dict[str, list[Registration]]] = {}
    for command in discover().components("commands"):
        group, _, verb = command.name.partition(" ")
        if group not in _VERBS:
            groups.setdefault(group, {}).setdefault(verb, []).append(command)
    for group, commands in groups.items():
        added = typer.Typer(help=f"Commands: {', '.join(commands)}.", rich_markup_mode=None)
        app.add_typer(added, name=group)
        if group in words[:1]:
            for verb, found in commands.items():
                function = _loaded(found)
                added.command(verb, help=_help(function))(function)


def _loaded(found: list[Registration]) -> Callable[..., object]:
    """A command; where it does not load, or two bring it, one that says so, beside all others."""
    try:
        if len(found) > 1:
            owners = " and ".join(command.owner for command in found)
            raise UserError(f"command {found[0].name!r} is brought by {owners}; remove one of them")
        return _command(found[0])
    except UserError as error:
        reason = str(error)

        def broken() -> None:
            raise UserError(reason)

        broken.__doc__ = f"Broken: {reason}"
        return broken


def _command(registration: Registration) -> Callable[..., object]:
    """A plugin's function, if typer makes a command of it."""
    function = registration.load()
    trial = typer.Typer()
    try:
        trial.command()(function)
        typer.main.get_command(trial)
    except Exception as error:  # of what typer's own code meets in a stranger's signature
        raise UserError(
            f"command {registration.name!r} of plugin {registration.owner!r} is not one that typer "
            f"takes: {one_line(error)}"
        ) from error
    return function


def _complete(shell: str) -> None:
    """Answer a shell that asks what the last word may become."""
    from mmssl.completion import answer

    def root(words: Sequence[str]) -> object:
        if words[0] not in _VERBS:
            _add_commands_of_plugins(words)
        return typer.main.get_command(app)

    answer(shell, sys.argv[1:], root)


def main() -> None:
    """Run the command line: a user's mistake is one line on stderr and exit code 2."""
    # Several ranks would each log advice on torch's own settings, which are not the user's.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Half of preparing clips on the CPU is the first touch of fresh memory, page by page.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "_MMSSL_COMPLETE" in os.environ:
        _complete(os.environ["_MMSSL_COMPLETE"])
        return
    words = sys.argv[1:] or ["--help"]
    try:
        if words[:1] not in [[verb] for verb in _VERBS]:
            _add_commands_of_plugins(words)
        result = app(words, standalone_mode=False)
    except UserError as error:
        _fail(str(error), 2)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        _fail(f"{error.format_message()} (see: {_path(context)} --help)", 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone: nobody is left to tell
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


def _path(context: Any) -> str:
    """``mmssl data``: the words that led to where a mistake was made."""
    words = []
    while context is not None and context.parent is not None:
        words.append(context.info_name or "")
        context = context.parent
    return " ".join(["mmssl", *reversed(words)])


def _fail(message: str, code: int) -> None:
    print("mmssl: " + "\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    sys.exit(code)
