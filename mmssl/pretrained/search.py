"""Nearest neighbours among features that `mmssl embed` wrote."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.errors import UserError
from mmssl.pretrained.checkpoint import Pretrained, open_pretrained
from mmssl.pretrained.features_file import FeaturesFile

if TYPE_CHECKING:
    from mmssl.contracts import Sample
    from mmssl.pretrained.extractor import Extractor

# By so much at most may two computations of one cosine differ.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Neighbour:
    """A row near the query.

    Attributes:
        rank: from 1.
        score: cosine, -1 to 1.
        id: the sample's.
        path: its media file; empty where it has none.
        label: its class, or classes; empty without.
        start: seconds in the file.
        end: seconds in the file; None for the file's end.
    """

    rank: int
    score: float
    id: str
    path: str
    label: str
    start: float
    end: float | None


def search(
    file: FeaturesFile,
    query: str,
    *,
    k: int = 10,
    modality: str | None = None,
    checkpoint: str | None = None,
    device: str = "auto",
) -> dict[str, list[Neighbour]]:
    """The rows nearest to a query, by the column in which they are compared.

    Args:
        file: features.
        query: a row's id, else a media file, else text.
        k: how many rows; fewer where there are fewer.
        modality: of this one only.
        checkpoint: where that which made the features is now; None for where it was.
        device: where the query is encoded.

    Raises:
        UserError: the modality is not in the file, the query lacks it, the checkpoint is another
            one, or the query is text and the checkpoint knows none.
    """
    there = file.about["modalities"]
    if modality is not None and modality not in there:
        raise UserError(f"{file.path}: no modality {modality!r}; there are: {', '.join(there)}")
    wanted = [modality] if modality is not None else list(there)
    row = file.find(query)
    if row is not None:
        found = dict(_of_row(file, row, wanted))
    elif Path(query).is_file() or "://" in query:
        found = dict(_of_media(file, query, wanted, checkpoint, device))
    else:
        found = dict(_of_text(file, query, wanted, checkpoint, device))
    return {
        column: _described(file, nearest(file, column, vector, k, without=row))
        for column, vector in found.items()
    }


def nearest(
    file: FeaturesFile, column: str, query: np.ndarray, k: int, without: int | None = None
) -> list[tuple[int, float]]:
    """The ``k`` rows of a column with the largest cosine to a vector, and the cosines.

    Of equal ones the earlier row comes first. Rows with NaN or infinity are near nothing. Memory
    does not grow with the file.

    Args:
        file: features.
        column: ``features/<modality>`` or ``embeddings/<space>/<modality>``.
        query: ``[D]``.
        k: how many.
        without: a row that is left out.

    Raises:
        UserError: the query has NaN or infinity.
    """
    import faiss

    if not np.isfinite(query).all():
        raise UserError(
            f"{column} of the query holds NaN or infinity, so that nothing is near it; --modality "
            "names another modality"
        )
    present = file.pieces(f"present/{column.rpartition('/')[2]}")
    target = _normalised(query[None])
    rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    first = 0
    for piece, there in zip(file.pieces(column), present, strict=True):
        here = np.flatnonzero(there)
        if without is not None and first <= without < first + len(piece):
            here = here[here != without - first]
        here = here[np.isfinite(piece[here]).all(1)]
        first += len(piece)
        if not len(here):
            continue
        vectors = _normalised(piece[here])
        index: faiss.Index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        worst = index.search(target, min(k, len(here)))[0][0, -1]
        # Of rows that tie for the last place its heap keeps any: all are asked for.
        _, near, places = index.range_search(target, float(worst) - _ROUNDING)
        scores = np.concatenate([scores, near])
        rows = np.concatenate([rows, first - len(piece) + here[places]])
        best = np.lexsort((rows, -scores))[:k]
        rows, scores = rows[best], scores[best]
    return [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]


def _normalised(vectors: np.ndarray) -> np.ndarray:
    """l2-normalised float32; zeros stay zeros."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))


