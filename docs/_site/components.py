"""The reference of components: a page for each kind, from the signatures."""

import re
from collections.abc import Iterator
from typing import Any

import ours
from examples import example, uses
from prose import code, escaped, markdown, table

from mmssl import hooks
from mmssl.hooks import KINDS
from mmssl.recipe.signature import Parameter, parameters, prose
from mmssl.registry import SINGULAR, Registration


def pages() -> Iterator[tuple[str, str]]:
    """Addresses below docs/ and Markdown of the pages."""
    found = {kind: ours.components(kind) for kind in KINDS}
    rows = [
        [
            f"[{kind}]({kind}.md)",
            ", ".join(f"[{code(c.name)}]({kind}.md#{c.name})" for c in components) or "none",
        ]
        for kind, components in found.items()
    ]
    yield (
        "reference/components/index.md",
        "# Components\n\nEverything that a recipe can name with `use:` and that comes with mmssl, "
        "from the signatures and docstrings. `mmssl describe KIND NAME` prints the same, also of "
        "the plugins that you installed, and `mmssl ls` lists them.\n\n"
        + table(["kind", "components"], rows),
    )
    used = uses()
    for kind, components in found.items():
        yield f"reference/components/{kind}.md", "\n".join(_page(kind, components, used))


_CONTRACT = re.compile(r"`mmssl\.([A-Z]\w+)`")


def _page(kind: str, components: list[Registration], used: Any) -> Iterator[str]:
    hook = getattr(hooks, f"register_{kind}")
    yield f"# {kind.capitalize()}\n"
    contract = r"[\g<0>](../python/contracts.md#mmssl.contracts.\1)"
    yield _CONTRACT.sub(contract, markdown(hook.__doc__))
    if not components:
        yield "None comes with mmssl.\n"
    for component in components:
        target = component.load()
        yield f"## {component.name} {{ #{component.name} }}\n"
        yield markdown(prose(target))
        yield from example(component, used)
        found = parameters(target, kind)
        if found:
            yield parameter_table(found)
        else:
            yield "It takes no parameters.\n"
        yield f"Plugin {code(component.owner)}; {code(component.target)}\n{{ .origin }}\n"


def parameter_table(found: list[Parameter]) -> str:
    """What may be set: key, values, default, meaning."""
    return table(
        ["key", "values", "default", ""],
        [
            [
                code(parameter.name),
                linked(parameter.expects),
                "**required**" if parameter.required else code(parameter.written_default),
                escaped(parameter.description),
            ]
            for parameter in found
        ],
    )


NESTED = re.compile(rf"\ban? ({'|'.join(SINGULAR[kind] for kind in KINDS)})\b")
_PLURAL = {SINGULAR[kind]: kind for kind in KINDS}


def linked(words: str, folder: str = "") -> str:
    """A type in words, in which "a dataset" leads to the datasets."""
    return NESTED.sub(lambda found: f"[{found[0]}]({folder}{_PLURAL[found[1]]}.md)", escaped(words))
