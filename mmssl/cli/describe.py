"""``mmssl describe``: what a component is and which parameters it takes."""

import textwrap
from typing import Annotated

import typer

from mmssl.completion import names


def describe(
    kind: Annotated[
        str,
        typer.Argument(
            help="modality, dataset, backbone, objective, ...", autocompletion=names.one_kind
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(
            help="The component's name, as in `mmssl ls`.", autocompletion=names.of_kind
        ),
    ],
) -> None:
    """Show a component's documentation, parameters, types and defaults.

    Examples:
      mmssl describe objective xdc
      mmssl describe backbone r2plus1d_18
    """
    from mmssl.recipe.signature import parameters, prose
    from mmssl.registry import SINGULAR, discover, which_kind

    component = discover().resolve(which_kind(kind), name)
    target = component.load()
    print(f"{SINGULAR[component.kind]} {component.name}, from {component.owner}\n")
    print(prose(target) + "\n")
    found = parameters(target, component.kind)
    print("parameters:" if found else "It takes no parameters.")
    for parameter in found:
        default = "required" if parameter.required else f"default {parameter.written_default}"
        print(f"  {parameter.name}: {parameter.expects}; {default}")
        if parameter.description:
            print(textwrap.indent(textwrap.fill(parameter.description, 88), "      "))
