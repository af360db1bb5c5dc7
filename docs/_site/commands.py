"""The reference of the command line: every verb, from its own help."""

import textwrap
from collections.abc import Iterator
from typing import Any

import ours
import typer
from prose import code, escaped, fenced, table

from mmssl.cli import app


def pages() -> Iterator[tuple[str, str]]:
    """Addresses below docs/ and Markdown of the pages."""
    yield "reference/commands.md", "\n".join(_page())


def verbs() -> Iterator[tuple[str, Any]]:
    """Names and commands: the core's verbs, then those of plugins, as "data index"."""
    yield from typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for command in ours.components("commands"):
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command()(command.load())
        yield command.name, typer.main.get_command(single)


def _page() -> Iterator[str]:
    yield "# Commands\n"
    yield "Every verb of `mmssl`, as `mmssl VERB --help` prints it.\n"
    found = list(verbs())
    yield table(
        ["verb", ""], [[f"[{n}](#{_anchor(n)})", escaped(_paragraphs(c)[0])] for n, c in found]
    )
    for name, command in found:
        context = type(command).context_class(command, info_name=f"mmssl {name}")
        yield f"## mmssl {name} {{ #{_anchor(name)} }}\n"
        usage = " ".join(command.collect_usage_pieces(context))
        yield fenced(f"mmssl {name} {usage}", "text")
        for paragraph in _paragraphs(command):
            title, _, examples = paragraph.partition("\n")
            if title in ("Example:", "Examples:"):
                yield f"{title}\n"
                yield fenced(textwrap.dedent(examples), "bash")
            else:
                yield escaped(paragraph) + "\n"
        records = [p.get_help_record(context) for p in command.get_params(context)]
        rows = [[code(r[0]), escaped(r[1])] for r in records if r and r[0] != "--help"]
        if rows:
            yield table(["argument", ""], rows)


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _paragraphs(command: Any) -> list[str]:
    # "\b" keeps the lines of a paragraph apart in the terminal.
    return (command.help or "").replace("\b\n", "").strip().split("\n\n")
