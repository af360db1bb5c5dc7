"""From a batch on the device to its losses: what several ranks compute in parallel."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmssl.contracts import Batch, Losses, Modality, Objective
from mmssl.data import timing
from mmssl.errors import UserError
from mmssl.training import distributed
from mmssl.training.encoders import Encoders
from mmssl.training.features import prepare


class Network(nn.Module):
    """All that a step computes forward, which `DistributedDataParallel` wraps.

    Args:
        encoders: of the recipe.
        objective: which may change clips before they are encoded.
        modalities: by the encoders' names.
        channels_last: lay out images and video with the channel last in memory.
    """

    def __init__(
        self,
        encoders: Encoders,
        objective: Objective,
        modalities: Mapping[str, Modality],
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.encoders = encoders
        self.objective = objective
        self._modalities = modalities
        self._channels_last = channels_last

    def forward(self, batch: Batch, augment: bool) -> Losses:
        """The objective's losses.

        Args:
            batch: on the device, its clips as `Modality.read` returns them.
            augment: in training; gradients are wanted then.

        Raises:
            UserError: a component does not keep to its contract.
        """
        with timing.step("prepare"):
            seeds = batch.seeds if augment else None
            clips = prepare(batch.clips, self._modalities, seeds, self._channels_last)
            if augment:
                batch, clips = self.objective.augment(batch, clips)
        with timing.step("forward"):
            features = self.encoders(clips, batch.present)
            losses = self.objective.loss(batch, features)
            _require_losses(self.objective, losses)
            if distributed.size() > 1 and augment:
                # Ranks meet in the backward pass of every encoder, whatever a loss made use of.
                losses.total = losses.total + sum(0 * f.pooled.sum() for f in features.values())
            if augment and not losses.total.requires_grad:
                who = type(self.objective).__name__
                raise UserError(
                    f"objective: the total that loss of {who} returned has no gradient: do not "
                    "detach it, and where no row counts return a 0 that depends on the features, "
                    "such as features.pooled.sum() * 0"
                )
            return losses


def _require_losses(objective: Objective, losses: Any) -> None:
    """What an objective returns is as its contract says."""
    who = type(objective).__name__
    if not isinstance(losses, Losses):
        what = f"a {type(losses).__name__}"
        raise UserError(
            f"objective: loss of {who} returned {what}: return mmssl.Losses(total, parts)"
        )
    if not isinstance(losses.total, Tensor) or losses.total.ndim:
        total = losses.total
        is_tensor = isinstance(total, Tensor)
        what = f"of shape {[*total.shape]}" if is_tensor else f"a {type(total).__name__}"
        raise UserError(
            f"objective: the total that loss of {who} returned is {what}: make it a scalar tensor"
        )
