"""``mmssl search``: what is near a file, a row or a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmssl.completion import names

if TYPE_CHECKING:
    from mmssl.cli.terminal import Terminal
    from mmssl.pretrained.search import Neighbour


def search(
    features: Annotated[Path, typer.Argument(help="A file that mmssl embed wrote.")],
    query: Annotated[str, typer.Argument(help="A row's id, a media file, or text.")],
    count: Annotated[int, typer.Option("-k", min=1, help="How many to show.")] = 10,
    modality: Annotated[
        str | None, typer.Option(help="Of this modality only; by default of each.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="The run or exported folder that made the features, if it was moved.",
            autocompletion=names.checkpoints,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the samples whose features are nearest to a query's, by cosine.

    A query is the id of a row, else a file, else text, if the checkpoint compares text with what
    is in FEATURES. A row is not its own neighbour.

    Examples:
      mmssl search features.npz dogs/0001.mp4
      mmssl search features.npz ~/clip.mp4 -k 5 --modality audio
      mmssl search features.npz "a dog barking" --json
    """
    from mmssl.cli.terminal import Terminal

    with Terminal().task("searching", None):
        from mmssl.pretrained.features_file import FeaturesFile
        from mmssl.pretrained.search import search as find

        found = find(
            FeaturesFile(features),
            query,
            k=count,
            modality=modality,
            checkpoint=checkpoint,
            device=device,
        )
    if as_json:
        import json
        from dataclasses import asdict

        rows = {column: [asdict(each) for each in near] for column, near in found.items()}
        print(json.dumps({"query": query, "neighbours": rows}, indent=1, ensure_ascii=False))
    else:
        _show(Terminal(), found)


def _show(terminal: "Terminal", found: "dict[str, list[Neighbour]]") -> None:
    """A line for each, as long as it needs to be: paths are there to be copied."""
    for column, neighbours in found.items():
        terminal.say(column)
        rows = [
            (
                f"{near.rank:>4}",
                f"{near.score:.3f}",
                near.id,
                near.label,
                f"{near.start:g}–{'end' if near.end is None else f'{near.end:g} s'}",
                "" if near.path == near.id else near.path,
            )
            for near in neighbours
        ]
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminal.say("  ".join(cells).rstrip())
