"""What comes with mmssl itself: the site is the same whatever other plugins are installed."""

import importlib.metadata
from functools import cache
from pathlib import Path

from mmssl.recipe.compose import shipped_recipes
from mmssl.registry import Registration, discover


@cache
def plugins() -> set[str]:
    """Names of the plugins of the distribution mmssl, and of the core."""
    entries = importlib.metadata.entry_points(group="mmssl")
    return {"mmssl"} | {e.name for e in entries if e.dist is not None and e.dist.name == "mmssl"}


def components(kind: str) -> list[Registration]:
    """Their components of a kind, or their commands."""
    return [c for c in discover().components(kind) if c.owner in plugins()]


def recipes() -> list[tuple[str, Path]]:
    """Names and files of the recipes."""
    others = {plugin.name for plugin in discover().plugins} - plugins()
    return [(name, file) for name, file in shipped_recipes() if name.split("/")[0] not in others]
