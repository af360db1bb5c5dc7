"""What the clusters of pretraining have to do with the classes of its dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from mmssl.contracts import IGNORE, Evaluation, EvaluationContext, Evaluator, Table
from mmssl.errors import UserError
from mmssl_clustering import (
    PurityRow,
    ami,
    ari,
    class_entropy,
    matched_accuracy,
    mean_class_entropy,
    mean_purity,
    nmi,
    purity,
    purity_table,
    used,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Clusters(Evaluator):
    """Compares the pseudo-labels of a round with the dataset's labels, which nothing trained on.

    A labeling is what a modality was clustered into, or several, such as ``audio+imu``, or
    ``joint`` where all were clustered together. Its clusters are ranked by purity, the share of a
    cluster's most frequent class, as XDC's tables 5 and 6 do.

    Metrics, by labeling: ``purity`` (mean, weighted by size), ``mean_purity`` (each cluster
    counting alike), ``nmi`` and ``ami`` (arithmetic mean), ``ari``, ``class_entropy_nats`` (entropy
    of the classes within a cluster, weighted by size), ``mean_class_entropy_nats`` (each counting
    alike), ``matched_accuracy`` (clusters and classes matched one to one by the Hungarian
    algorithm; those without a partner are wrong), ``used_clusters``; by pair of labelings,
    ``video-audio/nmi`` for instance; ``round``.

    Args:
        top: how many leading classes to name for a cluster.
        rows: how many clusters to show from either end of the ranking.
        round: which round's clusters, from 1; the last if not given.
    """

    encodes = False

    def __init__(
        self,
        *,
        top: Annotated[int, Field(ge=1)] = 3,
        rows: Annotated[int, Field(ge=1)] = 10,
        round: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self.top = top
        self.rows = rows
        self.round = round

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Read the rounds' labels from the run's folder and measure them.

        Of a run whose objective does not cluster, such as a baseline of the same recipe, there is
        nothing to measure, and the table says so.

        Raises:
            UserError: the dataset has no labels or several a sample, the run not the clusters of
                `round`, or they were made of other data.
        """
        rounds = _rounds(context)
        if not rounds:
            return Evaluation({}, [Table("Clusters", [""], [["this run's objective makes none"]])])
        if context.pretraining_data.multilabel:
            raise UserError(
                "needs a pretraining dataset whose samples have one class each, to compare its "
                "clusters with; these have several"
            )
        truth = context.pretraining_data.labels()
        classes = context.pretraining_data.classes
        if not len(classes) or (truth == IGNORE).all():
            raise UserError("needs a pretraining dataset with labels, to compare its clusters with")
        number = max(rounds) if self.round is None else self.round
        if number not in rounds:
            raise UserError(
                f"there is no round {number}, only rounds {min(rounds)} to {max(rounds)}"
            )

        labelings = _load(rounds[number], len(truth))
        metrics: dict[str, float] = {"round": number}
        ranked = {}
        for name, labels in labelings.items():
            metrics[f"{name}/purity"] = purity(labels, truth)
            metrics[f"{name}/mean_purity"] = mean_purity(labels, truth)
            metrics[f"{name}/nmi"] = nmi(labels, truth)
            metrics[f"{name}/ami"] = ami(labels, truth)
            metrics[f"{name}/ari"] = ari(labels, truth)
            metrics[f"{name}/class_entropy_nats"] = class_entropy(labels, truth)
            metrics[f"{name}/mean_class_entropy_nats"] = mean_class_entropy(labels, truth)
            metrics[f"{name}/matched_accuracy"] = matched_accuracy(labels, truth)
            metrics[f"{name}/used_clusters"] = used(labels)
            ranked[name] = purity_table(labels, truth, classes, self.top)
        names = list(labelings)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                metrics[f"{one}-{other}/nmi"] = nmi(labelings[one], labelings[other])

        valid = truth[truth != IGNORE]
        majority = float(np.bincount(valid).max() / len(valid))
        figures = {"clusters": _figure(ranked, majority, number)}
        if len(rounds) > 1:
            figures["clusters_rounds"] = _figure_of_rounds(rounds, truth)
        tables = [self._table(name, rows) for name, rows in ranked.items()]
        return Evaluation(metrics, tables, figures)

    def _table(self, labeling: str, ranked: Sequence[PurityRow]) -> Table:
        """Both ends of the ranking, or all of a short one."""
        shown = list(ranked)
        if len(shown) > 2 * self.rows:
            shown = [*shown[: self.rows], *shown[-self.rows :]]
        return Table(
            title=f"Clusters of {labeling}, ranked by purity",
            columns=["rank", "cluster", "size", "purity", "leading classes"],
            rows=[
                [
                    row.rank,
                    row.cluster,
                    row.size,
                    round(row.purity, 4),
                    ", ".join(f"{name} {_fraction(share)}" for name, share in row.leading),
                ]
                for row in shown
            ],
        )


def _rounds(context: EvaluationContext) -> dict[int, dict[str, Path]]:
    """By round, the label files ``clusters/round-NN/NAME.labels.npy`` of each labeling."""
    place = {name: i for i, name in enumerate(context.modalities)}

    def order(name: str) -> tuple[int, list[int]]:
        sources = list(place) if name == "joint" else name.split("+")
        return len(sources), [place[source] for source in sources]

    rounds = {}
    for folder in (context.run_folder / "clusters").glob("round-*"):
        number = folder.name.removeprefix("round-")
        found = (path.name.removesuffix(".labels.npy") for path in folder.glob("*.labels.npy"))
        names = [name for name in found if name == "joint" or set(name.split("+")) <= set(place)]
        if number.isdecimal() and names:
            rounds[int(number)] = {
                name: folder / f"{name}.labels.npy" for name in sorted(names, key=order)
            }
    return dict(sorted(rounds.items()))


def _load(files: Mapping[str, Path], samples: int) -> dict[str, np.ndarray]:
    labelings = {}
    for name, path in files.items():
        labelings[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        if labelings[name].shape != (samples,):
            raise UserError(
                f"{path} labels {len(labelings[name])} samples, but the pretraining "
                f"dataset now has {samples}: it has changed since"
            )
    return labelings


def _figure(ranked: Mapping[str, Sequence[PurityRow]], majority: float, number: int) -> "Figure":
    """The purity of every cluster, the purest first, a line for each labeling."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, rows in ranked.items():
        marker = "o" if len(rows) <= 64 else None
        ranks = [row.rank for row in rows]
        axes.plot(ranks, [row.purity for row in rows], marker=marker, markersize=3, label=name)
    axes.axhline(majority, color="black", linestyle="--", linewidth=1, label="most frequent class")
    axes.set_xlabel("rank of the cluster")
    axes.set_ylabel("purity")
    axes.set_ylim(0, 1.03)
    axes.set_title(f"Purity of the clusters of round {number}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return figure


def _figure_of_rounds(rounds: Mapping[int, Mapping[str, Path]], truth: np.ndarray) -> "Figure":
    """Purity and NMI with the classes, round by round."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    loaded = {number: _load(files, len(truth)) for number, files in rounds.items()}
    names = list(dict.fromkeys(name for labelings in loaded.values() for name in labelings))
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, (title, measure) in zip(
        figure.subplots(1, 2), {"purity": purity, "NMI with the classes": nmi}.items(), strict=True
    ):
        for name in names:
            curve = {n: measure(found[name], truth) for n, found in loaded.items() if name in found}
            axes.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=name)
        axes.set_xlabel("round")
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(0, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    return figure


def _fraction(share: float) -> str:
    """``.70`` as the paper prints it."""
    return f"{share:.2f}".removeprefix("0")
