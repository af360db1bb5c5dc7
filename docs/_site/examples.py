"""Examples of components, as the shipped recipes write them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ours
import yaml
from prose import fenced

from mmssl.recipe.signature import Parameter, parameters
from mmssl.recipe.yaml12 import Place, parse
from mmssl.registry import Registration

#: Where each kind stands in a recipe.
_PLACES = {
    "modalities": ("modalities", "*"),
    "backbones": ("backbones", "*"),
    "evaluators": ("evaluations", "*"),
    "optimizers": ("training", "optimizer"),
    "schedules": ("training", "schedule"),
    "objectives": ("objective",),
    "launchers": ("launch",),
}


def example(component: Registration, used: dict[tuple[str, str], list[Any]]) -> Iterator[str]:
    """How a shipped recipe names it, in the fewest words; else the least that may be written."""
    found = used.get((component.kind, component.name), [])
    if not found:
        needed = [p for p in parameters(component.load(), component.kind) if p.required]
        value: Any = {"use": component.name, **{p.name: _any(component, p) for p in needed}}
        yield fenced(_in_place(component.kind, None, value), "yaml")
        return
    key, value, name, _ = min(found, key=_rank)
    yield fenced(_in_place(component.kind, key, value), "yaml")
    names = list(dict.fromkeys(one[2] for one in found))
    first = [n for n in [name, *names] if not n.split("/")[-1].startswith("_")] or [name]
    shown = ", ".join(f"[{n}](../recipes/{recipe_page(n)})" for n in dict.fromkeys(first[:4]))
    yield f"In recipes: {shown}{', …' if len(names) > 4 else ''}\n"


def recipe_page(name: str) -> str:
    """Where a shipped recipe is shown, below reference/recipes/."""
    folder = Path(name).parent.as_posix()
    page = "index" if folder == "." else folder.replace("/", "_")
    return f"{page}.md#{name.replace('/', '-')}"


def _any(component: Registration, parameter: Parameter) -> Any:
    """Some value that a required parameter may have: its description's, or one of its type."""
    if named := re.search(r"such as `+([\w.]+)`", parameter.description):
        return named[1]
    words = parameter.expects
    if choice := re.match(r"'([^']*)'", words):
        return choice[1]
    if words.startswith("a number"):
        return 0.1
    if words.startswith("a whole number"):
        return 2
    nested = {"a dataset": "folder", "a backbone": "r3d_18", "a modality": "video"}
    return nested.get(words, component.name if parameter.name == "path" else "...")


def _in_place(kind: str, key: str | None, value: Any) -> str:
    """A component at its place in a recipe, as YAML."""
    if kind == "datasets":
        return _dump({"data": {"train": value}})
    if kind in ("trackers", "callbacks"):
        return _dump({kind: [value]})
    key = key or ("video" if kind == "backbones" else value["use"])
    for part in reversed(_PLACES[kind]):
        value = {key if part == "*" else part: value}
    return _dump(value)


def _rank(one: tuple[str | None, dict[str, Any], str, int]) -> Any:
    """Which of a component's uses is the best example: short, not bare, not a test's data."""
    _, value, name, _ = one
    return value.get("split") in ("test", "val", "eval"), len(value) == 1, len(str(value)), name


def _dump(value: Any) -> str:
    """YAML in which what holds no more mappings or lists is on one line."""
    return yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=88
    )


def uses() -> dict[tuple[str, str], list[tuple[str | None, dict[str, Any], str, int]]]:
    """By kind and name, how shipped recipes write components: key, mapping, recipe, order."""
    found: dict[tuple[str, str], list[Any]] = {}
    for order, (name, file) in enumerate(ours.recipes()):
        plain = parse(file.read_text(encoding="utf-8"), Place(str(file), 1)).python()
        for kind, key, value in _named(plain):
            for use in dict.fromkeys([value["use"], *_within(kind, value)]):
                found.setdefault((kind, use), []).append((key, value, name, order))
    return found


def _within(kind: str, value: Any) -> Iterator[str]:
    """What a backbone's parameters name: other backbones, such as tokenizers, among them."""
    if kind == "backbones" and isinstance(value, dict):
        for inner in value.values():
            yield from _within(kind, inner)
    elif isinstance(value, str):
        yield value


def _named(recipe: Any) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Every component that stands in a recipe's text: kind, key, mapping."""
    for kind, path in _PLACES.items():
        places: list[tuple[str | None, Any]] = [(None, recipe)]
        for part in path:
            places = [
                (k if part == "*" else key, inner)
                for key, value in places
                if isinstance(value, dict)
                for k, inner in value.items()
                if part in ("*", k)
            ]
        for key, value in places:
            yield from ((kind, key, spec) for spec in _mappings(value))
    for value in recipe.get("trackers", ()):
        yield from (("trackers", None, spec) for spec in _mappings(value))
    yield from (("datasets", None, spec) for spec in _datasets(recipe))


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, str):
        yield {"use": value}
    elif isinstance(value, dict) and isinstance(value.get("use"), str):
        yield value


def _datasets(recipe: Any) -> Iterator[dict[str, Any]]:
    """Datasets, which stand under data and in evaluations."""
    blocks = [recipe.get("data"), *(recipe.get("evaluations") or {}).values()]
    for block in blocks:
        for key in ("train", "validation", "test", "data"):
            if isinstance(block, dict):
                yield from _mappings(block.get(key))
