"""``mmssl data shard``: pack files into tar shards."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

# So many unreadable files are named in the terminal.
_NAMED = 20

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def shard(
    source: Annotated[Path, typer.Argument(help="A manifest, or a folder of media files.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the shards.")],
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples of each shard; 1000 unless --size is given.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Size of each shard instead, such as 1GB.")
    ] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(min=0, metavar="SEED", help="Pack samples in a random order, of this seed."),
    ] = None,
) -> int:
    """Pack media files into tar shards, as WebDataset lays them out.

    Files are copied as they are. Ids stay the same, and so do rows unless --shuffle is given.
    Started again after a kill, it goes on with the shard that is missing. Exit code 1 when
    files could not be read: they are named, and keep their rows.

    Examples:
      mmssl data shard manifest.csv -o shards
      mmssl data shard ~/videos -o shards --size 1GB --shuffle 0
      mmssl run recipes/xdc_small.yaml data.train='{use: shards, path: shards}'
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.errors import UserError
    from mmssl_media.packing import UNREADABLE, Packing, pack

    if samples is not None and size is not None:
        raise UserError("--samples and --size: give one of them")
    limit = None if size is None else _bytes(size)
    if size is None and samples is None:
        samples = 1000
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output}: is a file; name a folder")
    dataset = _dataset(source)
    terminal = Terminal()
    try:
        dataset.materialise(terminal)
        _refuse_names(source, dataset)
        if shuffle is None and _is_sorted(dataset, samples):
            terminal.say(
                "samples are sorted by class: a shard, and so a batch, will hold few classes; "
                "consider --shuffle 0"
            )
        count, bad = pack(Packing(dataset, output, samples, limit, shuffle), terminal)
    except KeyboardInterrupt:
        print(
            f"mmssl: interrupted; nothing is lost: run the same command to go on in {output}",
            file=sys.stderr,
        )
        return 130
    for name, reason in bad[:_NAMED]:
        print(f"unreadable: {name}: {reason}", file=sys.stderr)
    if len(bad) > _NAMED:
        print(f"... and {len(bad) - _NAMED:,} more: {output / UNREADABLE}", file=sys.stderr)
    without = f", {len(bad):,} of them without their file: {output / UNREADABLE}" if bad else ""
    shards = "shard" if count == 1 else "shards"
    terminal.say(f"{len(dataset):,} samples in {count:,} {shards} in {output}{without}")
    return 1 if bad else 0


def _bytes(text: str) -> int:
    from mmssl.errors import UserError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None or float(found[1]) == 0 or (found[3] and not found[2]):
        raise UserError(f"--size {text}: is no size; write it as 1GB or 500MB")
    unit = _UNITS[found[2]]
    if found[3]:
        unit = 1024 ** (list(_UNITS).index(found[2]))
    return int(float(found[1]) * unit)


def _dataset(source: Path) -> Any:
    from mmssl.errors import UserError
    from mmssl_media.folder import Folder
    from mmssl_media.manifest import Manifest

    if source.is_dir():
        return Folder(path=source)
    if not source.is_file():
        raise UserError(f"{source}: no such manifest or folder")
    return Manifest(path=source)


def _refuse_names(source: Path, dataset: Any) -> None:
    """Columns that mean something else where a list is one of shards."""
    from mmssl.errors import UserError

    for name in dataset.sample(0).fields:
        if name in ("offset", "size", "__media__"):
            raise UserError(f"{source}: rename the column {name!r}: shards have one of their own")


def _is_sorted(dataset: Any, samples: int | None) -> bool:
    """Whether each class's samples stand together, though there is more than one shard."""
    import numpy as np

    if dataset.multilabel:
        return False
    labels = dataset.labels()
    changes = int(np.count_nonzero(np.diff(labels)))
    classes = len(dataset.classes)
    return classes > 1 and len(labels) > max(samples or 0, 2 * classes) and changes < 2 * classes
