"""``mmssl ls``: which components there are."""

from typing import Annotated

import typer

from mmssl.completion import names


def ls(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="modalities, datasets, backbones, objectives, ...", autocompletion=names.kinds
        ),
    ] = None,
) -> None:
    """List the components that recipes can name.

    Examples:
      mmssl ls
      mmssl ls backbones
    """
    from mmssl.registry import discover, which_kind

    registry = discover()
    kinds = [which_kind(kind)] if kind else registry.kinds()
    width = max((len(c.name) for k in kinds for c in registry.components(k)), default=0)
    for each in kinds:
        print(each)
        for component in registry.components(each):
            print(f"  {component.name:<{width}}  {component.owner}")
    broken = [plugin.name for plugin in registry.plugins if plugin.error]
    if broken:
        print(f"broken plugins: {', '.join(broken)} (see: mmssl plugins)")
