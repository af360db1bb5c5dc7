"""A plugin of text, for tests of what compares text with what is seen: tiny components."""

from typing import Any

import numpy as np
import torch
from pydantic import FilePath
from torch import Tensor, nn

from mmssl.contracts import Backbone, Batch, Features, Losses, Modality, Objective, Window
from mmssl.data.draws import Draws
from mmssl.data.media import Media
from mmssl.errors import MissingModality


class Words(Modality):
    """How often each word of a vocabulary is in a sample's text.

    Args:
        vocabulary: a file with a word a line.
    """

    kind = "text"

    def __init__(self, *, vocabulary: FilePath) -> None:
        self.words = vocabulary.read_text().split()
        self.shape = (len(self.words),)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        text = media.sample.fields.get("text", "")
        if not text:
            raise MissingModality
        return torch.tensor([float(text.split().count(word)) for word in self.words])

    def empty(self) -> Tensor:
        return torch.zeros(self.shape)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch


class Bag(Backbone):
    """A linear layer on counts of words.

    Args:
        words: their number.
    """

    modalities = frozenset({"text"})
    dim = 5

    def __init__(self, *, words: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(words, self.dim)

    def forward(self, clip: Tensor) -> Features:
        return Features(self.layer(clip))


class Both(Backbone):
    """Sight and text through one layer, each seen by the other."""

    modalities = frozenset({"video", "text"})
    joint = True
    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, self.dim)

    def forward(  # type: ignore[override]
        self, clips: dict[str, Tensor], present: dict[str, Tensor]
    ) -> dict[str, Features]:
        brightness = clips["video"].flatten(1).mean(1, keepdim=True)
        found = self.layer(torch.cat([brightness, clips["text"]], 1))
        return {name: Features(sign * found) for name, sign in (("video", 1), ("text", -1))}


class Meeting(Objective):
    """All modalities meet in one space of six dimensions."""

    def build(self, encoders: Any) -> None:
        self.heads = nn.ModuleDict({m: nn.Linear(d, 6) for m, d in encoders.dims.items()})

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
        return {"joint": {m: self.heads[m](found.pooled) for m, found in features.items()}}

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        first, *others = self.embeddings(features)["joint"].values()
        total = torch.stack([((first - other) ** 2).mean() for other in others]).sum()
        return Losses(total)


class Sorting(Meeting):
    """Meeting, with a weight for each class."""

    def build(self, encoders: Any) -> None:
        super().build(encoders)
        self.scores = nn.Parameter(torch.zeros(len(self.class_names)))
