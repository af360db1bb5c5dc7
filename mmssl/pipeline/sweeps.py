"""Sweeps: runs of one recipe that differ in some fields, each with a name that says in what.

A recipe may say itself which runs it stands for, one for each combination::

    sweep:
      method:                        # parts of a recipe, by name: NAME.sdc, NAME.xdc
        sdc: {objective: sdc}
        xdc: {objective: {use: xdc, clusters: 16}}
      seed: [0, 1, 2]                # values of a field: NAME.sdc.seed-0, ...
"""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmssl.errors import UserError
from mmssl.recipe import Recipe, load
from mmssl.recipe.compose import sweep_of
from mmssl.recipe.yaml12 import Node, located

_CLOSES = {"[": "]", "{": "}", '"': '"', "'": "'"}

# What is the same in all runs of a sweep.
_COMMON = ("name", "runs", "launch", "sweep")


@dataclass(frozen=True)
class _Choice:
    """One value of an axis: what its runs are called, and what is laid over the recipe."""

    label: str
    variant: Node | None = None
    override: str | None = None


def runs_of(source: str, overrides: Sequence[str], sweeps: Sequence[str]) -> list[Recipe]:
    """The recipes of a sweep, all checked; the recipe alone where nothing is swept.

    Args:
        source: a file, or the name of a shipped recipe.
        overrides: ``a.b=value``, for all runs.
        sweeps: ``a.b=value,value``, each for the product with the others and with the recipe's
            own sweep; instead of its values where it sweeps the same field.

    Raises:
        UserError: one of the recipes is wrong, or two runs would have the same name.
    """
    from_line = [_axis(sweep) for sweep in sweeps]
    keys = [key for key, _ in from_line]
    if len(set(keys)) < len(keys):
        raise UserError("command line: --sweep: a field is swept twice: list its values in one")
    own = sweep_of(source, overrides, os.environ)
    axes = _axes(own) | dict(from_line)
    if not axes:
        return [load(source, overrides)]
    for override in overrides:
        _refuse_swept(override.partition("=")[0].strip(), axes)
    combinations = list(itertools.product(*axes.values()))
    base = _load(source, overrides, combinations[0]).name
    recipes = []
    for chosen in combinations:
        name = ".".join([base, *(choice.label for choice in chosen)])
        recipes.append(_load(source, [*overrides, f"name={json.dumps(name)}"], chosen))
    names = [recipe.name for recipe in recipes]
    if twice := {name for name in names if names.count(name) > 1}:
        message = f"two runs would be called {sorted(twice)[0]!r}"
        raise (
            UserError(f"command line: --sweep: {message}") if sweeps else _mistake(own, (), message)
        )
    return recipes


def _refuse_swept(key: str, axes: Mapping[str, list[_Choice]]) -> None:
    """Refuse a field of the command line that would make runs something else than their names say.

    Other fields that a variant sets, such as its epochs, hold for all runs then.
    """
    for axis, choices in axes.items():
        swept = [axis] if choices[0].variant is None or axis in _fields(choices[0].variant) else []
        for choice in choices:
            fields = _fields(choice.variant)
            swept += [f for f in fields if "." not in f or f.endswith(".use")]
            swept += [f for f in fields if f.startswith(f"{key}.")]
        if any(key == f or f"{key}.".startswith(f"{f}.") or f.startswith(f"{key}.") for f in swept):
            raise UserError(
                f"command line: {key} is what {axis!r} sweeps: choose values with "
                f"--sweep {axis}=..., or take the sweep away with sweep.{axis}=null"
            )


def _fields(variant: Node | None, path: str = "") -> list[str]:
    """The dotted paths of all that a variant sets."""
    if variant is None:
        return []
    if not isinstance(variant.value, dict):
        return [path]
    return [
        field
        for key, node in variant.value.items()
        for field in _fields(node, f"{path}.{key}" if path else key)
    ]


def _load(source: str, overrides: Sequence[str], chosen: Sequence[_Choice]) -> Recipe:
    return load(
        source,
        [*overrides, *(c.override for c in chosen if c.override is not None)],
        variants=[c.variant for c in chosen if c.variant is not None],
    )


def _axes(sweep: Node | None) -> dict[str, list[_Choice]]:
    """A recipe's own axes."""
    if sweep is None:
        return {}
    if not isinstance(sweep.value, dict):
        raise _mistake(sweep, (), "expected a mapping of fields or words to what they may be")
    axes = {}
    for key, node in sweep.value.items():
        if node.value is None:
            continue  # taken away on the command line
        if isinstance(node.value, list) and node.value:
            _refuse_common(key.split("."), node, (key,))
            short = key.rpartition(".")[2]
            axes[key] = [
                _Choice(f"{short}-{_in_names(_text(item))}", _nested(key.split("."), item))
                for item in node.value
            ]
        elif isinstance(node.value, dict) and node.value:
            for label, part in node.value.items():
                _check_part(part, (key, label))
            axes[key] = [
                _Choice(_in_names(label), part if part.value else None)
                for label, part in node.value.items()
            ]
        else:
            raise _mistake(node, (key,), "expected a list of values, or parts of a recipe by name")
    return axes


def _check_part(part: Node, path: tuple[str, ...]) -> None:
    if part.value is not None and not isinstance(part.value, dict):
        raise _mistake(part, path, "expected a part of a recipe, such as {objective: sdc}, or null")
    for key in part.value or {}:
        _refuse_common([key], part, path)


def _refuse_common(keys: Sequence[str], node: Node, path: tuple[str, ...]) -> None:
    if keys[0] in _COMMON:
        raise _mistake(node, path, f"{keys[0]} is the same in all runs")


def _mistake(node: Node | None, path: tuple[str, ...], message: str) -> UserError:
    assert node is not None
    return UserError(located(node.place, ("sweep", *path), message))


def _nested(keys: Sequence[str], value: Node) -> Node:
    for key in reversed(keys):
        value = Node({key: value}, value.place)
    return value


def _text(node: Node) -> str:
    plain = node.python()
    if isinstance(plain, Mapping) and "use" in plain:
        return str(plain["use"])
    return plain if isinstance(plain, str) else json.dumps(plain)


def _axis(text: str) -> tuple[str, list[_Choice]]:
    """Key and values of ``a.b=1,[2, 3],"x,y"``."""
    key, equals, rest = text.partition("=")
    values = [value.strip() for value in _split(rest)]
    if not equals or not key.strip() or not all(values):
        raise UserError(f"command line: --sweep {text!r}: write KEY=VALUE,VALUE")
    key = key.strip()
    for own in _COMMON:
        if key == own or key.startswith(f"{own}."):
            raise UserError(f"command line: --sweep {text!r}: {own} is the same in all runs")
    short = key.rpartition(".")[2]
    return key, [
        _Choice(f"{short}-{_in_names(value)}", override=f"{key}={value}") for value in values
    ]


def _split(text: str) -> list[str]:
    """At the commas that stand in no brackets and no quotes."""
    values, open_ = [""], [""]
    for letter in text:
        if letter == "," and len(open_) == 1:
            values.append("")
            continue
        values[-1] += letter
        if letter == open_[-1]:
            open_.pop()
        elif open_[-1] not in ('"', "'") and letter in _CLOSES:
            open_.append(_CLOSES[letter])
    return values


def _in_names(value: str) -> str:
    """A value as it may stand in the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", value).strip("_") or "empty"
