"""Training on labels: the upper baseline of the papers' tables, and fine-tuning."""

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmssl.contracts import IGNORE, Batch, Features, Losses, Objective, Round
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl.training.encoders import Encoders


class Supervised(Objective):
    """A linear classifier on the pooled features of each modality, trained on the labels.

    With a backbone's ``weights`` this is fine-tuning, and with ``training.freeze_encoders`` the
    training of the last layer alone ("fc only").

    Args:
        classes: number of classes.
        label_smoothing: share of the target that is spread over all classes.
        dropout: share of features dropped before the classifier.
    """

    def __init__(
        self,
        *,
        classes: Annotated[int, Field(gt=1)],
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self._classes = classes
        self._smoothing = label_smoothing
        self._dropout = dropout
        self.heads = nn.ModuleDict()

    def build(self, encoders: Encoders) -> None:
        """One classifier for each modality."""
        self.heads = nn.ModuleDict(
            {
                modality: nn.Sequential(nn.Dropout(self._dropout), nn.Linear(dim, self._classes))
                for modality, dim in encoders.dims.items()
            }
        )

    def begin_round(self, round: Round) -> Iterable[nn.Parameter]:
        """Refuse labels that the classifiers do not have."""
        labels = round.truth()
        if labels is None:
            raise UserError("objective: supervised needs a dataset with labels")
        if labels.max() >= self._classes:
            raise UserError(
                f"objective.classes: the dataset has a label {labels.max()}, so there must be "
                f"{labels.max() + 1} classes or more, not {self._classes}"
            )

        return ()

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """Cross-entropy, summed over modalities; samples without label or modality are left out."""
        total = torch.zeros((), device=batch.labels.device)
        parts: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for modality, head in self.heads.items():
            logits = head(features[modality].pooled).float()
            target = batch.labels.where(batch.present[modality].to(batch.labels.device), IGNORE)
            summed = cross_entropy(
                logits,
                target,
                ignore_index=IGNORE,
                label_smoothing=self._smoothing,
                reduction="sum",
            )
            count = distributed.total((target != IGNORE).sum())
            loss = distributed.global_mean(summed, count)
            right = distributed.global_mean((logits.argmax(1) == target).sum(), count)
            total = total + loss
            parts[f"{modality}/loss"] = loss.detach()
            parts[f"{modality}/accuracy"] = right
            counts |= {f"{modality}/loss": count, f"{modality}/accuracy": count}
        return Losses(total, parts, counts)
