"""How well one modality finds another: zero-shot retrieval among a dataset's samples."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from mmssl.contracts import (
    Dataset,
    Evaluation,
    EvaluationContext,
    Evaluator,
    Features,
    LabelledFeatures,
    Objective,
    Table,
)
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl_evaluators.labelled import check_names, percent, some

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Cosines nearer to each other than this are a tie: so much may lie between the outputs of a
#: network for the same input in two places of a batch.
TIE = 1e-6

# So many cosines are held at a time.
_HELD = 1 << 24

#: What `Retrieval.space` says for the encoders' own features.
POOLED = "pooled"

Space = Mapping[str, Tensor]


class Retrieval(Evaluator):
    """Zero-shot retrieval between any two modalities, in both directions.

    One modality of a sample is the query, the other one of all samples is searched, and that of
    the same sample is the match. Embeddings are those by which the objective compares modalities;
    they are averaged over a sample's clips, then brought to length 1, and compared by their dot
    product (VATT, B.9). Only samples with both modalities take part. Labels are not used.

    A match that ties with others is ranked last of them (`TIE`), so that encoders which give all
    inputs the same embedding find nothing.

    Metrics, by direction, such as ``video-to-audio/r@5``: ``r@n``, the share of queries whose match
    is among the first n, and ``median_rank``, from 1 to the number of samples; by pair, such as
    ``video-audio/samples``, how many there were; chance is n of so many.

    Args:
        data: the dataset; it needs no labels.
        pair: two modalities; null for all pairs that a space has in common.
        space: the objective's space to compare in, where a pair is in several. ``pooled`` compares
            the encoders' pooled features themselves: meaningful only for encoders that were trained
            into one space of as many dimensions.
        clips: clips per sample, uniformly placed, whose embeddings are averaged.
        crops: crops per clip, along the longer side of the picture, averaged likewise.
        first: n of ``r@n``.
    """

    def __init__(
        self,
        *,
        data: Dataset,
        pair: tuple[str, str] | None = None,
        space: str | None = None,
        clips: Annotated[int, Field(ge=1)] = 4,
        crops: Annotated[int, Field(ge=1)] = 1,
        first: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 5, 10),
    ) -> None:
        self.data = data
        self.pair = pair
        self.space = space
        self.clips = clips
        self.crops = crops
        self.first = sorted(set(first))
        if pair is not None and pair[0] == pair[1]:
            raise UserError(f"pair: needs two modalities, not {pair[0]!r} twice")

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse a pair that the recipe does not have."""
        check_names("pair", self.pair or (), modalities)

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Look for every sample's other half.

        Raises:
            UserError: the objective aligns no modalities, or not those of `pair`; the run has not
                kept it; no sample has both modalities, or embeddings are not finite.
        """
        self.check(context.modalities)
        objective = None
        if self.space != POOLED:
            objective = context.objective()
            if type(objective).embeddings is Objective.embeddings:
                raise UserError(_aligns_none(objective))
        found = context.features(
            self.data,
            read=partial(self._read, objective, context.modalities),
            clips=self.clips,
            crops=self.crops,
            unlabelled=True,
        )
        if not found:
            raise UserError("data: the dataset is empty")
        metrics: dict[str, float] = {}
        places: dict[str, np.ndarray] = {}
        for name, both in found.items():
            one, other = name.split("+")
            _check(both, one, other)
            metrics[f"{one}-{other}/samples"] = len(both.index)
            halves = np.split(both.pooled, 2, axis=1)
            for a, b, pooled in ((one, other, halves), (other, one, halves[::-1])):
                ranked = distributed.on_main(partial(_ranked, context, f"{a} to {b}", *pooled))
                places[f"{a}-to-{b}"] = ranked
                metrics |= {f"{a}-to-{b}/r@{n}": float((ranked <= n).mean()) for n in self.first}
                metrics[f"{a}-to-{b}/median_rank"] = float(np.median(ranked))
        return Evaluation(metrics, [self._table(places)], {"retrieval": _figure(places)})

    def _read(
        self,
        objective: Objective | None,
        modalities: Sequence[str],
        features: dict[str, Features],
    ) -> dict[str, Tensor]:
        """Both halves of each pair, ``[B, 2 D]``, under a name that asks for both modalities."""
        if objective is None:
            spaces: Mapping[str, Space] = {POOLED: {n: f.pooled for n, f in features.items()}}
        else:
            spaces = objective.embeddings(features)
            if not spaces:
                raise UserError(_aligns_none(objective))
        if self.space is not None:
            if self.space not in spaces:
                raise UserError(
                    f"space: the objective has no {self.space!r}, only {some(list(spaces))}"
                )
            spaces = {self.space: spaces[self.space]}
        pairs = [self.pair] if self.pair else list(combinations(modalities, 2))
        halves = {}
        for one, other in pairs:
            space = self._common(spaces, one, other)
            if space is not None:
                halves[f"{one}+{other}"] = torch.cat([space[one], space[other]], dim=1)
        if not halves:
            wanted = " and ".join(self.pair) if self.pair else "two modalities"
            raise UserError(f"no space has embeddings of {wanted} of the same dimension")
        return halves

    def _common(self, spaces: Mapping[str, Space], one: str, other: str) -> Space | None:
        """The space in which both modalities are; None where there is none."""
        common = [
            name
            for name, space in spaces.items()
            if one in space and other in space and space[one].shape == space[other].shape
        ]
        if len(common) > 1:
            raise UserError(
                f"{one} and {other} can be compared in {some(common)}: choose one with 'space'"
            )
        return spaces[common[0]] if common else None

    def _table(self, places: Mapping[str, np.ndarray]) -> Table:
        rows = []
        for name, ranked in places.items():
            recall = [percent(float((ranked <= n).mean())) for n in self.first]
            chance = percent(min(1.0, self.first[0] / len(ranked)))
            median = f"{np.median(ranked):g}"
            rows.append([name.replace("-to-", " to "), len(ranked), *recall, median, chance])
        recalls = [f"R@{n}" for n in self.first]
        return Table(
            "Zero-shot retrieval: the match is among the first n",
            ["query to match", "samples", *recalls, "median rank", f"chance {recalls[0]}"],
            rows,
        )


def match_ranks(queries: Tensor, candidates: Tensor) -> Iterator[Tensor]:
    """The rank of each query's match among all candidates, from 1; of those that tie the last.

    Args:
        queries: ``[N, D]``, compared by cosine.
        candidates: ``[N, D]``; row i is the match of query i.

    Yields:
        ``[b]`` int64 on the CPU, chunk by chunk of the queries. A cosine that is no number ties
        with all others.
    """
    # In float64, so that what ties does not depend on how the products are summed.
    keys = normalize(candidates.double(), dim=1)
    step = max(1, _HELD // len(keys))
    for start in range(0, len(keys), step):
        cosines = normalize(queries[start : start + step].double(), dim=1) @ keys.T
        own = cosines.diagonal(start)
        yield (~(cosines < own[:, None] - TIE)).sum(dim=1).cpu()


def _ranked(
    context: EvaluationContext, title: str, queries: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """`match_ranks` on the context's device."""
    one, other = (torch.from_numpy(x).to(context.device) for x in (queries, candidates))
    places = []
    with context.progress.task(f"retrieval, {title}", len(queries)) as advance:
        for part in match_ranks(one, other):
            places.append(part.numpy())
            advance(len(part))
    return np.concatenate(places)


