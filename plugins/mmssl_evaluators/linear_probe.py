"""How much of the classes a linear classifier reads from frozen features."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

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
from mmssl_evaluators.labelled import (
    Figures,
    Inputs,
    Source,
    accuracies,
    check_classes,
    compared,
    hold_out,
    of_all_classes,
)
from mmssl_evaluators.metrics import top_k


class LinearProbe(Evaluator):
    """Multinomial logistic regression on frozen, pooled features, for every modality.

    Features are standardised by the mean and standard deviation of the training features. The
    regression minimises ``mean cross-entropy + regularisation / 2 · ‖W‖²``. Its regularisation is
    chosen on a part of the training set that is held out, after which it is fitted again on the
    whole training set; the test set is looked at once.

    Metrics, by modality: ``top1``, from 10 classes on ``top5``, and ``mean_class_accuracy``; the
    same of the untrained encoders (``top1_untrained``) and the ``gain`` over them;
    ``regularisation`` as chosen; ``train_samples`` and ``test_samples``, the clips that could be
    read. ``chance`` is the accuracy of the best constant answer.

    Args:
        train: labelled dataset that the classifier is fitted on.
        test: labelled dataset that it is tested on, with the same classes in the same order.
        untrained: probe the same encoders before any training, too.
        only: the modalities to probe; null for all of the recipe.
        joined: also probe all these modalities' features side by side, under a name such as
            ``video+audio``, on the samples that have all of them.
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
        only: Annotated[list[str], Field(min_length=1)] | None = None,
        joined: bool = False,
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
        self.inputs = Inputs(only, joined)
        self.clips = clips
        self.crops = crops
        self.regularisation = regularisation
        self.held_out = held_out

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse modalities that the recipe does not have, and to join a single one."""
        self.inputs.check(modalities)

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Probe every modality.

        Raises:
            UserError: the datasets' classes differ, a class is in one of them only, or there is
                too little to train or test on.
        """
        chance = check_classes(self.train, self.test, "a linear probe")
        results = {"pretrained": self._probe(context, "pretrained")}
        if self.untrained:
            results["untrained"] = self._probe(context, "initial")
        return compared(results, chance, title="Linear probe", figure="linear_probe")

    def _probe(self, context: EvaluationContext, weights: Weights) -> dict[str, Figures]:
        """The figures of each modality's features."""
        seed = derive_seed(context.seed, "linear_probe")
        sources = [Source(data, self.clips, self.crops) for data in (self.train, self.test)]
        return {
            name: distributed.on_main(partial(self._fit_and_test, train, test, seed))
            for name, train, test in self.inputs.features(context, weights, *sources)
        }

    def _fit_and_test(
        self, fitting: LabelledFeatures, testing: LabelledFeatures, seed: int
    ) -> Figures:
        strength = self._choose(fitting, seed)
        classifier = _classifier()
        _fit(classifier, fitting.pooled, fitting.labels, strength)
        scores = _scores(classifier, testing.pooled, len(self.train.classes))
        return {
            **accuracies(scores, testing.labels),
            "regularisation": strength,
            "train_samples": len(fitting.labels),
            "test_samples": len(testing.labels),
        }

    def _choose(self, train: LabelledFeatures, seed: int) -> float:
        """The strength that does best on what is held out; of equally good ones the strongest."""
        if len(self.regularisation) == 1:
            return self.regularisation[0]
        held = hold_out(train.labels, self.held_out, np.random.default_rng(seed))
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
            scores = _scores(classifier, train.pooled[held], len(self.train.classes))
            accuracy[strength] = top_k(scores, train.labels[held], 1)
        return max(accuracy, key=lambda strength: accuracy[strength])


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


def _scores(classifier: Any, features: np.ndarray, classes: int) -> np.ndarray:
    scores = classifier.predict_proba(features.astype(np.float64))
    return of_all_classes(scores, classifier.classes_, classes)
