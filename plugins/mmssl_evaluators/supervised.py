"""Training on labels: the upper baseline of the papers' tables, and fine-tuning."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, one_hot

from mmssl.contracts import IGNORE, Batch, Features, Losses, Objective, Round
from mmssl.data.draws import Draws
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl_evaluators.labelled import check_joined

# Points of the quantile function of the distribution that mixing weights are drawn from.
_QUANTILES = 4097


class Supervised(Objective):
    """A classifier on the pooled features of each modality, trained on the labels.

    With a backbone's ``weights`` this is fine-tuning, and with ``training.freeze_encoders`` the
    training of the last layer alone ("fc only").

    Logs, by modality, the ``loss``, and for samples of one class ``accuracy``; with `joined` both
    once, under a name such as ``video+audio``.

    Args:
        classes: number of classes; null for those of the data.
        loss: "softmax" cross-entropy, or "sigmoid", a binary cross-entropy for each class, summed
            over them; null for sigmoid where samples may have several classes, else softmax.
        label_smoothing: share of a softmax target that is spread over all classes.
        dropout: share of features dropped before the classifier.
        hidden: width of a hidden layer with ReLU before the classifier; null for a linear one.
        mixup: alpha of the Beta(alpha, alpha) that weights are drawn from by which every clip and
            its label are mixed with those of its neighbour in the batch (VATT: 5); 0 for none.
        inverse_frequency: weight a sample by the mean, over its classes, of the inverse of how
            often the batch has them, labels counted after mixing (VATT, on AudioSet); weights
            are not normalised otherwise.
        joined: one classifier on the features of all modalities side by side, in the recipe's
            order, instead of one for each; samples that lack one of them do not count.
    """

    def __init__(
        self,
        *,
        classes: Annotated[int, Field(gt=1)] | None = None,
        loss: Literal["softmax", "sigmoid"] | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        hidden: Annotated[int, Field(gt=0)] | None = None,
        mixup: Annotated[float, Field(ge=0)] = 0.0,
        inverse_frequency: bool = False,
        joined: bool = False,
    ) -> None:
        super().__init__()
        if loss == "sigmoid" and label_smoothing:
            raise UserError("label_smoothing: is for softmax; a sigmoid has no other classes")
        self._classes = classes
        self._loss = loss
        self._smoothing = label_smoothing
        self._dropout = dropout
        self._hidden = hidden
        self._mixup = mixup
        self._inverse_frequency = inverse_frequency
        self.joined = joined
        self.heads = nn.ModuleDict()

    def build(self, encoders: Encoders) -> None:
        """One classifier for each modality, or for all of them."""
        if self._classes is None:
            if len(self.class_names) < 2:
                raise UserError("objective: supervised needs a dataset with labels")
            self._classes = len(self.class_names)
        if self.multilabel and (self._loss == "softmax" or self._smoothing):
            what = "label_smoothing" if self._smoothing else "loss: softmax"
            raise UserError(f"{what} needs samples of one class, these have several")
        if self.multilabel and self._classes != len(self.class_names):
            raise UserError(
                f"objective.classes: samples may have several of {len(self.class_names)} classes, "
                f"which are not {self._classes}: leave it out"
            )
        self._sigmoid = self._loss == "sigmoid" or (self._loss is None and self.multilabel)

        def head(dim: int, classes: int) -> nn.Sequential:
            layers: list[nn.Module] = [nn.Dropout(self._dropout)]
            if self._hidden is not None:
                layers += [nn.Linear(dim, self._hidden), nn.ReLU()]
                dim = self._hidden
            last = nn.Linear(dim, classes)
            if self._sigmoid and classes > 2:  # begin with what a class among as many has
                nn.init.constant_(last.bias, -math.log(classes - 1))
            return nn.Sequential(*layers, last)

        dims = encoders.dims
        if self.joined:
            check_joined("objective.joined", list(dims))
            dims = {"+".join(dims): sum(dims.values())}
        self.heads = nn.ModuleDict({name: head(d, self._classes) for name, d in dims.items()})
        if self._mixup:
            from scipy.special import betaincinv

            shares = np.linspace(0, 1, _QUANTILES)
            quantiles = betaincinv(self._mixup, self._mixup, shares)
            # Computed, not learned: no part of a checkpoint.
            table = torch.from_numpy(quantiles.astype(np.float32))
            self.register_buffer("_quantiles", table, persistent=False)

    def begin_round(self, round: Round) -> Iterable[nn.Parameter]:
        """Refuse labels that the classifiers do not have."""
        labels = round.truth()
        if labels is None and not len(self.class_names):
            raise UserError("objective: supervised needs a dataset with labels")
        assert self._classes is not None
        most = len(self.class_names) if labels is None else int(labels.max()) + 1
        if most > self._classes:
            raise UserError(
                f"objective.classes: the dataset has a label {most - 1}, so there must be "
                f"{most} classes or more, not {self._classes}"
            )
        return ()

    def augment(self, batch: Batch, clips: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Mix each sample with its neighbour (Zhang et al., "mixup", 2018).

        Neighbours are the 1st and 2nd, the 3rd and 4th, ...: the same for any number of ranks that
        have an even number of rows each. The last of an odd number is mixed with itself. Only
        samples that both are labelled and have the same modalities are mixed.
        """
        if not self._mixup:
            return batch, clips
        size, device = len(batch), batch.labels.device
        other = torch.arange(size, device=device) ^ 1
        other = torch.where(other < size, other, torch.arange(size, device=device))
        targets = self._targets(batch.labels)
        fits = (targets.amin(1) >= 0) & (targets[other].amin(1) >= 0)
        for mask in batch.present.values():
            here = mask.to(device)
            fits &= here == here[other]
        quantile = self._quantiles.to(device)
        assert isinstance(quantile, Tensor)
        place = Draws(batch.seeds, "mixup").uniform() * (len(quantile) - 1)
        low = place.long().clamp(max=len(quantile) - 2)
        share = torch.lerp(quantile[low], quantile[low + 1], place - low)
        share = torch.where(fits, share, torch.ones_like(share))
        mixed = {}
        for name, clip in clips.items():
            if not clip.is_floating_point():
                raise UserError(f"objective.mixup: clips of {name} are whole numbers: set it to 0")
            weight = share.view(-1, *[1] * (clip.ndim - 1))
            mixed[name] = torch.lerp(clip[other], clip, weight)
        labels = torch.lerp(targets[other], targets, share[:, None])
        return replace(batch, labels=torch.where(fits[:, None], labels, targets)), mixed

    def logits(self, features: dict[str, Features]) -> dict[str, Tensor]:
        """``[B, C]`` float32 by modality, or under the name of all joined by ``+``."""
        return {
            name: head(torch.cat([features[m].pooled for m in name.split("+")], dim=1)).float()
            for name, head in self.heads.items()
        }

    def scores(self, logits: Tensor) -> Tensor:
        """``[B, C]``, from 0 to 1: probabilities of one class among others, or of each class."""
        return logits.sigmoid() if self._sigmoid else logits.softmax(1)

    def _targets(self, labels: Tensor) -> Tensor:
        """``[B, C]`` float32, rows of `IGNORE` where there is no label."""
        if labels.ndim == 2:
            return labels
        assert self._classes is not None
        known = labels.clamp(min=0)
        targets = one_hot(known, self._classes).float()
        return torch.where((labels < 0)[:, None], targets.new_tensor(float(IGNORE)), targets)

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """Mean loss of the samples that have label and modality, summed over classifiers."""
        device = batch.labels.device
        targets = self._targets(batch.labels)
        labelled = targets.amin(1) >= 0
        targets = targets * labelled[:, None]
        weights = labelled.float()
        if self._inverse_frequency:
            often = distributed.total(targets.sum(0)).clamp(min=1e-9)
            weights = (targets / often).sum(1) / targets.sum(1).clamp(min=1e-9)
        total = torch.zeros((), device=device)
        parts: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for name, logits in self.logits(features).items():
            present = torch.stack([batch.present[m] for m in name.split("+")]).all(0)
            used = labelled & present.to(device)
            count = distributed.total(used.sum())
            each = self._each(logits, targets)
            loss = distributed.global_mean((each * weights * used).sum(), count)
            total = total + loss
            parts[f"{name}/loss"] = loss.detach()
            counts[f"{name}/loss"] = count
            if not self._sigmoid:
                right = (logits.argmax(1) == targets.argmax(1)) & used
                parts[f"{name}/accuracy"] = distributed.global_mean(right.sum(), count)
                counts[f"{name}/accuracy"] = count
        return Losses(total, parts, counts)

    def _each(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``[B]``, the loss of each sample."""
        if self._sigmoid:
            return binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        smooth = (1 - self._smoothing) * targets + self._smoothing / targets.shape[1]
        return -(smooth * log_softmax(logits, dim=1)).sum(1)
