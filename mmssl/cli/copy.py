"""``mmssl copy``: begin with a recipe that there is."""

from pathlib import Path
from typing import Annotated

import typer

from mmssl.completion import names

# What a copy is mostly made for.
_EDITED = ("data", "backbones", "objective", "training", "evaluations")


def copy(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="The name of a shipped recipe, or a YAML file.", autocompletion=names.recipes
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Argument(help="Where to. [default: my_<recipe>.yaml, here]")
    ] = None,
) -> None:
    """Copy a recipe, to be changed; without RECIPE, list those that mmssl and plugins bring.

    The copy means the same wherever it lies, but for its name, which is its file's: its run has a
    folder of its own. What it extends, it goes on extending, by name.

    Examples:
      mmssl copy
      mmssl copy xdc_small
      mmssl copy mmssl_thermal/quickstart experiments/thermal.yaml
    """
    from mmssl.errors import UserError
    from mmssl.recipe.copying import copied, default_file

    if recipe is None:
        _list()
        return
    target = file or default_file(recipe)
    text = copied(recipe, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise UserError(
            f"{target} is there already: name another file, mmssl copy {recipe} FILE"
        ) from None
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from error
    _say(recipe, target)


def _list() -> None:
    import shutil
    import textwrap

    from mmssl.errors import UserError
    from mmssl.recipe import shipped_recipes
    from mmssl.recipe.copying import summary

    found: list[tuple[str, str]] = []
    for name, path in shipped_recipes():
        try:
            said = summary(path)
        except UserError as error:  # a plugin's: the others can be copied
            said = str(error)
        if said is not None:
            found.append((name, said))
    column = max(len(name) for name, _ in found) + 2
    width = max(60, shutil.get_terminal_size((100, 0)).columns)
    for name, said in found:
        print(f"{name:<{column}}{textwrap.shorten(said, width - column, placeholder=' ...')}")


def _say(recipe: str, target: Path) -> None:
    """Where what is mostly changed stands, what is to be set, and how the copy is run."""
    import shlex

    from mmssl.recipe.compose import composed
    from mmssl.recipe.copying import variables

    tree = composed(target)
    entries = tree.value
    assert isinstance(entries, dict)
    print(f"{target} is a copy of {recipe}\n\nedit")
    there = {key: entries[key].place for key in _EDITED if key in entries}
    for key, place in there.items():
        if Path(place.file) == target:
            print(f"  {key:<12} {place}")
    others = [key for key, place in there.items() if Path(place.file) != target]
    if others:
        print(f"  what it extends says {', '.join(others)}; write here what is to be otherwise")
    command = f"mmssl run {shlex.quote(str(target))}"
    shell = "".join(f"{name}=... " for name in variables(tree))
    print(f"\nrun\n  {shell}{command} --dry-run\n  {shell}{command}")
