"""Features that are kept while they are computed, so that a killed pass goes on where it was.

::

    features-01/
      000000.npz     rows 0 to 255 of the dataset: index, labels, what could not be read, and by
                     name values and presence
      000001.npz     rows 256 to 511
      ...

Blocks do not depend on the number of ranks: each takes some of those that are missing, and all
are read together in the end.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmssl.contracts import Dataset, LabelledFeatures, Read, Split
from mmssl.data.loading import CENTRAL, Unreadable, Views
from mmssl.training import distributed
from mmssl.training.checkpoints import write_atomically
from mmssl.training.features import FeatureStream, Streamed, pooled
from mmssl.training.progress import Progress

#: Rows of a block: few enough that those of sixty views fit into memory.
ROWS = 256

OverViews = Literal["mean", "max", "none"]


@dataclass(frozen=True)
class Block:
    """Some consecutive rows.

    Attributes:
        index: ``[n]`` int64, ascending; with `OverViews` "none" a row stands once a view.
        labels: ``[n]`` or ``[n, C]``, as in `mmssl.contracts.Batch`.
        values: by name, ``[n, D]`` float32, zeros where absent.
        present: by name, ``[n]`` bool.
        unreadable: those of the rows that are.
    """

    index: np.ndarray
    labels: np.ndarray
    values: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    unreadable: tuple[Unreadable, ...] = ()


def blocks(
    folder: Path,
    dataset: Dataset,
    stream: FeatureStream,
    *,
    views: Views = CENTRAL,
    read: Read = pooled,
    over_views: OverViews = "mean",
    progress: Progress,
    title: str,
) -> list[Path]:
    """Compute what is missing of a dataset's features; every rank calls it.

    Args:
        folder: where blocks are kept; whoever asks makes sure that it holds these features only.
        dataset: materialised.
        stream: the encoders.
        views: of each row.
        read: what of the features is wanted, by name.
        over_views: what becomes of several views.
        progress: who watches.
        title: what the progress bar says.

    Returns:
        The files of all blocks, in order; `load` reads one.
    """
    files = [folder / f"{number:06d}.npz" for number in range(-(-len(dataset) // ROWS))]

    def lacking() -> list[int]:
        return [number for number, file in enumerate(files) if not file.is_file()]

    missing = distributed.on_main(lacking)
    share = distributed.share(len(missing))
    own = [missing[place] for place in share]
    spans = [range(ROWS * n, min(ROWS * (n + 1), len(dataset))) for n in own]
    rows = np.concatenate([np.arange(s.start, s.stop) for s in spans] or [np.empty(0, np.int64)])
    done = ROWS * (len(files) - len(missing)) // distributed.size()
    failures: dict[int, Unreadable] = {}

    def note(split: Split, failure: Unreadable) -> None:
        failures.setdefault(failure.row, failure)
        stream.unreadable(split, failure)

    noting = replace(stream, unreadable=note)
    with progress.task(title, (len(rows) + done) * len(views), done * len(views)) as advance:
        streamed = noting(dataset, rows, views=views, read=read)
        for number, parts in _cut(streamed, own, spans, len(views)):
            block = _over(_joined(parts), over_views)
            bad = tuple(failures[row] for row in spans[own.index(number)] if row in failures)
            _write(files[number], replace(block, unreadable=bad))
            advance(len(spans[own.index(number)]) * len(views))
    distributed.share_objects(None)  # all blocks are there when the last rank arrives
    return [distributed.shown(file) for file in files]


def _cut(
    streamed: Iterator[Streamed], numbers: Sequence[int], spans: Sequence[range], views: int
) -> Iterator[tuple[int, list[Streamed]]]:
    """Batches, cut where blocks end."""
    left = iter(zip(numbers, spans, strict=True))
    number, wanted, parts = -1, 0, list[Streamed]()
    for batch in streamed:
        start = 0
        while start < len(batch.index):
            if wanted == 0:
                number, span = next(left)
                wanted, parts = len(span) * views, []
            taken = _rows(batch, slice(start, start + wanted))
            parts.append(taken)
            start, wanted = start + len(taken.index), wanted - len(taken.index)
            if wanted == 0:
                yield number, parts


def _rows(batch: Streamed, rows: slice) -> Streamed:
    return Streamed(
        index=batch.index[rows],
        pooled={name: values[rows] for name, values in batch.pooled.items()},
        present={name: mask[rows] for name, mask in batch.present.items()},
        labels=batch.labels[rows],
    )


def _joined(parts: Sequence[Streamed]) -> Block:
    names = list(parts[0].pooled)
    return Block(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.labels for part in parts]),
        {
            name: np.concatenate([part.pooled[name].cpu().numpy() for part in parts])
            for name in names
        },
        {n: np.concatenate([part.present[n] for part in parts]) for n in names},
    )


def _over(block: Block, how: OverViews) -> Block:
    """A row for each sample, of the views that could be read."""
    index, first = np.unique(block.index, return_index=True)
    if how == "none" or len(index) == len(block.index):
        return block
    values, present = {}, {}
    for name, there in block.present.items():
        counts = np.add.reduceat(there.astype(np.int64), first)
        present[name] = counts > 0
        if how == "mean":
            shown = np.where(there[:, None], block.values[name], np.float32(0))
            summed = np.add.reduceat(shown, first, axis=0)
            values[name] = summed / np.maximum(counts, 1)[:, None].astype(np.float32)
        else:
            shown = np.where(there[:, None], block.values[name], np.float32(-np.inf))
            largest = np.maximum.reduceat(shown, first, axis=0)
            values[name] = np.where(present[name][:, None], largest, np.float32(0))
    return Block(index, block.labels[first], values, present)


def _write(file: Path, block: Block) -> None:
    arrays: dict[str, Any] = {"index": block.index, "labels": block.labels}
    arrays["unreadable"] = np.array([json.dumps(asdict(one)) for one in block.unreadable], np.str_)
    for name, values in block.values.items():
        arrays[f"values/{name}"] = values
        arrays[f"present/{name}"] = block.present[name]

    def save(path: Path) -> None:
        with open(path, "wb") as out:
            np.savez(out, **arrays)

    write_atomically(file, save)


def load(file: Path) -> Block:
    """A block as it was written."""
    with np.load(file, allow_pickle=False) as arrays:
        names = [key.partition("/")[2] for key in arrays.files if key.startswith("values/")]
        return Block(
            arrays["index"],
            arrays["labels"],
            {name: arrays[f"values/{name}"] for name in names},
            {name: arrays[f"present/{name}"] for name in names},
            tuple(Unreadable(**json.loads(text)) for text in arrays["unreadable"].tolist()),
        )


def labelled(files: Sequence[Path], *, unlabelled: bool = False) -> dict[str, LabelledFeatures]:
    """All blocks together, by name: the rows that have it, and a label.

    Args:
        files: of the blocks.
        unlabelled: also rows without label.
    """
    found: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for file in files:
        block = load(file)
        wanted = block.labels.reshape(len(block.index), -1).min(axis=1) >= 0
        for name, values in block.values.items():
            use = block.present[name] & (wanted | unlabelled)
            found.setdefault(name, []).append((block.index[use], values[use], block.labels[use]))
    return {
        name: LabelledFeatures(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        for name, parts in found.items()
    }
