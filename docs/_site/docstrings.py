"""Docstrings as Markdown: a paragraph that ends in ``::`` has code behind it."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Blocks behind ``::`` become fenced, which MkDocs needs."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring and "::" in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)


_LITERAL = re.compile(r"(?<=:):\n\n((?:(?: {4}.*)?\n)+)", re.M)


def fenced(docstring: str) -> str:
    """The docstring with fences around what stands indented behind ``::``."""

    def replace(found: re.Match[str]) -> str:
        lines = [line.removeprefix("    ") for line in found[1].rstrip().splitlines()]
        return "\n\n```text\n" + "\n".join(lines) + "\n```\n\n"

    text = _LITERAL.sub(replace, docstring + "\n").rstrip()
    return re.sub(r"^:\n+```", "```", text, flags=re.M)  # of a paragraph that is :: alone
