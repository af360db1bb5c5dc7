"""``mmssl new-plugin``: begin a plugin of your own."""

from pathlib import Path
from typing import Annotated

import typer


def new_plugin(
    name: Annotated[str, typer.Argument(help="What pip will call it, such as mmssl-thermal.")],
    modality: Annotated[
        bool,
        typer.Option("--modality", help="A kind of signal, with a dataset that makes some up."),
    ] = False,
    backbone: Annotated[bool, typer.Option("--backbone", help="A network.")] = False,
    objective: Annotated[bool, typer.Option("--objective", help="A self-supervised task.")] = False,
    dataset: Annotated[bool, typer.Option("--dataset", help="Where samples come from.")] = False,
    evaluator: Annotated[
        bool, typer.Option("--evaluator", help="A measure of pretrained encoders.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The folder to make. [default: NAME]"),
    ] = None,
) -> None:
    """Write a plugin that installs, passes its tests and runs: a beginning for your own.

    Say which components it is to bring; a modality, if you name none. It comes with a recipe in
    which they meet those of mmssl, and learn from made-up videos in about a minute.

    Examples:
      mmssl new-plugin mmssl-thermal
      mmssl new-plugin mmssl-vicreg --objective
      mmssl new-plugin mmssl-radar --modality --backbone -o ~/code/radar
    """
    from mmssl.new_plugin.write import write_plugin
    from mmssl.registry import discover

    chosen = {
        "modality": modality,
        "backbone": backbone,
        "objective": objective,
        "dataset": dataset,
        "evaluator": evaluator,
    }
    wanted = [choice for choice, asked in chosen.items() if asked] or ["modality"]
    written = write_plugin(name, wanted, output, discover())
    package = written.names.package
    print(f"{written.folder} brings")
    for component in written.components:
        print(f"  {component.one} {component.name}: {component.what}")
    print(
        "\nIt runs as it is:\n"
        f"  cd {written.folder}\n"
        '  pip install -e ".[test]"\n'
        "  pytest\n"
        f"  mmssl run {package}/quickstart\n"
        "\nMake it yours: the places to change are named by\n"
        "  grep -rn CHANGE .\n"
        "and what mmssl asks of every plugin is tried by\n"
        f"  mmssl check-plugin {package}"
    )
