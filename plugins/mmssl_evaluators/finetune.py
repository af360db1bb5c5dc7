"""What pretrained encoders are worth as a beginning: trained further on labels, then tested."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from mmssl.contracts import (
    Dataset,
    Evaluation,
    EvaluationContext,
    Evaluator,
    Features,
    LabelledFeatures,
    Objective,
    Table,
    Weights,
)
from mmssl.errors import UserError
from mmssl.recipe.model import Training
from mmssl.training import distributed
from mmssl.training.log import read_log
from mmssl_evaluators import metrics
from mmssl_evaluators.labelled import (
    check_classes,
    check_joined,
    check_names,
    chosen,
    percent,
    some,
)
from mmssl_evaluators.supervised import Supervised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With fewer classes the five best answers say little.
_CLASSES_FOR_TOP5 = 10

# Samples between two steps of a progress bar that only counts.
_ROWS = 10_000

# Rows of the table of confusions.
_CONFUSIONS = 10

_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean of classes",
    "map": "mAP",
    "auc": "AUC",
    "d_prime": "d'",
}


class Finetune(Evaluator):
    """Trains the encoders on labels, each modality for itself, and tests them on several views.

    Every modality gets a classifier of its own. They are trained in one loop, their losses summed;
    where their networks share nothing, each learns what it would learn alone, and only the files
    are read once. What is tested is the state after the last epoch: a best epoch would be chosen
    on the test set. With ``objective: {use: supervised, joined: true}`` there is one classifier of
    all modalities together, trained and tested on the samples that have all of them.

    Metrics, by modality, or joined such as ``video+audio/top1``: ``top1``, from 10 classes on
    ``top5``, and ``mean_class_accuracy``; where samples may have several classes, ``map``, ``auc``
    and ``d_prime`` instead, means over the classes with test samples. ``test_samples`` are those
    that could be read, with label and modality: where there is none, that is the only figure.
    ``train_samples`` are the labelled ones to train on; ``chance`` is the accuracy of the best
    constant answer. A class that ties with a wrong one counts as wrong.

    Args:
        train: labelled dataset to train on.
        test: labelled dataset to test on, with the same classes in the same order.
        validation: dataset whose loss and accuracy are measured after every epoch, for the
            curves and for ``training.early_stop``. Not the test set, if that may stop training.
        training: how, as the block of this name of a recipe.
        weights: "pretrained", or "initial" to train from scratch.
        fc_only: train the classifiers only; the encoders stay as they are, in evaluation mode.
        objective: what is trained, one that classifies; null for ``supervised``.
        only: the modalities to fine-tune; null for all of the recipe.
        clips: clips per test sample, uniformly placed.
        crops: crops per clip, along the longer side of the picture.
        average: what becomes of the ``clips * crops`` views of a test sample: the mean of their
            "probabilities" or "logits", or each class's "maximum" probability.
    """

    def __init__(
        self,
        *,
        train: Dataset,
        test: Dataset,
        validation: Dataset | None = None,
        training: Training,
        weights: Weights = "pretrained",
        fc_only: bool = False,
        objective: Objective | None = None,
        only: Annotated[tuple[str, ...], Field(min_length=1)] | None = None,
        clips: Annotated[int, Field(ge=1)] = 10,
        crops: Annotated[int, Field(ge=1)] = 1,
        average: Literal["probabilities", "logits", "maximum"] = "probabilities",
    ) -> None:
        self.train = train
        self.test = test
        self.validation = validation
        if fc_only:
            training = training.model_copy(update={"freeze_encoders": True})
        self.training = training
        self.weights = weights
        self.objective = Supervised() if objective is None else objective
        self.only = only
        self.clips = clips
        self.crops = crops
        self.average = average
        self._check_training()

    def _check_training(self) -> None:
        if self.training.final_round is not None:
            raise UserError("training.final_round: there is one round: set epochs and schedule")
        if self.training.early_stop is not None and self.validation is None:
            raise UserError("training.early_stop: needs a validation loss: add 'validation'")
        offered = all(callable(getattr(self.objective, n, None)) for n in ("logits", "scores"))
        if not offered or self.objective.rounds != 1:
            raise UserError(
                f"objective: {type(self.objective).__name__} is no classifier, with logits and "
                "scores, that is trained in one round: take supervised"
            )

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse modalities that the recipe does not have, and to join a single one."""
        check_names("only", self.only or (), modalities)
        if isinstance(self.objective, Supervised) and self.objective.joined:
            check_joined("objective.joined", self.only or modalities)

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Train, and test.

        Raises:
            UserError: the datasets do not fit, a modality is none of the recipe's, or nothing of
                the test set could be read.
        """
        figures = self._check_classes(context)
        modalities = chosen(context, self.only)
        self._check_batch()
        encoders = context.train(
            self.train,
            objective=self.objective,
            training=self.training,
            validation=self.validation,
            weights=self.weights,
            modalities=modalities,
        )
        found = context.features(
            self.test,
            weights=encoders,
            read=self._views,
            modalities=modalities,
            clips=self.clips,
            crops=self.crops,
            over_views="max" if self.average == "maximum" else "mean",
            training=self.training,
        )
        if not any(len(scores.labels) for scores in found.values()):
            raise UserError(f"no labelled test sample with {' or '.join(found)} could be read")
        results = {name: self._measure(scores) for name, scores in found.items()}
        for name, result in results.items():
            figures |= {f"{name}/{key}": value for key, value in result.items()}
        tables = [self._table(results)]
        if not self.test.multilabel:
            tables += [self._confusions(name, s) for name, s in found.items() if len(s.labels)]
        log = distributed.on_main(lambda: read_log(context.folder / "training-01"))
        steps = max(1, round(self.training.epoch_size / self.training.batch_size))
        curves = _figure(log, steps, {n: r["top1"] for n, r in results.items() if "top1" in r})
        return Evaluation(figures, tables, {"finetune": curves})

    def _check_classes(self, context: EvaluationContext) -> dict[str, float]:
        """How many samples there are to train on, and what is chance, if the datasets fit."""
        classes = list(self.train.classes)
        if not classes:
            raise UserError("train: the dataset has no labels to fine-tune on")
        for name, other in (("test", self.test), ("validation", self.validation)):
            if other is None:
                continue
            if list(other.classes) != classes:
                raise UserError(
                    f"train and {name} must have the same classes in the same order, but they "
                    f"have {some(classes)} and {some(other.classes)}"
                )
            if other.multilabel != self.train.multilabel:
                raise UserError(
                    f"samples of train and {name} must alike have one class, or several"
                )
        if self.train.multilabel:
            count = distributed.on_main(partial(_with_labels, self.train, context))
            return {"train_samples": count}
        chance = check_classes(self.train, self.test, "fine-tuning")
        return {"chance": chance, "train_samples": int((self.train.labels() >= 0).sum())}

    def _check_batch(self) -> None:
        """Every rank gets an equal part of every micro-batch."""
        parts = self.training.accumulate * distributed.size()
        if self.training.batch_size % parts:
            raise UserError(
                f"training.batch_size: {self.training.batch_size} samples are not {parts} equal "
                "parts, one for each rank and micro-batch"
            )

    def _views(self, features: dict[str, Features]) -> dict[str, Tensor]:
        """What is averaged over views, ``[B, C]`` by modality."""
        objective: Any = self.objective
        logits: dict[str, Tensor] = objective.logits(features)
        if self.average == "logits":
            return logits
        return {name: objective.scores(values) for name, values in logits.items()}

    def _measure(self, found: LabelledFeatures) -> dict[str, float]:
        scores, labels = found.pooled, found.labels
        result: dict[str, float] = {}
        if self.test.multilabel and len(labels):
            areas = metrics.auc(scores, labels)
            result["map"] = metrics.mean_over_classes(metrics.average_precision(scores, labels))
            result["auc"] = metrics.mean_over_classes(areas)
            result["d_prime"] = metrics.mean_over_classes(metrics.d_prime(areas))
        elif len(labels):
            result["top1"] = metrics.top_k(scores, labels, 1)
            if len(self.test.classes) >= _CLASSES_FOR_TOP5:
                result["top5"] = metrics.top_k(scores, labels, 5)
            result["mean_class_accuracy"] = metrics.mean_class_accuracy(scores, labels)
        return {**result, "test_samples": len(labels)}

    def _table(self, results: Mapping[str, Mapping[str, float]]) -> Table:
        measures = [key for key in _NAMES if any(key in found for found in results.values())]
        what = "The last layer" if self.training.freeze_encoders else "Fine-tuning"
        count = self.clips * self.crops
        views = "1 view" if count == 1 else f"{count} views"
        return Table(
            f"{what} of {self.weights} encoders: test set, {views} a sample",
            ["modality", *(_NAMES[key] for key in measures), "test samples"],
            [
                [name, *(_shown(key, found.get(key)) for key in measures), found["test_samples"]]
                for name, found in results.items()
            ],
        )

    def _confusions(self, name: str, found: LabelledFeatures) -> Table:
        """Which class is most often taken for which."""
        counts = metrics.confusion(found.pooled, found.labels)
        sizes = counts.sum(1)
        np.fill_diagonal(counts, 0)
        classes = self.test.classes
        rows = []
        for cell in np.argsort(-counts, axis=None, kind="stable")[:_CONFUSIONS].tolist():
            right, chosen = divmod(cell, counts.shape[1])
            if counts[right, chosen]:
                # An objective may have more classes than the data.
                answer = classes[chosen] if chosen < len(classes) else str(chosen)
                share = f"{counts[right, chosen] / sizes[right]:.0%}"
                rows.append([classes[right], answer, int(counts[right, chosen]), share])
        columns = ["class", "taken for", "samples", "of the class"]
        return Table(f"Most frequent confusions of {name}", columns, rows)


def _with_labels(dataset: Dataset, context: EvaluationContext) -> int:
    """How many samples of a multi-label dataset are labelled, be it with no class."""
    count = 0
    with context.progress.task("labelled samples", len(dataset)) as advance:
        for start in range(0, len(dataset), _ROWS):
            rows = range(start, min(start + _ROWS, len(dataset)))
            count += sum(dataset.sample(row).labels is not None for row in rows)
            advance(len(rows))
    return count


def _shown(measure: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if measure == "d_prime" else percent(value)


def _figure(
    log: Sequence[Mapping[str, Any]], steps_per_epoch: int, top1: Mapping[str, float]
) -> "Figure":
    """Loss and, where samples have one class, accuracy by epoch; the test's is a dashed line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    names = {key.removesuffix("/loss") for record in log for key in record if key.endswith("/loss")}
    measures = {"loss": "loss", "accuracy": "accuracy"} if top1 else {"loss": "loss"}
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for number, name in enumerate(sorted(names)):
            colour = f"C{number}"
            for kind, title, style in (("step", "train", "-"), ("validation", "validation", ":")):
                curve = _by_epoch(log, kind, f"{name}/{measure}", steps_per_epoch)
                if curve:
                    label, marker = f"{name}, {title}", "o" if len(curve) <= 64 else None
                    axes.plot(
                        list(curve), list(curve.values()), style, color=colour, marker=marker,
                        markersize=3, label=label,
                    )  # fmt: skip
            if measure == "accuracy" and name in top1:
                label = f"{name}, test ({100 * top1[name]:.1f} %)"
                axes.axhline(top1[name], color=colour, linestyle="--", linewidth=1, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(measure)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        if measure == "accuracy":
            axes.set_ylim(0, 1.03)
        if axes.has_data():
            axes.legend(frameon=False, fontsize="small")
    return figure


def _by_epoch(
    log: Sequence[Mapping[str, Any]], kind: str, key: str, steps_per_epoch: int
) -> dict[int, float]:
    """The mean of a figure over the records of each epoch, from 1."""
    found: dict[int, list[float]] = {}
    for record in log:
        if record["kind"] == kind and record.get(key) is not None:
            epoch = math.ceil(record["step"] / steps_per_epoch)
            found.setdefault(epoch, []).append(record[key])
    return {epoch: float(np.mean(values)) for epoch, values in found.items()}
