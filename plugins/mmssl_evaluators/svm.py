"""What linear support vector machines read from frozen features."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.contracts import (
    Dataset,
    Evaluation,
    EvaluationContext,
    Evaluator,
    LabelledFeatures,
    Weights,
)
from mmssl.data.draws import derive_seed
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl.training.progress import Advance
from mmssl_evaluators.labelled import (
    Figures,
    Inputs,
    Source,
    accuracies,
    check_classes,
    compared,
    hold_out,
    mean_of_views,
    of_all_classes,
)
from mmssl_evaluators.metrics import top_k

Normalize = Literal["standardize", "l2", "none"]


class SVM(Evaluator):
    """One linear support vector machine a class against all others, on frozen, pooled features.

    Each minimises ``‖(w, b)‖² / 2 + cost · Σ max(0, 1 - y (w·x + b))²``. The cost is chosen on a
    part of the training set that is held out, after which the machines are fitted again on the
    whole training set; the test set is looked at once. A test sample's scores are averaged over
    its clips. XDC measures DCASE so, with ``clips: 60`` and ``fit_on: clips`` (section 6).

    Metrics, by modality: ``top1``, from 10 classes on ``top5``, and ``mean_class_accuracy``; the
    same of the untrained encoders (``top1_untrained``) and the ``gain`` over them; ``cost`` as
    chosen; ``train_samples`` and ``test_samples``, those that could be read. ``chance`` is the
    accuracy of the best constant answer.

    Args:
        train: labelled dataset that the machines are fitted on.
        test: labelled dataset that they are tested on, with the same classes in the same order.
        untrained: measure the same encoders before any training, too.
        only: the modalities to measure; null for all of the recipe.
        joined: also measure all these modalities' features side by side, under a name such as
            ``video+audio``, on the samples that have all of them.
        clips: clips per sample, uniformly placed.
        crops: crops per clip, along the longer side of the picture.
        fit_on: the mean of a training sample's clips, or every clip as an example of its own.
        normalize: what is done to features: mean and standard deviation of the training features
            removed, length 1, or nothing.
        costs: to choose from; a single one needs no choice. A small one is a strong regularisation.
        held_out: fraction of the training samples, of every class alike, on which the cost is
            chosen; between 0 and 1. All clips of a sample are on one side.
    """

    def __init__(
        self,
        *,
        train: Dataset,
        test: Dataset,
        untrained: bool = True,
        only: Annotated[list[str], Field(min_length=1)] | None = None,
        joined: bool = False,
        clips: Annotated[int, Field(ge=1)] = 1,
        crops: Annotated[int, Field(ge=1)] = 1,
        fit_on: Literal["mean", "clips"] = "mean",
        normalize: Normalize = "standardize",
        costs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
            1e-4,
            1e-3,
            1e-2,
            1e-1,
            1.0,
        ),
        held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    ) -> None:
        self.train = train
        self.test = test
        self.untrained = untrained
        self.inputs = Inputs(only, joined)
        self.clips = clips
        self.crops = crops
        self.fit_on: Literal["mean", "clips"] = fit_on
        self.normalize: Normalize = normalize
        self.costs = sorted(set(costs))
        self.held_out = held_out

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse modalities that the recipe does not have, and to join a single one."""
        self.inputs.check(modalities)

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Fit and test on every modality.

        Raises:
            UserError: the datasets' classes differ, a class is in one of them only, there is too
                little to train or test on, or features are not finite.
        """
        chance = check_classes(self.train, self.test, "an SVM")
        results = {"pretrained": self._measure(context, "pretrained")}
        if self.untrained:
            results["untrained"] = self._measure(context, "initial")
        return compared(results, chance, title="Linear SVM", figure="svm")

    def _measure(self, context: EvaluationContext, weights: Weights) -> dict[str, Figures]:
        over: Literal["none", "mean"] = "none" if self.fit_on == "clips" else "mean"
        sources = (
            Source(self.train, self.clips, self.crops, over),
            Source(self.test, self.clips, self.crops, "none"),
        )
        results = {}
        for name, train, test in self.inputs.features(context, weights, *sources):
            title = f"SVMs on {name} of {weights} encoders"
            results[name] = distributed.on_main(
                partial(self._fit_and_test, context, train, test, title)
            )
        return results

    def _fit_and_test(
        self,
        context: EvaluationContext,
        train: LabelledFeatures,
        test: LabelledFeatures,
        title: str,
    ) -> Figures:
        fits = len(self.costs) + 1 if len(self.costs) > 1 else 1
        with context.progress.task(title, fits) as advance:
            cost = self._choose(train, derive_seed(context.seed, "svm"), advance)
            machines = self._fit(train, cost)
            advance()
        scores, labels = self._test(machines, test)
        figures = accuracies(scores, labels)
        figures["cost"] = cost
        figures["train_samples"] = len(np.unique(train.index))
        figures["test_samples"] = len(labels)
        return figures

    def _choose(self, train: LabelledFeatures, seed: int, advance: Advance) -> float:
        """The cost that does best on what is held out; of equally good ones the smallest."""
        if len(self.costs) == 1:
            return self.costs[0]
        _, first, clip_of = np.unique(train.index, return_index=True, return_inverse=True)
        rng = np.random.default_rng(seed)
        held = hold_out(train.labels[first], self.held_out, rng)[clip_of]
        if not held.any():
            raise UserError(
                "no class has a second training sample to hold out for the choice of the cost: "
                "give one value only"
            )
        accuracy: dict[float, float] = {}
        for cost in self.costs:
            machines = self._fit(_part(train, ~held), cost)
            accuracy[cost] = top_k(*self._test(machines, _part(train, held)), 1)
            advance()
        return max(accuracy, key=lambda cost: accuracy[cost])

    def _fit(self, train: LabelledFeatures, cost: float) -> Any:
        """scikit-learn's machines, behind what is done to features."""
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
        from sklearn.svm import LinearSVC

        before = {"standardize": StandardScaler, "l2": Normalizer, "none": FunctionTransformer}
        # The primal problem has one solution, which no order of examples or seed changes.
        machines = LinearSVC(C=cost, dual=False, max_iter=10_000)
        pipeline = make_pipeline(before[self.normalize](), machines)
        return pipeline.fit(train.pooled.astype(np.float64), train.labels)

    def _test(self, machines: Any, test: LabelledFeatures) -> tuple[np.ndarray, np.ndarray]:
        """Scores, averaged over clips, and labels of each sample."""
        scores = machines.decision_function(test.pooled.astype(np.float64))
        if scores.ndim == 1:  # of two classes there is one machine
            scores = np.stack([-scores, scores], axis=1)
        _, first = np.unique(test.index, return_index=True)
        scores = mean_of_views(test.index, scores)
        scores = of_all_classes(scores, machines.classes_, len(self.train.classes))
        return scores, test.labels[first]


def _part(features: LabelledFeatures, rows: np.ndarray) -> LabelledFeatures:
    return LabelledFeatures(features.index[rows], features.pooled[rows], features.labels[rows])
