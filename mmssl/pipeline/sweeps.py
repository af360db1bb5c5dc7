"""Sweeps: runs of one recipe that differ in some fields, each with a name that says in what."""

import itertools
import json
import re
from collections.abc import Sequence

from mmssl.errors import UserError
from mmssl.recipe import Recipe, load

_CLOSES = {"[": "]", "{": "}", '"': '"', "'": "'"}


def runs_of(source: str, overrides: Sequence[str], sweeps: Sequence[str]) -> list[Recipe]:
    """The recipes of a sweep, all checked; the recipe alone where nothing is swept.

    Args:
        source: a file, or the name of a shipped recipe.
        overrides: ``a.b=value``, for all runs.
        sweeps: ``a.b=value,value``, each for the product with the others.

    Raises:
        UserError: one of the recipes is wrong, or two runs would have the same name.
    """
    if not sweeps:
        return [load(source, overrides)]
    axes = [_axis(sweep) for sweep in sweeps]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise UserError("command line: --sweep: a field is swept twice: list its values in one")
    base = load(source, [*overrides, *(f"{key}={values[0]}" for key, values in axes)]).name
    recipes = []
    for values in itertools.product(*(values for _, values in axes)):
        chosen = list(zip(keys, values, strict=True))
        name = ".".join([base, *(f"{k.rpartition('.')[2]}-{_in_names(v)}" for k, v in chosen)])
        fields = [f"{key}={value}" for key, value in chosen]
        recipes.append(load(source, [*overrides, *fields, f"name={json.dumps(name)}"]))
    names = [recipe.name for recipe in recipes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"command line: --sweep: two runs would be called {sorted(twice)[0]!r}")
    return recipes


def _axis(text: str) -> tuple[str, list[str]]:
    """Key and values of ``a.b=1,[2, 3],"x,y"``."""
    key, equals, rest = text.partition("=")
    values = [value.strip() for value in _split(rest)]
    if not equals or not key.strip() or not all(values):
        raise UserError(f"command line: --sweep {text!r}: write KEY=VALUE,VALUE")
    key = key.strip()
    for own in ("name", "runs", "launch"):
        if key == own or key.startswith(f"{own}."):
            raise UserError(f"command line: --sweep {text!r}: {own} is the same in all runs")
    return key, values


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