def _of_row(file: FeaturesFile, row: int, wanted: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    for modality in wanted:
        if bool(file.take(f"present/{modality}", [row])[0]):
            column = f"features/{modality}"
            yield column, file.take(column, [row])[0]
        elif len(wanted) == 1:
            raise UserError(f"{file.path}: this row has no {modality}")


def _of_media(
    file: FeaturesFile, path: str, wanted: list[str], checkpoint: str | None, device: str
) -> Iterator[tuple[str, np.ndarray]]:
    from mmssl.contracts import Sample

    extractor = _extractor(file, _checkpoint(file, checkpoint), device)
    values = _encoded(extractor, Sample(path, path), file.about["clips"], file.about["crops"])
    shared = [modality for modality in wanted if f"features/{modality}" in values]
    if not shared:
        raise UserError(f"{path}: has no {' or '.join(wanted)}")
    for modality in shared:
        yield f"features/{modality}", values[f"features/{modality}"]


def _of_text(
    file: FeaturesFile, text: str, wanted: list[str], checkpoint: str | None, device: str
) -> Iterator[tuple[str, np.ndarray]]:
    from mmssl.contracts import Sample

    pretrained = _checkpoint(file, checkpoint)
    nothing = f"{text!r} is neither an id in {file.path} nor a file, and "
    speaking = [m for m, spec in pretrained.build_modalities().items() if spec.kind == "text"]
    if not speaking:
        raise UserError(f"{nothing}{pretrained.name} knows no text: it has no modality of text")
    extractor = _extractor(file, pretrained, device)
    values = _encoded(extractor, Sample("query", None, fields={"text": text}), 1, 1)
    found = False
    for column in values:
        kind, _, rest = column.partition("/")
        space, _, modality = rest.rpartition("/")
        if kind != "embeddings" or modality not in speaking:
            continue
        for other in wanted:
            if other not in speaking and f"embeddings/{space}/{other}" in file.columns:
                found = True
                yield f"embeddings/{space}/{other}", values[column]
    if not any(column.rpartition("/")[2] in speaking for column in values):
        raise UserError(f"{nothing}none of its words is in the vocabulary of {pretrained.name}")
    if not found:
        raise UserError(
            f"{nothing}{pretrained.name} compares text with none of {', '.join(wanted)}: there are "
            "no embeddings of them (of an export, --objective keeps what makes them)"
        )


def _checkpoint(file: FeaturesFile, checkpoint: str | None) -> Pretrained:
    made_by = file.about["checkpoint"]
    try:
        return open_pretrained(made_by["path"] if checkpoint is None else checkpoint)
    except UserError as error:
        hint = "; --checkpoint says where it is now" if checkpoint is None else ""
        raise UserError(f"the checkpoint of {file.path}: {error}{hint}") from error


def _extractor(file: FeaturesFile, pretrained: Pretrained, device: str) -> "Extractor":
    """That which made the features.

    Raises:
        UserError: its weights are other ones.
    """
    from mmssl.pretrained.extractor import choose_device, make_extractor

    extractor = make_extractor(pretrained, choose_device(device))
    made_by = file.about["checkpoint"]
    # An export may be without the objective, which features do not depend on.
    others = {None, made_by["objective"], extractor.identity["objective"]}
    if extractor.identity["weights"] != made_by["weights"] or len(others) > 2:
        raise UserError(
            f"{pretrained.path} has other weights than those that made {file.path}: embed again, "
            "or name the right one with --checkpoint"
        )
    return extractor


def _encoded(
    extractor: "Extractor", sample: "Sample", clips: int, crops: int
) -> dict[str, np.ndarray]:
    """A sample's columns, for the modalities that it has; the mean over its views."""
    from mmssl.data.loading import LoaderSettings, Unreadable, Views
    from mmssl.pretrained.files import Files

    def fail(split: str, failure: Unreadable) -> None:
        raise UserError(f"{failure.id}: {failure.reason}")

    stream = extractor.stream(fail, LoaderSettings(), 16)
    parts = list(stream(Files([sample]), range(1), views=Views(clips, crops), read=extractor.read))
    values: dict[str, np.ndarray] = {}
    for modality, layout in extractor.layout.items():
        there = np.concatenate([part.present[modality] for part in parts])
        if not there.any():
            continue
        rows = np.concatenate([part.pooled[modality].cpu().numpy() for part in parts])
        mean, first = rows[there].mean(0), 0
        for column, width in layout:
            values[column] = mean[first : first + width]
            first += width
    return values


def _described(file: FeaturesFile, found: list[tuple[int, float]]) -> list[Neighbour]:
    rows = [row for row, _ in found]
    said: dict[str, list[Any]] = {
        name: file.take(name, rows) for name in ("ids", "paths", "start", "end")
    }
    classes = file.about["classes"]
    labels = file.take("labels", rows) if "labels" in file.columns else [None] * len(rows)
    return [
        Neighbour(
            rank=i + 1,
            score=score,
            id=str(said["ids"][i]),
            path=str(said["paths"][i]),
            label=_label(labels[i], classes),
            start=float(said["start"][i]),
            end=None if math.isnan(said["end"][i]) else float(said["end"][i]),
        )
        for i, (_, score) in enumerate(found)
    ]


def _label(label: Any, classes: list[str]) -> str:
    if label is None:
        return ""
    if np.ndim(label):
        return ", ".join(name for name, there in zip(classes, label, strict=True) if there == 1)
    return classes[int(label)] if 0 <= label < len(classes) else ""
