"""Docstrings and other plain text as Markdown in which every character means itself."""

import re
import textwrap
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_SPECIAL = re.compile(r"[\\`*_\[\]{}#|<>&!~^:]")


def escaped(text: str) -> str:
    """One paragraph: what stands between backticks stays code, all else is plain text."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(code(part.strip("`")) if i % 2 else plain(part) for i, part in enumerate(parts))


def plain(text: str) -> str:
    """Text in which nothing is code or markup: what could be is written by its number."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)


def code(text: str) -> str:
    """A code span, which may stand in a table, too."""
    if "&" in text:  # the parser of HTML before Markdown's completes what looks like an entity
        return f"<code>{plain(text)}</code>"
    ticks = "``" if "`" in text else "`"
    return f"{ticks}{text}{ticks}" if text else ""


def fenced(text: str, language: str = "") -> str:
    """A block of code, whatever backticks are in it."""
    fence = "`" * max(3, 1 + max((len(t) for t in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def markdown(docstring: str) -> str:
    """A docstring: paragraphs, lists, and what is indented behind ``::`` as code."""
    blocks: list[str] = []
    literal = False
    for block in re.split(r"\n{2,}", docstring.strip("\n")):
        if literal and block.startswith(" "):
            if blocks and blocks[-1].startswith("```"):  # the code goes on behind an empty line
                before = blocks.pop().removeprefix("```\n").removesuffix("\n```\n")
                blocks.append(fenced(f"{before}\n\n{textwrap.dedent(block)}"))
            else:
                blocks.append(fenced(textwrap.dedent(block)))
            continue
        literal = block.endswith("::")
        text = block[:-1] if literal and block != "::" else block.removesuffix("::")
        blocks.append("\n".join(_items(text)))
    return "\n\n".join(block for block in blocks if block.strip()) + "\n"


def _items(block: str) -> list[str]:
    """A paragraph, or an item a line where it is a list."""
    paragraph, *items = re.split(r"(?:^|\n)- ", block)
    lines = [escaped(paragraph)] if paragraph.strip() else []
    if items and lines:
        lines.append("")
    return lines + [f"- {escaped(item)}" for item in items]
