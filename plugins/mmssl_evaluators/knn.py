"""What the nearest neighbours of frozen features know of the classes."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

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
    LabelledFeatures,
    Table,
    Weights,
)
from mmssl.training import distributed
from mmssl_evaluators.labelled import (
    Figures,
    Inputs,
    Source,
    accuracies,
    check_classes,
    compared,
    percent,
)

# So many similarities are held at a time.
_HELD = 1 << 25

Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class KNN(Evaluator):
    """Nearest neighbours by cosine, in the training set, for every modality: nothing is fitted.

    A test sample's ``k`` neighbours vote for their classes with weight ``exp(cosine /
    temperature)`` (Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination", 2018). Of neighbours equally near, those that stand first in the dataset are
    taken; a class that ties with others in votes comes last of them.

    The same neighbours answer a search for a video of the same class: ``r@n`` is how often it is
    among the nearest n, as video retrieval on UCF101 and HMDB51 is measured.

    Metrics, by modality and k, such as ``video/k20/top1``: ``top1``, from 10 classes on ``top5``,
    and ``mean_class_accuracy``; the same of the untrained encoders (``top1_untrained``) and the
    ``gain`` over them; ``train_samples`` and ``test_samples``, those that could be read. By
    modality, ``video/r@5``. ``chance`` is the accuracy of the best constant answer.

    Args:
        train: labelled dataset in which neighbours are looked for.
        test: labelled dataset whose classes are told, the same in the same order.
        untrained: measure the same encoders before any training, too.
        only: the modalities to measure; null for all of the recipe.
        joined: also measure all these modalities' features side by side, under a name such as
            ``video+audio``, on the samples that have all of them. The longer
            vectors are of a modality, the more it weighs in their cosine.
        clips: clips per sample, uniformly placed, whose features are averaged.
        crops: crops per clip, along the longer side of the picture, averaged likewise.
        k: numbers of neighbours that vote; all there are where they are fewer.
        temperature: by how much nearer ones count more, above 0.
        retrieved: n of ``r@n``.
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
        k: Counts = (1, 5, 20),
        temperature: Annotated[float, Field(gt=0)] = 0.07,
        retrieved: Counts = (1, 5, 10, 20, 50),
    ) -> None:
        self.train = train
        self.test = test
        self.untrained = untrained
        self.inputs = Inputs(only, joined)
        self.clips = clips
        self.crops = crops
        self.k = sorted(set(k))
        self.temperature = temperature
        self.retrieved = sorted(set(retrieved))

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse modalities that the recipe does not have, and to join a single one."""
        self.inputs.check(modalities)

    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Ask the neighbours in every modality.

        Raises:
            UserError: the datasets' classes differ, a class is in one of them only, there is too
                little to learn from or test on, or features are not finite.
        """
        chance = check_classes(self.train, self.test, "k-NN")
        voted, found = {}, {}
        voted["pretrained"], found["pretrained"] = self._measure(context, "pretrained")
        if self.untrained:
            voted["untrained"], found["untrained"] = self._measure(context, "initial")
        result = compared(voted, chance, title="Nearest neighbours", figure="knn")
        rows = []
        for weights, by_modality in found.items():
            suffix = "" if weights == "pretrained" else "_untrained"
            for modality, recall in by_modality.items():
                result.metrics |= {f"{modality}/r@{n}{suffix}": x for n, x in recall.items()}
                rows.append([modality, weights, *map(percent, recall.values())])
        result.tables.append(
            Table(
                "A sample of the same class is among the nearest n of the training set",
                ["modality", "encoders", *(f"R@{n}" for n in self.retrieved)],
                rows,
            )
        )
        return result

    def _measure(
        self, context: EvaluationContext, weights: Weights
    ) -> tuple[dict[str, Figures], dict[str, dict[int, float]]]:
        """Figures by modality and k; by modality, the recall at each n."""
        sources = [Source(data, self.clips, self.crops) for data in (self.train, self.test)]
        voted: dict[str, Figures] = {}
        found = {}
        for name, train, test in self.inputs.features(context, weights, *sources):
            title = f"neighbours in {name} of {weights} encoders"
            by_k, found[name] = distributed.on_main(partial(self._ask, context, train, test, title))
            voted |= {f"{name}/k{k}": figures for k, figures in by_k.items()}
        return voted, found

    def _ask(
        self,
        context: EvaluationContext,
        known: LabelledFeatures,
        asked: LabelledFeatures,
        title: str,
    ) -> tuple[dict[int, Figures], dict[int, float]]:
        """Figures by k, and the recall at each n."""
        most = max(*self.k, *self.retrieved)
        parts = []
        with context.progress.task(title, len(asked.labels)) as advance:
            for part in nearest(known.pooled, asked.pooled, most, context.device):
                parts.append(part)
                advance(len(part[0]))
        cosines, rows = (np.concatenate(values) for values in zip(*parts, strict=True))
        neighbours, labels = known.labels[rows], asked.labels
        by_k = {}
        for k in self.k:
            scores = votes(
                cosines[:, :k], neighbours[:, :k], len(self.train.classes), self.temperature
            )
            by_k[k] = accuracies(scores, labels)
            by_k[k]["train_samples"] = len(known.labels)
            by_k[k]["test_samples"] = len(labels)
        same = neighbours == labels[:, None]
        return by_k, {n: float(same[:, :n].any(axis=1).mean()) for n in self.retrieved}


def nearest(
    known: np.ndarray, asked: np.ndarray, k: int, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The nearest rows by cosine, chunk by chunk of those asked for.

    Args:
        known: ``[n, D]`` float32.
        asked: ``[m, D]`` float32.
        k: how many; all n where they are fewer.
        device: where to compare.

    Yields:
        Cosines, ``[b, k]`` float64, falling; and rows of `known`, ``[b, k]`` int64, of equally near
        ones the lower first.
    """
    keys = normalize(torch.from_numpy(known).to(device), dim=1)
    k = min(k, len(known))
    step = max(1, _HELD // len(known))
    for start in range(0, len(asked), step):
        queries = normalize(torch.from_numpy(asked[start : start + step]).to(device), dim=1)
        cosines, rows = _top(queries @ keys.T, k)
        yield cosines.double().cpu().numpy(), rows.cpu().numpy()


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns; of equal ones the lower columns, and first.

    `torch.topk` takes any of those that tie for the last place.
    """
    values, columns = scores.topk(k, dim=1)
    tied = (scores >= values[:, -1:]).sum(dim=1) > k
    columns[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    values = scores.gather(1, columns)
    order = values.sort(dim=1, descending=True, stable=True).indices
    return values.gather(1, order), columns.gather(1, order)


def votes(cosines: np.ndarray, classes: np.ndarray, number: int, temperature: float) -> np.ndarray:
    """``[b, number]``, what the neighbours' votes for each class add up to.

    Args:
        cosines: ``[b, k]``, falling.
        classes: ``[b, k]``, of the neighbours.
        number: of classes.
        temperature: see `KNN`.
    """
    # Relative to the nearest one's, as exp of a cosine over a low temperature overflows.
    weights = np.exp((cosines - cosines[:, :1]) / temperature)
    result = np.zeros((len(cosines), number))
    np.add.at(result, (np.arange(len(cosines))[:, None], classes), weights)
    return result
