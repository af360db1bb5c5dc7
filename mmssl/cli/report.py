"""``mmssl report``: a page that shows a run."""

from typing import Annotated

import typer

from mmssl.completion import names


def report(
    run: Annotated[
        str,
        typer.Argument(help="A run's folder, or its name under ./runs.", autocompletion=names.runs),
    ],
    clusters: Annotated[
        int, typer.Option(min=0, help="Of how many clusters of each labeling to show samples.")
    ] = 24,
    clips: Annotated[
        int,
        typer.Option(
            min=1, help="Samples of each of them: so many near its middle, and as many at random."
        ),
    ] = 3,
    samples: Annotated[
        int,
        typer.Option(
            min=0, max=10_000, help="Samples on the map of features; 0 computes no features."
        ),
    ] = 1000,
    media: Annotated[
        bool, typer.Option("--media/--no-media", help="Put clips of samples into the page.")
    ] = True,
) -> None:
    """Write a run's report: one HTML file that opens from disk and needs no network.

    It holds curves, the clusters with clips to look at and listen to, a map of features, filters,
    evaluations, unreadable samples, the recipe and where it all comes from. A run that is not
    finished can be looked at as well; the report says what is missing.

    Examples:
      mmssl report quickstart
      mmssl report runs/quickstart --clusters 8 --clips 5
      mmssl report quickstart --no-media --samples 0
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.errors import UserError
    from mmssl.pipeline.records import find_runs
    from mmssl.report.looking import Amount
    from mmssl.report.write import write_report

    found = find_runs([run])
    if len(found) > 1:
        raise UserError(f"{run!r} is {len(found)} runs: name one of them")
    terminal = Terminal()
    amount = Amount(clusters=clusters, clips=clips, samples=samples, media=media)
    path = write_report(found[0], amount, terminal)
    terminal.say(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
