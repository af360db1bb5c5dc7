"""Small components without media, to test what the core does with any."""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.contracts import Backbone, Dataset, Features, Losses, Modality, Objective, Sample, Window
from mmssl.contracts import Batch as ClipBatch
from mmssl.data.draws import Draws
from mmssl.data.media import Media
from mmssl.errors import BadMedia, MissingModality


@dataclass
class Rows(Dataset):
    """Samples that are nothing but their row; the class is the row modulo their number."""

    size: int
    number_of_classes: int = 3
    bad: Collection[int] = ()
    without: dict[str, Collection[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.classes = [f"class {i}" for i in range(self.number_of_classes)]

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int) -> Sample:
        fields = {"row": str(index), "bad": str(index in self.bad)}
        fields |= {f"without {name}": str(index in rows) for name, rows in self.without.items()}
        return Sample(f"row{index}", None, 0.0, 10.0, index % self.number_of_classes, fields)


class Vector(Modality):
    """A vector of the sample's class plus noise of its own."""

    def __init__(self, name: str, dim: int = 8, noise: float = 0.5, augment: float = 0.1) -> None:
        self.kind = "vector"
        self.name = name
        self.shape = (dim,)
        self.seconds = 2.0
        self.noise = noise
        self.augment = augment

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        fields = media.sample.fields
        if fields["bad"] == "True":
            raise BadMedia("is damaged")
        if fields.get(f"without {self.name}") == "True":
            raise MissingModality(f"it has no {self.name}")
        row, label = int(fields["row"]), media.sample.label
        assert label is not None
        salt = sum(self.name.encode())
        centre = np.random.default_rng([salt, label]).normal(size=self.shape)
        own = np.random.default_rng([salt, 1000 + row]).normal(size=self.shape)
        jitter = 0.0 if rng is None else 0.01 * rng.normal()
        value = centre + self.noise * own + jitter + 0.001 * window.start
        return torch.from_numpy(value).to(torch.float32)

    def empty(self) -> Tensor:
        return torch.zeros(self.shape)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch if draws is None else batch + self.augment * draws.normal(*self.shape)


class Perceptron(Backbone):
    """Two layers with BatchNorm and dropout, whose state and draws a resume must restore."""

    modalities = frozenset({"vector"})

    def __init__(self, inputs: int = 8, dim: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(
            nn.Linear(inputs, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(32, dim),
        )

    def forward(self, clip: Tensor) -> Features:
        return Features(self.layers(clip))


class Agreement(Objective):
    """A one-round objective: features of all modalities should be near each other."""

    def loss(self, batch: ClipBatch, features: dict[str, Features]) -> Losses:
        first, *others = (f.pooled for f in features.values())
        total = sum(((first - other) ** 2).mean() for other in others)
        assert isinstance(total, Tensor)
        return Losses(total, {"distance": total.detach()})
