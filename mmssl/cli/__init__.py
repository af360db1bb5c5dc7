"""The command line. One file for each verb; what a verb needs is imported when it runs."""

import sys
from typing import Any

import typer

from mmssl import __version__
from mmssl.cli.describe import describe
from mmssl.cli.ls import ls
from mmssl.cli.plugins import plugins
from mmssl.cli.profile import profile
from mmssl.cli.run import run
from mmssl.cli.schema import schema
from mmssl.errors import UserError
from mmssl.registry import Registration, discover

app = typer.Typer(
    name="mmssl",
    help="Self-supervised learning from video, sound and text, assembled by YAML recipes.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_VERBS = {verb.__name__: verb for verb in (run, profile, ls, describe, plugins, schema)}
for verb in _VERBS.values():
    app.command()(verb)


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


def _add_commands_of_plugins(words: list[str]) -> None:
    """The groups that plugins bring; the commands themselves only where their group is named."""
    groups: dict[str, list[Registration]] = {}
    for command in discover().components("commands"):
        groups.setdefault(command.name.partition(" ")[0], []).append(command)
    for name, commands in groups.items():
        verbs = [command.name.partition(" ")[2] for command in commands]
        group = typer.Typer(help=f"Commands: {', '.join(verbs)}.", rich_markup_mode=None)
        app.add_typer(group, name=name)
        if words[:1] == [name]:
            for verb, command in zip(verbs, commands, strict=True):
                group.command(verb)(command.load())


def main() -> None:
    """Run the command line: a user's mistake is one line on stderr and exit code 2."""
    words = sys.argv[1:] or ["--help"]
    try:
        if words[0] not in _VERBS:
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
    print(f"mmssl: {message}", file=sys.stderr)
    sys.exit(code)
