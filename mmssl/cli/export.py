"""``mmssl export``: take a run's encoders out of it."""

from pathlib import Path
from typing import Annotated

import typer

from mmssl.completion import names


def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A finished run's folder, or its name under ./runs.", autocompletion=names.runs
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The folder to make. [default: export in the run's]"),
    ] = None,
    objective: Annotated[
        bool,
        typer.Option("--objective", help="Also its objective, which compares modalities."),
    ] = False,
) -> None:
    """Write a run's encoders as safetensors, with a card that says all about them.

    The folder needs nothing else: mmssl.load_encoder, mmssl embed and mmssl search take it in
    place of a run. Each network's tensors have its own names, for use without mmssl.

    Examples:
      mmssl export quickstart
      mmssl export runs/vatt -o vatt-base --objective
    """
    from mmssl.cli.terminal import Terminal

    terminal = Terminal()
    with terminal.task("exporting", None):
        from mmssl.pretrained.export import export as write

        folder = write(run, output, objective=objective)
    for file in sorted(folder.iterdir()):
        terminal.say(f"{file}  {file.stat().st_size:,} bytes" if file.is_file() else f"{file}/")
