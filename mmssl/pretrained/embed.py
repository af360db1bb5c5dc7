"""Features of a whole dataset, as one file.

While it is at work, what it has so far lies beside the output::

    .features.npz.partial/
      started.json        what the blocks are features of
      000000.npz          features of rows 0 to 255: see `mmssl.training.kept_features`
      rows-000000.npz     those rows' ids, paths and times
"""

import fcntl
import glob
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from mmssl import __version__
from mmssl.contracts import Dataset
from mmssl.data.loading import LoaderSettings, Views
from mmssl.errors import UserError
from mmssl.formats import FEATURES
from mmssl.pretrained.checkpoint import Pretrained
from mmssl.pretrained.extractor import Extractor, make_extractor
from mmssl.pretrained.features_file import (
    Column,
    FeaturesFile,
    check_output,
    write_features,
)
from mmssl.recipe.component import ComponentSpec
from mmssl.training import distributed
from mmssl.training.checkpoints import write_atomically
from mmssl.training.kept_features import Block, blocks, load
from mmssl.training.progress import Progress


@dataclass(frozen=True)
class Embedded:
    """What became of a dataset.

    Attributes:
        rows: in the file.
        columns: its features' shape by column.
        skipped: id and reason of each row that could not be read.
        new: was anything computed?
    """

    rows: int
    columns: dict[str, int]
    skipped: list[tuple[str, str]]
    new: bool = True


def embed(
    pretrained: Pretrained,
    spec: ComponentSpec,
    output: Path,
    *,
    clips: int = 1,
    crops: int = 1,
    batch_size: int = 32,
    workers: int = 2,
    device: torch.device,
    progress: Progress,
) -> Embedded:
    """Write features of every readable sample of a dataset; every rank calls it.

    A pass that was killed goes on where it was. A finished one is not made again.

    Args:
        pretrained: the encoders.
        spec: the dataset.
        output: an ``.npz`` or ``.parquet`` file: see `mmssl.pretrained.features_file`.
        clips: clips per sample, uniformly placed; features are their mean.
        crops: crops per clip, along the longer side of the picture.
        batch_size: clips in a forward pass. Only if it divides 256 do all passes cut the rows
            alike, so that one that was killed gives what another would have to the last bit.
        workers: processes that read media, per rank.
        device: of this rank.
        progress: who watches.

    Raises:
        UserError: no row can be read, the output exists and is of something else, or it cannot be
            written.
    """
    distributed.on_main(partial(check_output, output))
    dataset: Dataset = distributed.main_first(spec.build)
    distributed.main_first(partial(dataset.materialise, progress))
    extractor = make_extractor(pretrained, device)
    about = _about(extractor, spec, dataset, clips, crops)
    folder = output.with_name(f".{output.name}.partial")
    if distributed.on_main(partial(_finished, folder, output, about)):
        return Embedded(len(FeaturesFile(output)), {}, [], new=False)
    held: list[IO[bytes]] = []
    settings = LoaderSettings(workers, pin=device.type == "cuda")
    with _written(output):
        distributed.on_main(partial(_begin, folder, output, about, held))
        files = blocks(
            folder,
            dataset,
            # Each block keeps what is unreadable of its rows.
            extractor.stream(lambda split, failure: None, settings, batch_size),
            views=Views(clips, crops),
            read=extractor.read,
            progress=progress,
            title="features",
        )
        embedded: Embedded = distributed.on_main(
            lambda: _finish(folder, output, about, extractor.layout, dataset, files, progress)
        )
    for file in held:
        file.close()
    return embedded


def _about(
    extractor: Extractor, spec: ComponentSpec, dataset: Dataset, clips: int, crops: int
) -> dict[str, Any]:
    """What features are of: the same where they would be the same."""
    return {
        "format": FEATURES.current,
        "checkpoint": {
            "name": extractor.pretrained.name,
            "path": str(extractor.pretrained.path.absolute()),
            **extractor.identity,
        },
        "layout": {modality: dict(parts) for modality, parts in extractor.layout.items()},
        "dataset": spec.plain(),
        "digest": dataset.digest(),
        "classes": list(dataset.classes),
        "multilabel": dataset.multilabel,
        "clips": clips,
        "crops": crops,
    }


