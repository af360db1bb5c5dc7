"""What evaluators of frozen features share: labelled data in, accuracies out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.contracts import (
    IGNORE,
    Dataset,
    Evaluation,
    EvaluationContext,
    Features,
    LabelledFeatures,
    Modality,
    Table,
    Weights,
)
from mmssl.errors import UserError
from mmssl_evaluators.metrics import mean_class_accuracy, top_k

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With fewer classes the five best answers say little.
_CLASSES_FOR_TOP5 = 10

# What says how much was read, not what was found in it.
_COUNTS = ("train_samples", "test_samples")

#: Figures of one modality's features, by name.
Figures = dict[str, float]


def check_classes(train: Dataset, test: Dataset, what: str) -> float:
    """The accuracy of the best constant answer on `test`, once the datasets prove to fit.

    Args:
        train: to learn from.
        test: to be measured on.
        what: who asks, for messages: "a linear probe".

    Raises:
        UserError: there are no labels or several a sample, the datasets' classes differ, or a
            class is in one of them only.
    """
    classes = list(train.classes)
    for name, dataset in (("train", train), ("test", test)):
        if dataset.multilabel:
            raise UserError(f"{what} needs samples of one class each, those of {name} have several")
    if not classes:
        raise UserError(f"the training dataset of {what} has no labels")
    if classes != list(test.classes):
        raise UserError(
            "train and test must have the same classes in the same order, but "
            f"they have {some(classes)} and {some(test.classes)}"
        )
    labels = {"train": train.labels(), "test": test.labels()}
    labels = {name: found[found != IGNORE] for name, found in labels.items()}
    present = {name: set(found.tolist()) for name, found in labels.items()}
    for one, other in (("train", "test"), ("test", "train")):
        if missing := sorted(present[one] - present[other]):
            names = some([classes[label] for label in missing])
            raise UserError(f"{other} has no sample of {names}, which {one} has")
    if len(present["train"]) < 2:
        raise UserError(f"{what} needs labelled samples of at least two classes")
    return float(np.bincount(labels["test"]).max() / len(labels["test"]))


def check_names(field: str, names: Iterable[str], modalities: Sequence[str]) -> None:
    """Refuse names that are none of the recipe's modalities.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if name not in modalities:
            raise UserError(
                f"{field}: the recipe has no modality {name!r}, only {some(modalities)}"
            )


def chosen(context: EvaluationContext, only: Sequence[str] | None) -> dict[str, Modality] | None:
    """What is read where some modalities only are wanted, in the recipe's order; None for all.

    Raises:
        UserError: the recipe has no modality of such a name.
    """
    if only is None:
        return None
    check_names("only", only, context.modalities)
    return {name: found for name, found in context.components.items() if name in only}


def check_joined(field: str, names: Sequence[str]) -> None:
    """Refuse a single modality where several are to be joined.

    Raises:
        UserError: there is no second one.
    """
    if len(set(names)) < 2:
        raise UserError(
            f"{field}: there is nothing to put beside {names[0]!r}: "
            "take a second modality, or leave this out"
        )


@dataclass(frozen=True)
class Source:
    """A labelled dataset, and how its samples are read: see `EvaluationContext.features`."""

    dataset: Dataset
    clips: int = 1
    crops: int = 1
    over_views: Literal["mean", "none"] = "mean"


@dataclass(frozen=True)
class Inputs:
    """Which pooled features are measured.

    Attributes:
        only: the modalities; None for all of the recipe.
        joined: also those of all these modalities side by side, of the samples that have all.
    """

    only: Sequence[str] | None
    joined: bool

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse what a recipe of these modalities does not have.

        Raises:
            UserError: `only` has another name, or a single modality is left to join.
        """
        check_names("only", self.only or (), modalities)
        if self.joined:
            check_joined("joined", modalities if self.only is None else self.only)

    def features(
        self, context: EvaluationContext, weights: Weights, train: Source, test: Source
    ) -> Iterator[tuple[str, LabelledFeatures, LabelledFeatures]]:
        """Features to learn from and to be tested on, by name, once they prove to suffice.

        A name is a modality's; with `joined` the last is those of all of them, joined by ``+``.

        Raises:
            UserError: as `check` and `check_features`.
        """
        self.check(context.modalities)
        modalities = chosen(context, self.only)
        names = list(context.modalities if modalities is None else modalities)
        fitting, testing = (
            context.features(
                source.dataset,
                weights=weights,
                read=partial(_side_by_side, names) if self.joined else None,
                modalities=modalities,
                clips=source.clips,
                crops=source.crops,
                over_views=source.over_views,
            )
            for source in (train, test)
        )
        for name in fitting:
            check_features(fitting[name], testing[name], name, weights)
            yield name, fitting[name], testing[name]


def _side_by_side(names: Sequence[str], features: Mapping[str, Features]) -> dict[str, Tensor]:
    """``[B, D]`` of each modality, and of all of them one after the other."""
    pooled = {name: features[name].pooled for name in names}
    return pooled | {"+".join(names): torch.cat(list(pooled.values()), dim=1)}


def check_features(
    train: LabelledFeatures, test: LabelledFeatures, modality: str, weights: Weights
) -> None:
    """Refuse what nothing can be learned from or measured on.

    Raises:
        UserError: too little could be read, or features are not finite.
    """
    if len(set(train.labels.tolist())) < 2 or not len(test.labels):
        raise UserError(
            f"too few samples with {modality} could be read "
            f"({len(train.labels)} for training, {len(test.labels)} for testing)"
        )
    for features in (train, test):
        if not np.isfinite(features.pooled).all():
            raise UserError(
                f"the {weights} encoder of {modality} gives features that are not finite; in "
                "fp16 they may exceed its range: try training.precision: bf16"
            )


def hold_out(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """``[n]`` bool, true for a fraction of every class; each class keeps a sample at least."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    spare = order[1:][labels[order[1:]] == labels[order[:-1]]]  # all but the first of each class
    number = min(len(spare), max(1, round(fraction * len(labels))))
    # Even steps through samples sorted by class take as much of each.
    steps = ((np.arange(number) + 0.5) * len(spare) / max(1, number)).astype(int)
    held = np.zeros(len(labels), bool)
    held[spare[steps]] = True
    return held


def mean_of_views(index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean over the rows of each sample.

    Args:
        index: ``[n]`` ascending, the sample of each row.
        values: ``[n, ...]``.

    Returns:
        ``[number of samples, ...]``, in the order of ``np.unique(index)``.
    """
    _, first, counts = np.unique(index, return_index=True, return_counts=True)
    summed = np.add.reduceat(values, first, axis=0)
    return summed / counts.reshape(-1, *[1] * (values.ndim - 1))


def of_all_classes(scores: np.ndarray, trained: np.ndarray, classes: int) -> np.ndarray:
    """Scores of the classes that were trained, and the lowest for those that were not.

    Args:
        scores: ``[n, c]``.
        trained: ``[c]``, the label that each column is of.
        classes: how many the dataset has.

    Returns:
        ``[n, classes]`` float64.
    """
    result = np.full((len(scores), classes), -np.inf)
    result[:, trained] = scores
    return result


def accuracies(scores: np.ndarray, labels: np.ndarray) -> Figures:
    """``top1``, from 10 classes on ``top5``, and ``mean_class_accuracy``.

    Args:
        scores: ``[n, classes]``, n at least 1.
        labels: ``[n]``.
    """
    figures = {"top1": top_k(scores, labels, 1)}
    if scores.shape[1] >= _CLASSES_FOR_TOP5:
        figures["top5"] = top_k(scores, labels, 5)
    figures["mean_class_accuracy"] = mean_class_accuracy(scores, labels)
    return figures


def compared(
    results: Mapping[str, Mapping[str, Figures]], chance: float, *, title: str, figure: str
) -> Evaluation:
    """Metrics, a table and bars of what pretrained and, where asked for, untrained features give.

    Args:
        results: figures, ``top1`` among them, by "pretrained" and maybe "untrained", then by
            modality. Untrained figures get the suffix ``_untrained``, and the difference of top-1
            is the ``gain``.
        chance: the accuracy of the best constant answer.
        title: of the table, such as "Linear probe".
        figure: its file name.
    """
    metrics = {"chance": chance}
    for name, pretrained in results["pretrained"].items():
        metrics |= {f"{name}/{key}": x for key, x in pretrained.items()}
        if "untrained" in results:
            untrained = results["untrained"][name]
            metrics |= {
                f"{name}/{key}_untrained": x for key, x in untrained.items() if key not in _COUNTS
            }
            metrics[f"{name}/gain"] = pretrained["top1"] - untrained["top1"]
    top1 = {
        weights: {name: found["top1"] for name, found in result.items()}
        for weights, result in results.items()
    }
    return Evaluation(
        metrics=metrics,
        tables=[_table(top1, chance, title)],
        figures={figure: _figure(top1, chance)},
    )


def _table(top1: Mapping[str, Mapping[str, float]], chance: float, title: str) -> Table:
    rows = []
    for modality in top1["pretrained"]:
        row = [modality, *(percent(found[modality]) for found in top1.values())]
        if "untrained" in top1:
            gain = top1["pretrained"][modality] - top1["untrained"][modality]
            row.append(f"{100 * gain:+.1f}")
        rows.append([*row, percent(chance)])
    gain_column = ["gain (points)"] if "untrained" in top1 else []
    columns = ["modality", *top1, *gain_column, "chance"]
    return Table(f"{title}: top-1 accuracy on the test set", columns, rows)


def _figure(top1: Mapping[str, Mapping[str, float]], chance: float) -> "Figure":
    """Bars of accuracy in percent, a group for each modality, over a line at chance."""
    from matplotlib.figure import Figure

    modalities = list(top1["pretrained"])
    figure = Figure(figsize=(1.5 + 1.7 * max(2, len(modalities)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = min(0.4, 0.8 / len(top1))
    colours = {"pretrained": "tab:blue", "untrained": "tab:gray"}
    for i, (weights, found) in enumerate(top1.items()):
        places = np.arange(len(modalities)) + (i - (len(top1) - 1) / 2) * width
        heights = [100 * found[modality] for modality in modalities]
        bars = axes.bar(places, heights, 0.92 * width, label=weights, color=colours[weights])
        for text in axes.bar_label(bars, fmt="%.1f", padding=3):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    line = f"chance ({100 * chance:.1f})"
    axes.axhline(100 * chance, color="black", linestyle="--", linewidth=1, label=line)
    axes.set_xticks(range(len(modalities)), modalities)
    axes.set_xlim(-0.6, len(modalities) - 0.4)
    axes.set_ylim(0, 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("top-1 accuracy on test (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def percent(fraction: float) -> str:
    """``12.3 %``."""
    return f"{100 * fraction:.1f} %"


def some(names: Sequence[str], most: int = 4) -> str:
    """Some names for a message."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
