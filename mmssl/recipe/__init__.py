"""Recipes: YAML that names components and sets their parameters, checked before anything runs.

- `mmssl.recipe.yaml12` reads YAML 1.2 with the place of every value;
- `mmssl.recipe.compose` merges what a recipe extends, the command line, and the environment;
- `mmssl.recipe.signature` derives the types of parameters from the components' signatures;
- `mmssl.recipe.model` says what a recipe may hold, `mmssl.recipe.check` that it fits together;
- `mmssl.recipe.schema` describes all of it to an editor.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from mmssl.errors import UserError
from mmssl.recipe.check import Finding, findings
from mmssl.recipe.component import ComponentSpec
from mmssl.recipe.compose import report, resolve, shipped_recipes
from mmssl.recipe.model import Recipe, locate
from mmssl.recipe.typed import validate
from mmssl.recipe.yaml12 import Node, located
from mmssl.registry import Registry, discover

__all__ = ["ComponentSpec", "Recipe", "load", "shipped_recipes"]


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    variants: Sequence[Node] = (),
    environ: Mapping[str, str] = os.environ,
    registry: Registry | None = None,
) -> Recipe:
    """Load and check a recipe. No data are read and no component is built.

    Args:
        source: a file, or the name of a recipe that comes with mmssl ("quickstart") or with a
            plugin ("mmssl_imu/quickstart").
        overrides: ``a.b=value`` from the command line, laid over the recipe.
        variants: what a run of a sweep lays over the file before that.
        environ: what ``${NAME}`` in the recipe is replaced from.
        registry: the components; by default those of this environment.

    Raises:
        UserError: with one line for every mistake, each with its file and line.
    """
    tree = resolve(source, overrides, environ, variants)
    registry = registry or discover()
    try:
        recipe = validate(Recipe, tree.python(), {"registry": registry})
    except ValidationError as error:
        raise _mistakes(tree, [(found["loc"], found["msg"]) for found in error.errors()]) from None
    except OSError as error:  # asking whether a path of 10 000 letters is a file
        raise UserError(f"{tree.place}: {error}") from error
    recipe._written_in(tree)
    if mistakes := list(findings(recipe)):
        raise _mistakes(tree, mistakes)
    return recipe


def _mistakes(tree: Node, mistakes: Sequence[Finding]) -> UserError:
    """All mistakes as one error, in the order of the recipe's lines."""
    found = [(*locate(tree, path), message) for path, message in mistakes]
    found.sort(key=lambda mistake: (mistake[0].file, mistake[0].line or 0))
    return report([located(place, path, message) for place, path, message in found])