def _same(before: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Are two of the same features? Where the checkpoint lies says nothing of them."""

    def what(of: Mapping[str, Any]) -> dict[str, Any]:
        weights = {k: v for k, v in of["checkpoint"].items() if k not in ("name", "path")}
        return {**{key: of.get(key) for key in about}, "checkpoint": weights}

    return what(before) == what(json.loads(json.dumps(about)))


@contextmanager
def _written(output: Path) -> Iterator[None]:
    """What the disk refuses is a user's to mend."""
    try:
        yield
    except OSError as error:
        where = error.filename or output
        raise UserError(
            f"{where}: {error.strerror or error}; once that is mended, the same command goes on"
        ) from error


def _finished(folder: Path, output: Path, about: Mapping[str, Any]) -> bool:
    if not os.path.lexists(output):
        return False
    if not _same(FeaturesFile(output).about, about):
        raise UserError(
            f"{output} holds other features (of another checkpoint, dataset or number of views): "
            "delete it, or choose another output (-o)"
        )
    if folder.is_dir():  # of a process that was killed just after it had written the output
        with suppress(UserError, OSError), _locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
    return True


def _begin(folder: Path, output: Path, about: Mapping[str, Any], held: list[IO[bytes]]) -> None:
    """Keep what a killed pass over the same left, and nothing else; let no other pass join in."""
    folder.mkdir(exist_ok=True)
    held.append(_locked(folder))
    for half in output.parent.glob(f".{glob.escape(output.name)}.*.tmp"):
        half.unlink()
    started = folder / "started.json"
    if not (started.is_file() and _same(json.loads(started.read_text()), about)):
        for leftover in folder.iterdir():
            if leftover.name != ".lock":
                leftover.unlink()
        write_atomically(started, lambda path: path.write_text(json.dumps(about)))


def _locked(folder: Path) -> IO[bytes]:
    """A file that holds the folder until it is closed."""
    file = open(folder / ".lock", "wb")  # noqa: SIM115 - until this process is done
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise UserError(f"{folder} is in use by another process: wait for it") from None
    except OSError:
        pass  # a file system without locks
    return file


def _finish(
    folder: Path,
    output: Path,
    about: Mapping[str, Any],
    layout: Mapping[str, list[tuple[str, int]]],
    dataset: Dataset,
    files: Sequence[Path],
    progress: Progress,
) -> Embedded:
    """All blocks as one file."""
    rows, labelled, skipped = 0, False, list[tuple[str, str]]()
    readable, widths = dict.fromkeys(layout, False), {"ids": 1, "paths": 1}
    with progress.task("rows", len(files)) as advance:
        for file in files:
            block = load(file)
            kept = _kept(block)
            rows += int(kept.sum())
            bad = set(block.index[~kept].tolist())  # of others some view could be read
            skipped += [(one.id, one.reason) for one in block.unreadable if one.row in bad]
            labelled |= bool((block.labels >= 0).any())
            readable = {m: there or bool(block.present[m].any()) for m, there in readable.items()}
            for name, values in _rows(file, dataset, block.index, kept).items():
                if name in widths:
                    widths[name] = max(widths[name], values.dtype.itemsize // 4)
            advance()
    if rows == 0:
        first = f"; the first was {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise UserError(f"none of {len(dataset)} samples could be read{first}")
    used = {m: parts for m, parts in layout.items() if readable[m]}
    columns = [Column(name, f"<U{width}") for name, width in widths.items()]
    columns += [Column("start", "<f8"), Column("end", "<f8")]
    if labelled:
        multi = bool(about["multilabel"])
        columns.append(
            Column("labels", "<f4", (len(about["classes"]),)) if multi else Column("labels", "<i4")
        )
    for modality, parts in used.items():
        columns.append(Column(f"present/{modality}", "|b1"))
        columns += [Column(name, "<f4", (width,)) for name, width in parts]
    described = {
        **about,
        "rows": rows,
        "skipped": len(skipped),
        "modalities": list(used),
        "mmssl": __version__,
    }
    passes = 1 if output.suffix == ".parquet" else len(columns)
    with progress.task(f"writing {output.name}", passes * len(files)) as advance:

        def pieces(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
            for file in files:
                yield {name: _column(file, name, used) for name in names}
                advance()

        def write(path: Path) -> None:
            parquet = output.suffix == ".parquet"
            write_features(path, described, columns, rows, pieces, parquet=parquet)

        _write_skipped(output, skipped)  # first, as nothing is done once the output is there
        write_atomically(output, write)
    shutil.rmtree(folder, ignore_errors=True)
    shapes = {c.name: c.shape[0] for c in columns if c.name.startswith(("features", "embeddings"))}
    return Embedded(rows, shapes, skipped)


def _kept(block: Block) -> np.ndarray:
    """``[n]`` bool: which rows could be read."""
    return np.logical_or.reduce(list(block.present.values()))


def _rows(
    file: Path, dataset: Dataset, index: np.ndarray, kept: np.ndarray
) -> dict[str, np.ndarray]:
    """What a dataset says of a block's readable rows, beside the block: asking it costs time."""
    beside = file.with_name(f"rows-{file.name}")
    if not beside.is_file():
        samples = [dataset.sample(int(row)) for row in index[kept]]
        ends = [math.nan if sample.end is None else sample.end for sample in samples]
        arrays = {
            "kept": kept,
            "ids": np.array([sample.id for sample in samples], np.str_),
            "paths": np.array([sample.media or "" for sample in samples], np.str_),
            "start": np.array([sample.start for sample in samples], np.float64),
            "end": np.array(ends, np.float64),
        }

        def save(path: Path) -> None:
            with open(path, "wb") as out:
                np.savez(out, **arrays)  # type: ignore[arg-type]

        write_atomically(beside, save)
    with np.load(beside, allow_pickle=False) as arrays:
        return dict(arrays)


def _column(file: Path, name: str, layout: Mapping[str, list[tuple[str, int]]]) -> np.ndarray:
    """A column of a block's readable rows; nothing else of the block is read from the disk."""
    with np.load(file.with_name(f"rows-{file.name}"), allow_pickle=False) as rows:
        if name in rows.files:
            return np.asarray(rows[name])
        kept = rows["kept"]
    with np.load(file, allow_pickle=False) as block:
        if name in block.files:  # labels, present/<modality>
            return np.asarray(block[name][kept])
        modality, first = name.rpartition("/")[2], 0
        for part, width in layout[modality]:
            if part == name:
                return np.asarray(block[f"values/{modality}"][kept, first : first + width])
            first += width
    raise KeyError(name)


def _write_skipped(output: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """``features.npz.skipped.jsonl``, where there is something to say."""
    path = output.with_name(f"{output.name}.skipped.jsonl")
    if not skipped:
        path.unlink(missing_ok=True)
        return
    lines = (json.dumps({"id": id, "reason": reason}) + "\n" for id, reason in skipped)
    write_atomically(path, lambda to: to.write_text("".join(lines)))
