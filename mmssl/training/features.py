"""Features of a dataset, streamed: what clustering and evaluators read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.contracts import Dataset, Features, Modality, Read, Split
from mmssl.data.draws import Draws
from mmssl.data.loading import (
    CENTRAL,
    ClipReader,
    Loaded,
    LoaderSettings,
    Unreadable,
    Views,
    ordered_batches,
)
from mmssl.errors import UserError
from mmssl.training.encoders import Encoders

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context of a precision; fp32 switches it off."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def prepare(
    clips: Mapping[str, Tensor],
    modalities: Mapping[str, Modality],
    seeds: Tensor | None,
    channels_last: bool = False,
) -> dict[str, Tensor]:
    """Raw tensors on the device to what backbones take, in float32 also under autocast.

    Args:
        clips: by modality, as `Modality.read` returns them, batched.
        modalities: the recipe's.
        seeds: ``[B]`` int64 for augmentation, None in evaluation.
        channels_last: lay out images and video with the channel last in memory.

    Raises:
        UserError: a modality gives something else than the shape and dtype that it declares, for
            which the networks were built.
    """
    prepared = {}
    for name, modality in modalities.items():
        draws = None if seeds is None else Draws(seeds, name)
        with torch.autocast(clips[name].device.type, enabled=False), torch.no_grad():
            clip = modality.prepare(clips[name], draws)
        if clip.shape[1:] != tuple(modality.shape) or clip.dtype != modality.dtype:
            raise UserError(
                f"modalities.{name}: prepare gave clips of shape {tuple(clip.shape[1:])} and dtype "
                f"{clip.dtype}, where shape and dtype of {type(modality).__name__} declare "
                f"{tuple(modality.shape)} and {modality.dtype}: correct one of them; `mmssl "
                "check-plugin` tries more of a modality than this"
            )
        if channels_last and clip.ndim in (4, 5):
            layout = torch.channels_last if clip.ndim == 4 else torch.channels_last_3d
            clip = clip.contiguous(memory_format=layout)
        prepared[name] = clip
    return prepared


def pooled(features: dict[str, Features]) -> dict[str, Tensor]:
    """`Features.pooled` by modality."""
    return {name: found.pooled for name, found in features.items()}


@dataclass
class Streamed:
    """Features of one batch of clips; what `mmssl.contracts.FeatureBatch` describes."""

    index: np.ndarray
    pooled: dict[str, Tensor]
    present: dict[str, np.ndarray]
    labels: np.ndarray


@dataclass
class FeatureStream:
    """How features are computed; one for a run.

    Attributes:
        encoders: in eval mode while streaming, and put back into their mode afterwards.
        modalities: the recipe's.
        device: where the encoders are.
        precision: autocast of the forward pass; features come out as float32.
        batch_size: clips in a forward pass.
        settings: of the loader.
        seed: the recipe's.
        unreadable: called for each row that cannot be read.
        lacking: is shown every batch, to tell of modalities that are not there.
        where: what messages call the dataset of a split.
    """

    encoders: Encoders
    modalities: Mapping[str, Modality]
    device: torch.device
    precision: Precision
    batch_size: int
    settings: LoaderSettings
    seed: int
    unreadable: Callable[[Split, Unreadable], None]
    channels_last: bool = False
    lacking: Callable[[Loaded], None] | None = None
    where: Mapping[Split, str] = field(default_factory=dict)

    def __call__(
        self,
        dataset: Dataset,
        rows: np.ndarray | range,
        *,
        split: Split = "train",
        views: Views = CENTRAL,
        read: Read = pooled,
    ) -> Iterator[Streamed]:
        """Features of the views of each row, in the order of ``rows``, one after the other.

        Args:
            dataset: where the rows are.
            rows: which.
            split: under which unreadable ones are noted.
            views: of each row.
            read: what of the features is wanted, by name.
        """
        where = self.where.get(split, "")
        reader = ClipReader(dataset, self.modalities, seed=self.seed, views=views, where=where)
        loaded = ordered_batches(
            reader, rows, batch_size=self.batch_size, split=split, settings=self.settings
        )
        training = self.encoders.training
        self.encoders.eval()
        try:
            for item in loaded:
                for failure in item.unreadable:
                    self.unreadable(split, failure)
                if self.lacking is not None:
                    self.lacking(item)
                batch = item.batch.to(self.device)
                with torch.no_grad():
                    with autocast(self.device, self.precision):
                        clips = prepare(batch.clips, self.modalities, None, self.channels_last)
                        features = self.encoders(clips, batch.present)
                    # Heads compute in full precision, in which scores do not tie.
                    found = read({name: _in_full(f) for name, f in features.items()})
                yield Streamed(
                    index=batch.index.numpy(),
                    pooled={name: values.float() for name, values in found.items()},
                    present={name: _present(name, batch.present) for name in found},
                    labels=item.batch.labels.numpy(),  # read from the host: nothing waits
                )
        finally:
            loaded.close()
            self.encoders.train(training)


def _in_full(features: Features) -> Features:
    return features.map(lambda x: x.float() if x.is_floating_point() else x)


def _present(name: str, present: Mapping[str, Tensor]) -> np.ndarray:
    """``[B]`` bool: does a sample have all the modalities of a name?"""
    return torch.stack([present[modality] for modality in name.split("+")]).all(0).numpy()
