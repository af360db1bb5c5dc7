"""Which checks a plugin gets: from what it registers, and from the recipes that name it."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.errors import UserError
from mmssl.pipeline.sweeps import runs_of
from mmssl.recipe.component import ComponentSpec
from mmssl.recipe.compose import shipped_recipes
from mmssl.registry import Plugin, discover
from mmssl.testing import (
    backbone,
    command,
    component,
    dataset,
    evaluator,
    modality,
    numbers,
    objective,
    recipe,
    watchers,
)
from mmssl.testing import plugin as plugins
from mmssl.testing.check import Check, checks_of, fail
from mmssl.testing.component import Component
from mmssl.testing.material import Material


@dataclass(frozen=True)
class _Use:
    """Where a recipe names a component: its path in the recipe, and what it says."""

    material: Material
    path: tuple[str | int, ...]
    spec: ComponentSpec


def conformance(plugin: str, recipes: Sequence[str | Path] | None = None) -> list[Check]:
    """The checks of a plugin, ready to be called.

    Args:
        plugin: its name, as `mmssl plugins` shows it.
        recipes: files, or names of recipes, that name its components; by default those that the
            plugin ships in ``recipes/``. Of a recipe with a ``sweep:`` all its runs are looked at.

    Raises:
        UserError: there is no such plugin.
    """
    found = _plugin(plugin)
    if found.error is not None:
        reason = found.error

        def broken() -> None:
            fail(f"the plugin {plugin!r} does not load: {reason}")

        return [Check(f"plugin {plugin}", "loads", broken)]
    sources = _own_recipes(plugin) if recipes is None else [str(source) for source in recipes]
    checks = checks_of(f"plugin {plugin}", plugins.Case(plugin), plugins.TESTS)
    materials: list[Material] = []
    unread: list[tuple[str, str]] = []
    for source in sources:
        try:
            materials += [Material(run) for run in runs_of(source, [], [])]
        except UserError as error:
            unread.append((source, str(error)))
            checks.append(Check(f"recipe {source}", "loads", _failing(str(error))))
    for material in materials:
        case = recipe.Case(material)
        checks += checks_of(f"recipe {material.recipe.name}", case, recipe.TESTS)
    uses = list(_uses(materials))
    names = tuple(material.recipe.name for material in materials)
    for registration in found.components:
        own = [use for use in uses if use.spec.registration == registration]
        named = tuple(dict.fromkeys(use.material.recipe.name for use in own))
        of_any = Component(registration, named, names, tuple(unread))
        if registration.kind == "commands":
            checks += checks_of(of_any.subject, of_any, component.COMMAND_TESTS)
            checks += checks_of(of_any.subject, command.Case(registration), command.TESTS)
            continue
        checks += checks_of(of_any.subject, of_any, component.TESTS)
        (fits,) = checks_of(of_any.subject, of_any, [component.keeps_contract])
        for tests in _of_kind(registration.kind, own):
            checks += checks_of(of_any.subject, *tests, first=fits)
    return checks


def _plugin(name: str) -> Plugin:
    plugins = {plugin.name: plugin for plugin in discover().plugins}
    if name not in plugins:
        near = difflib.get_close_matches(name, plugins, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(plugins)}"
        raise UserError(f"there is no plugin {name!r}; {hint}")
    return plugins[name]


def _own_recipes(plugin: str) -> list[str]:
    """Those that a plugin ships, without the parts whose names begin with ``_``."""
    names = [name for name, _ in shipped_recipes() if name.startswith(f"{plugin}/")]
    return [name for name in names if not Path(name).name.startswith("_")]


def _failing(message: str) -> Callable[[], None]:
    return lambda: fail(message)


def _uses(materials: Sequence[Material]) -> Iterator[_Use]:
    for material in materials:
        for path, spec in material.recipe.components():
            yield _Use(material, path, spec)


def _of_kind(kind: str, uses: Sequence[_Use]) -> Iterator[tuple[Any, Iterable[Any]]]:
    """What a component is put to as its own kind, by the first recipe that says enough of it."""
    for use in uses:
        keys = _keys(use)
        material, spec = use.material, use.spec
        if kind == "modalities" and len(keys) == 1:
            yield modality.Case(material, spec, keys[0]), modality.TESTS
        elif kind == "backbones" and keys:
            yield backbone.Case(material, spec, keys), backbone.TESTS
        elif kind == "datasets":
            yield dataset.Case(material, spec), dataset.TESTS
        elif kind == "objectives" and use.path == ("objective",):
            yield objective.Case(material, spec), objective.TESTS
        elif kind == "evaluators":
            yield evaluator.Case(material, str(use.path[1])), evaluator.TESTS
        elif kind in _ALONE:
            yield numbers.Case(spec), _ALONE[kind]
        elif kind in _AROUND:
            yield watchers.Case(material, spec), _AROUND[kind]
        else:
            continue
        return


_ALONE = {"optimizers": numbers.OPTIMIZER_TESTS, "schedules": numbers.SCHEDULE_TESTS}
_AROUND = {
    "callbacks": watchers.CALLBACK_TESTS,
    "trackers": watchers.TRACKER_TESTS,
    "launchers": watchers.LAUNCHER_TESTS,
}


def _keys(use: _Use) -> tuple[str, ...]:
    """The recipe's modalities that a modality or backbone stands for.

    One that is nested in another component, such as a tokenizer, stands under their keys, too, or
    within something that does.
    """
    modalities = use.material.recipe.modalities
    for word in reversed(use.path):
        keys = tuple(str(word).split("+"))
        if all(key in modalities for key in keys):
            return keys
    return ()
