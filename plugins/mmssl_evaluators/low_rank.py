"""What VATT's low-rank classifier reads from frozen features."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmssl.contracts import (
    Dataset,
    Evaluation,
    EvaluationContext,
    Evaluator,
    LabelledFeatures,
    Weights,
)
from mmssl.data.draws import derive_seed
from mmssl.training import distributed
from mmssl.training.progress import Advance
from mmssl_evaluators.labelled import (
    Figures,
    Inputs,
    Source,
    accuracies,
    check_classes,
    compared,
    of_all_classes,
)

# Steps whose draws travel to the device together.
_STEPS = 500


class LowRank(Evaluator):
    """A linear classifier of low rank, ``C = U V``, on frozen, pooled features (VATT, B.8).

    ``U`` is ``[D, components]`` and ``V`` is ``[components, classes]``, each with a bias, as in the
    released code. At every step a random part of the components is kept, the same for the batch,
    and scaled up by as much as was dropped; all take part in evaluation. Trained by Adam at a
    constant rate on features that are computed once. A test sample's scores are averaged over
    its clips.

    The released code draws the kept components for each sample of a batch, by dropout, and has
    ``l2: 0.1`` where the paper names none.

    All draws are a function of the recipe's seed, so a killed evaluation gives the same figures
    when it is started again. Features are kept then; the training, about a minute on a CPU core
    for each modality and encoder, begins anew.

    Metrics, by modality: ``top1``, from 10 classes on ``top5``, and ``mean_class_accuracy``; the
    same of the untrained encoders (``top1_untrained``) and the ``gain`` over them;
    ``train_samples`` and ``test_samples``, those that could be read. ``chance`` is the accuracy of
    the best constant answer.

    Args:
        train: labelled dataset that the classifier is trained on.
        test: labelled dataset that it is tested on, with the same classes in the same order.
        untrained: measure the same encoders before any training, too.
        only: the modalities to measure; null for all of the recipe.
        joined: also measure all these modalities' features side by side, under a name such as
            ``video+audio``, on the samples that have all of them.
        clips: clips of a test sample, uniformly placed.
        crops: crops per clip of a test sample, along the longer side of the picture.
        train_clips: clips of a training sample, each an example of its own.
        standardize: remove mean and standard deviation of the training features first, for
            encoders whose features are far from unit scale; the paper names nothing like it.
        components: n, the rank.
        keep: the part of the components that a step keeps; above 0 and at most 1.
        steps: of Adam.
        batch_size: training examples in a step.
        lr: the learning rate.
        l2: how much ``‖V‖²`` adds to the loss.
    """

    def __init__(
        self,
        *,
        train: Dataset,
        test: Dataset,
        untrained: bool = True,
        only: Annotated[list[str], Field(min_length=1)] | None = None,
        joined: bool = False,
        clips: Annotated[int, Field(ge=1)] = 4,
        crops: Annotated[int, Field(ge=1)] = 1,
        train_clips: Annotated[int, Field(ge=1)] = 1,
        standardize: bool = False,
        components: Annotated[int, Field(ge=1)] = 128,
        keep: Annotated[float, Field(gt=0, le=1)] = 0.1,
        steps: Annotated[int, Field(ge=1)] = 50_000,
        batch_size: Annotated[int, Field(ge=1)] = 64,
        lr: Annotated[float, Field(gt=0)] = 5e-4,
        l2: Annotated[float, Field(ge=0)] = 0.0,
    ) -> None:
        self.train = train
        self.test = test
        self.untrained = untrained
        self.inputs = Inputs(only, joined)
        self.clips = clips
        self.crops = crops
        self.train_clips = train_clips
        self.standardize = standardize
        self.components = components
        self.keep = keep
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.l2 = l2

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse modalities that the recipe does not have, and to join a single one."""
        self.inputs.check(modalities)

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Train and test on every modality.

        Raises:
            UserError: the datasets' classes differ, a class is in one of them only, there is too
                little to train or test on, or features are not finite.
        """
        chance = check_classes(self.train, self.test, "a low-rank classifier")
        results = {"pretrained": self._measure(context, "pretrained")}
        if self.untrained:
            results["untrained"] = self._measure(context, "initial")
        return compared(results, chance, title="Low-rank classifier", figure="low_rank")

    def _measure(self, context: EvaluationContext, weights: Weights) -> dict[str, Figures]:
        examples = Source(self.train, self.train_clips, over_views="none")
        # Scores are linear in features: their mean is the score of the features' mean.
        tested = Source(self.test, self.clips, self.crops)
        results = {}
        for name, train, test in self.inputs.features(context, weights, examples, tested):
            title = f"low-rank classifier of {name}, {weights} encoders"
            seed = derive_seed(context.seed, "low_rank", name)
            results[name] = distributed.on_main(
                partial(self._fit_and_test, context, train, test, title, seed)
            )
        return results

    def _fit_and_test(
        self,
        context: EvaluationContext,
        train: LabelledFeatures,
        test: LabelledFeatures,
        title: str,
        seed: int,
    ) -> Figures:
        device = context.device
        mean, deviation = np.zeros(1, np.float32), np.ones(1, np.float32)
        if self.standardize:
            mean, deviation = train.pooled.mean(axis=0), train.pooled.std(axis=0)
            deviation[deviation == 0] = 1
        trained = np.unique(train.labels)
        features = torch.from_numpy((train.pooled - mean) / deviation).to(device)
        labels = torch.from_numpy(np.searchsorted(trained, train.labels)).to(device)
        with context.progress.task(title, self.steps) as advance:
            classifier = self.fit(features, labels, len(trained), seed, advance)
        features = torch.from_numpy((test.pooled - mean) / deviation).to(device)
        with torch.no_grad():
            scores = classifier(features).cpu().numpy()
        scores = of_all_classes(scores, trained, len(self.train.classes))
        figures = accuracies(scores, test.labels)
        figures["train_samples"] = len(np.unique(train.index))
        figures["test_samples"] = len(test.labels)
        return figures

    def fit(
        self, features: Tensor, labels: Tensor, classes: int, seed: int, advance: Advance
    ) -> "Classifier":
        """Train a classifier.

        Args:
            features: ``[n, D]`` float32.
            labels: ``[n]`` int64 on the same device, from 0 to ``classes - 1``.
            classes: their number.
            seed: of initialisation, batches and kept components.
            advance: told of the steps.
        """
        generator = torch.Generator().manual_seed(seed)
        classifier = Classifier(features.shape[1], self.components, classes, generator)
        classifier.to(features.device)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=self.lr)
        kept = max(1, round(self.keep * self.components))
        draws = _draws(len(features), self.batch_size, self.components, kept, seed)
        for start in range(0, self.steps, _STEPS):
            some = list(islice(draws, min(_STEPS, self.steps - start)))
            rows = torch.from_numpy(np.stack([r for r, _ in some])).to(features.device)
            parts = torch.from_numpy(np.stack([p for _, p in some])).to(features.device)
            for batch, part in zip(rows, parts, strict=True):
                logits = classifier(features[batch], part)
                loss = cross_entropy(logits, labels[batch])
                loss = loss + self.l2 * classifier.last.square().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            advance(len(some))
        return classifier


class Classifier(nn.Module):
    """``(x U + a) V + b``, at first with Glorot's uniform weights and no bias.

    Args:
        dim: D of the features.
        components: the rank.
        classes: c.
        generator: of the weights.
    """

    def __init__(self, dim: int, components: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(dim, components))
        self.first_bias = nn.Parameter(torch.zeros(components))
        self.last = nn.Parameter(torch.empty(components, classes))
        self.last_bias = nn.Parameter(torch.zeros(classes))
        for weight in (self.first, self.last):
            nn.init.xavier_uniform_(weight, generator=generator)

    def forward(self, features: Tensor, part: Tensor | None = None) -> Tensor:
        """Scores of the classes.

        Args:
            features: ``[B, D]``.
            part: indices of the components that stand for all; all of them if not given.

        Returns:
            ``[B, c]``.
        """
        if part is None:
            return (features @ self.first + self.first_bias) @ self.last + self.last_bias
        scale = len(self.last) / len(part)
        hidden = features @ self.first[:, part] + self.first_bias[part]
        return scale * hidden @ self.last[part] + self.last_bias


def _draws(
    samples: int, batch_size: int, components: int, kept: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and kept components, step by step; all rows once, then all again in another order."""
    rng = np.random.default_rng(seed)
    waiting = np.empty(0, np.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(samples)])
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        yield batch, rng.permutation(components)[:kept]
