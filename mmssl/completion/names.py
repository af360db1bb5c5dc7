"""Names that verbs take: recipes, components, runs, tables, plugins. One function for each.

They are given to typer as ``autocompletion``; typer drops what does not begin with the unfinished
word. What they need is imported when they are called.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import typer

#: A candidate that ends so stands for all paths that may follow it: the shell lists them.
FILES = "\0"


def recipes(incomplete: str) -> list[str]:
    """Names of recipes that are shipped, and YAML files; folder by folder."""
    from mmssl.recipe.compose import shipped_recipes

    names = [name for name, _ in shipped_recipes() if "_" not in (name[0], Path(name).name[0])]
    return [*_by_folder(names, incomplete), *_paths(incomplete, _is_yaml)]


def tables(incomplete: str) -> list[str]:
    """Names of papers' tables, and YAML files."""
    from mmssl.recipe.compose import shipped_tables

    return [*(name for name, _ in shipped_tables()), *_paths(incomplete, _is_yaml)]


def runs(incomplete: str) -> list[str]:
    """Names of runs under ``./runs``, and their folders anywhere."""
    found = [name for name in _listed("runs") if _is_run(Path("runs", name))]
    if "/" in incomplete or not found:
        found += _paths(incomplete, _is_run)
    return found


def checkpoints(incomplete: str) -> list[str]:
    """Runs, and paths: of an exported folder, or of a checkpoint."""
    return runs(incomplete) or [incomplete + FILES]


def stages(ctx: typer.Context, incomplete: str) -> list[str]:
    """Stages of the run that was named before."""
    run = ctx.params.get("run") or ""
    for folder in (Path(run), Path("runs", run)):
        if _is_run(folder):
            return ["pretrain", *_listed(folder / "evaluations")]
    return []


def kinds(incomplete: str) -> list[str]:
    """Kinds of components: "backbones"."""
    from mmssl.registry import discover

    return discover().kinds()


def one_kind(incomplete: str) -> list[str]:
    """Kinds of components, in the singular: "backbone"."""
    from mmssl.registry import SINGULAR, discover

    return [SINGULAR[kind] for kind in discover().kinds()]


def of_kind(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Components of the kind that was named before, and who brings them."""
    from mmssl.errors import UserError
    from mmssl.registry import which_kind

    try:
        return components(which_kind(ctx.params.get("kind") or ""))
    except UserError:
        return []


def components(kind: str) -> list[tuple[str, str]]:
    """Components of a kind (plural), and who brings them; ``plugin/name`` where two do."""
    from mmssl.registry import discover

    found = discover().components(kind)
    names = [component.name for component in found]
    return [
        (c.name if names.count(c.name) == 1 else f"{c.owner}/{c.name}", f"of {c.owner}")
        for c in found
    ]


def launchers(incomplete: str) -> list[tuple[str, str]]:
    """Ways to start a run."""
    return components("launchers")


def evaluators(incomplete: str) -> list[tuple[str, str] | str]:
    """Evaluators, and recipes with evaluations."""
    return [*components("evaluators"), *recipes(incomplete)]


def fields(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """``KEY=VALUE`` of the recipe that was named before."""
    from mmssl.completion.fields import of_recipe

    return of_recipe(ctx, incomplete)


def swept(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """``KEY=A,B,C`` of the recipe that was named before."""
    from mmssl.completion.fields import swept

    return swept(ctx, incomplete)


def parameters(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """``KEY=VALUE`` of an evaluator."""
    from mmssl.completion.fields import of_evaluator

    return of_evaluator(ctx, incomplete)


def dataset(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """A path, or ``KEY=VALUE`` of a dataset."""
    from mmssl.completion.fields import of_dataset

    return of_dataset(ctx, incomplete)


def plugins(incomplete: str) -> list[tuple[str, str]]:
    """Plugins, broken ones too."""
    from mmssl.registry import discover

    found = [plugin for plugin in discover().plugins if plugin.name != "mmssl"]
    return [(p.name, "broken" if p.error else p.version) for p in found]


def _by_folder(names: Iterable[str], incomplete: str) -> list[str]:
    """Names up to the next slash: a hundred recipes are not shown at once."""
    within, _, _ = incomplete.rpartition("/")
    depth = len(within) + 1 if within else 0
    cut = (name.partition("/") if not depth else _cut(name, depth) for name in names)
    return list(dict.fromkeys(head + slash for head, slash, _ in cut))


def _cut(name: str, depth: int) -> tuple[str, str, str]:
    head, slash, rest = name[depth:].partition("/")
    return name[:depth] + head, slash, rest


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> Iterator[str]:
    """Wanted files or folders in the folder that is being typed, and folders to go on into."""
    within, slash, unfinished = incomplete.rpartition("/")
    folder = os.path.expanduser(within + slash)
    for name in _listed(folder or os.curdir):
        path = Path(folder, name)
        if name.startswith(".") and not unfinished.startswith("."):
            continue
        if wanted(path):
            yield within + slash + name
        elif path.is_dir():
            yield within + slash + name + "/"


def _listed(folder: str | Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # it is not there, or not ours to see
        return []


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") and path.is_file()


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file()