def _aligns_none(objective: Objective) -> str:
    return (
        f"the objective of this run, {type(objective).__name__}, aligns no modalities: there is "
        f"nothing to retrieve by (space: {POOLED} compares the encoders' features themselves)"
    )


def _check(both: LabelledFeatures, one: str, other: str) -> None:
    if not len(both.index):
        raise UserError(f"data: no sample with both {one} and {other} could be read")
    if not np.isfinite(both.pooled).all():
        raise UserError(f"embeddings of {one} and {other} are not finite: did training diverge?")


def _figure(places: Mapping[str, np.ndarray]) -> "Figure":
    """The share of queries whose match is among the first n, a line for each direction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, ranked in places.items():
        found, counts = np.unique(ranked, return_counts=True)
        shares = np.cumsum(counts) / len(ranked)
        label = name.replace("-to-", " to ")
        ends = ([1, *found, len(ranked)], [shares[0] * (found[0] == 1), *shares, 1.0])
        axes.step(*ends, where="post", label=label)
    most = max(len(ranked) for ranked in places.values())
    n = np.arange(1, most + 1) if most < 1000 else np.geomspace(1, most, 1000)
    axes.plot(n, n / most, color="black", linestyle="--", linewidth=1, label="chance")
    axes.set_xscale("log")
    axes.set_xlabel("n")
    axes.set_ylabel("match among the first n")
    axes.set_ylim(0, 1.03)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure
