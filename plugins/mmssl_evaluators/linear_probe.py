"""How much of the classes a linear classifier reads from frozen features."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from mmssl.contracts import (
    IGNORE,
    Dataset,
    Evaluation,
    EvaluationContext,
    Evaluator,
    LabelledFeatures,
    Table,
    Weights,
)
from mmssl.data.draws import derive_seed
from mmssl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With fewer classes the five best answers say little.
_CLASSES_FOR_TOP5 = 10


class LinearProbe(Evaluator):
    """Multinomial logistic regression on frozen, pooled features, for every modality.

    Features are standardised by the mean and standard deviation of the training features. The
    regression minimises ``mean cross-entropy + regularisation / 2 · ‖W‖²``. Its regularisation is
    chosen on a part of the training set that is held out, after which it is fitted again on the
    whole training set; the test set is looked at once.

    Metrics, by modality: ``top1`` and, from 10 classes on, ``top5``; the same of the untrained
    encoders (``top1_untrained``) and the ``gain`` over them; ``regularisation`` as chosen;
    ``train_samples`` and ``test_samples``, the clips that could be read. ``chance`` is the
    accuracy of the best constant answer.

    Args:
        train: labelled dataset that the classifier is fitted on.
        test: labelled dataset that it is tested on, with the same classes in the same order.
        untrained: probe the same encoders before any training, too.
        clips: clips per sample, uniformly placed, whose features are averaged.
        crops: crops per clip, along the longer side of the picture, averaged likewise.
        regularisation: strengths to choose from; a single one needs no choice.
        held_out: fraction of the training samples, of every class alike, on which the
            strength is chosen; between 0 and 1.
    """

    def __init__(
        self,
        *,
        train: Dataset,
        test: Dataset,
        untrained: bool = True,
        clips: Annotated[int, Field(ge=1)] = 1,
        crops: Annotated[int, Field(ge=1)] = 1,
        regularisation: Annotated[
            tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)
        ] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    ) -> None:
        self.train = train
        self.test = test
        self.untrained = untrained
        self.clips = clips
        self.crops = crops
        self.regularisation = regularisation
        self.held_out = held_out

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Probe every modality.

        Raises:
            UserError: the datasets' classes differ, a class is in one of them only, or there is
                too little to train or test on.
        """
        chance = self._check_classes()
        results = {"pretrained": self._probe(context, "pretrained")}
        if self.untrained:
            results["untrained"] = self._probe(context, "initial")

        metrics = {"chance": chance}
        for modality, pretrained in results["pretrained"].items():
            metrics |= {f"{modality}/{name}": x for name, x in pretrained.items()}
            if self.untrained:
                untrained = results["untrained"][modality]
                metrics |= {
                    f"{modality}/{name}_untrained": untrained[name]
                    for name in ("top1", "top5", "regularisation")
                    if name in untrained
                }
                metrics[f"{modality}/gain"] = pretrained["top1"] - untrained["top1"]
        top1 = {
            weights: {modality: found["top1"] for modality, found in result.items()}
            for weights, result in results.items()
        }
        return Evaluation(
            metrics=metrics,
            tables=[_table(top1, chance)],
            figures={"linear_probe": _figure(top1, chance)},
        )

    def _check_classes(self) -> float:
        """The accuracy of the best constant answer, once the datasets prove to fit."""
        classes = list(self.train.classes)
        if not classes:
            raise UserError("the training dataset of a linear probe has no labels")
        if classes != list(self.test.classes):
            raise UserError(
                "train and test must have the same classes in the same order, but "
                f"they have {_some(classes)} and {_some(self.test.classes)}"
            )
        labels = {"train": self.train.labels(), "test": self.test.labels()}
        labels = {name: found[found != IGNORE] for name, found in labels.items()}
        present = {name: set(found.tolist()) for name, found in labels.items()}
        for one, other in (("train", "test"), ("test", "train")):
            if missing := sorted(present[one] - present[other]):
                names = _some([classes[label] for label in missing])
                raise UserError(f"{other} has no sample of {names}, which {one} has")
        if len(present["train"]) < 2:
            raise UserError("a linear probe needs labelled samples of at least two classes")
        return float(np.bincount(labels["test"]).max() / len(labels["test"]))

    def _probe(self, context: EvaluationContext, weights: Weights) -> dict[str, dict[str, float]]:
        """The figures of each modality's features."""
        train, test = (
            context.features(dataset, weights=weights, clips=self.clips, crops=self.crops)
            for dataset in (self.train, self.test)
        )
        seed = derive_seed(context.seed, "linear_probe")
        results = {}
        for modality in context.modalities:
            fitting, testing = train[modality], test[modality]
            if len(set(fitting.labels.tolist())) < 2 or not len(testing.labels):
                raise UserError(
                    f"too few samples with {modality} could be read "
                    f"({len(fitting.labels)} for training, {len(testing.labels)} for testing)"
                )
            strength = self._choose(fitting, seed)
            classifier = _classifier()
            _fit(classifier, fitting.pooled, fitting.labels, strength)
            figures = {"top1": _accuracy(classifier, testing.pooled, testing.labels)}
            if len(self.train.classes) >= _CLASSES_FOR_TOP5:
                figures["top5"] = _accuracy(classifier, testing.pooled, testing.labels, k=5)
            figures["regularisation"] = strength
            figures["train_samples"] = len(fitting.labels)
            figures["test_samples"] = len(testing.labels)
            results[modality] = figures
        return results

    def _choose(self, train: LabelledFeatures, seed: int) -> float:
        """The strength that does best on what is held out; of equally good ones the strongest."""
        if len(self.regularisation) == 1:
            return self.regularisation[0]
        held = _hold_out(train.labels, self.held_out, np.random.default_rng(seed))
        if not held.any():
            raise UserError(
                "no class has a second training sample to hold out for the choice of "
                "regularisation: give one value only"
            )
        classifier = _classifier()
        accuracy: dict[float, float] = {}
        # From strong to weak: each fit begins where the one before ended.
        for strength in sorted(set(self.regularisation), reverse=True):
            _fit(classifier, train.pooled[~held], train.labels[~held], strength)
            accuracy[strength] = _accuracy(classifier, train.pooled[held], train.labels[held])
        return max(accuracy, key=lambda strength: accuracy[strength])


def _hold_out(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
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


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # It ends by converging, not by its number of steps, and when fitted again it goes on from
    # where it stands. A looser tolerance would take no step between two weak strengths.
    regression = LogisticRegression(tol=1e-5, max_iter=100_000, warm_start=True)
    return make_pipeline(StandardScaler(), regression)


def _fit(classifier: Any, features: np.ndarray, labels: np.ndarray, strength: float) -> None:
    # scikit-learn minimises C · sum of cross-entropies + ‖W‖² / 2.
    classifier.set_params(logisticregression__C=1 / (strength * len(labels)))
    classifier.fit(features.astype(np.float64), labels)  # L-BFGS stalls in float32


def _accuracy(classifier: Any, features: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """How often the right class is among the k best; one that ties with worse ones comes last."""
    scores = classifier.predict_proba(features.astype(np.float64))
    right = classifier.classes_ == labels[:, None]
    own = np.where(right, scores, -np.inf).max(axis=1)  # -inf: a class that was not trained
    rank = (scores >= own[:, None]).sum(axis=1)
    return float((right.any(axis=1) & (rank <= k)).mean())


def _table(top1: Mapping[str, Mapping[str, float]], chance: float) -> Table:
    rows = []
    for modality in top1["pretrained"]:
        row = [modality, *(_percent(found[modality]) for found in top1.values())]
        if "untrained" in top1:
            gain = top1["pretrained"][modality] - top1["untrained"][modality]
            row.append(f"{100 * gain:+.1f}")
        rows.append([*row, _percent(chance)])
    gain_column = ["gain (points)"] if "untrained" in top1 else []
    columns = ["modality", *top1, *gain_column, "chance"]
    return Table("Linear probe: top-1 accuracy on the test set", columns, rows)


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


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _some(names: Sequence[str], most: int = 4) -> str:
    """Some names for a message."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
