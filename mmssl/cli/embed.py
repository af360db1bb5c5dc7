"""``mmssl embed``: features of a dataset, as one file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmssl.completion import names

# So many unreadable samples are named on the terminal; a file beside the output names all.
_NAMED = 10


def embed(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run's folder, its name under ./runs, or an exported folder.",
            autocompletion=names.checkpoints,
        ),
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="A manifest or a folder of media, and KEY=VALUE for parameters of the dataset; "
            "use=NAME for another one.",
            autocompletion=names.dataset,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The .npz or .parquet file to write.")
    ],
    clips: Annotated[
        int, typer.Option(min=1, help="Clips per sample; features are their mean.")
    ] = 1,
    crops: Annotated[
        int, typer.Option(min=1, help="Crops per clip, along the picture's longer side.")
    ] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips in a forward pass.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read media, per rank.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write the features of a dataset's samples, by modality, with their ids and labels.

    What cannot be read is left out and named. Killed and started again, it goes on where it was.
    Several processes, as torchrun starts them, share the work.

    Examples:
      mmssl embed quickstart ~/videos -o features.npz
      mmssl embed exported manifest.csv -o features.parquet --clips 10 --crops 3
      mmssl embed quickstart use=synthetic videos=400 split=test -o test.npz
      torchrun --nproc-per-node 8 --no-python mmssl embed vatt videos.csv -o features.npz
    """
    from mmssl.cli.terminal import Terminal

    terminal = Terminal()
    main = True
    try:
        import torch

        from mmssl.data.cores import cores
        from mmssl.errors import UserError
        from mmssl.pretrained.checkpoint import open_pretrained
        from mmssl.pretrained.dataset import named_dataset
        from mmssl.pretrained.embed import embed as write
        from mmssl.pretrained.extractor import choose_device
        from mmssl.training import distributed
        from mmssl.training.progress import Silent

        main = distributed.place().rank == 0
        if distributed.place().local_size > 1:  # they share the machine's cores
            torch.set_num_threads(max(1, cores() // distributed.place().local_size))
        pretrained, spec = open_pretrained(checkpoint), named_dataset(data)
        chosen = choose_device(device)
        with distributed.joined(chosen.type):
            done = write(
                pretrained,
                spec,
                output,
                clips=clips,
                crops=crops,
                batch_size=batch_size,
                workers=workers,
                device=chosen,
                progress=terminal if main else Silent(),
            )
    except KeyboardInterrupt:
        if main:
            print(
                "mmssl: interrupted; nothing is lost: run the same command to go on",
                file=sys.stderr,
            )
        raise typer.Exit(130) from None
    except UserError as error:
        if main:
            raise
        # Rank 0 may wait for this one, or be on a machine where nothing is wrong.
        who = "" if str(error).startswith("rank ") else f"rank {distributed.place().rank}: "
        print(f"mmssl: {who}{error}", file=sys.stderr)
        raise typer.Exit(2) from None
    if not main:
        return
    if not done.new:
        terminal.say(f"{output}: {done.rows:,} rows are there already; nothing to do")
        return
    terminal.say(f"{output}: {done.rows:,} rows")
    for column, width in done.columns.items():
        terminal.say(f"  {column}  {done.rows:,} × {width}")
    if done.skipped:
        samples = "sample" if len(done.skipped) == 1 else "samples"
        terminal.say(f"{len(done.skipped)} {samples} could not be read: {output}.skipped.jsonl")
        for id, reason in done.skipped[:_NAMED]:
            terminal.say(f"  {id}: {reason}")
        if len(done.skipped) > _NAMED:
            terminal.say(f"  and {len(done.skipped) - _NAMED} more")
