"""A tiny plugin for the tests of recipes: components that are recorded, not run."""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, FilePath

from mmssl import (
    Backbone,
    Dataset,
    Evaluation,
    Evaluator,
    Losses,
    Modality,
    Objective,
    Sample,
    Tracker,
    hookimpl,
)
from mmssl.registry import Registry, load_plugins

if TYPE_CHECKING:
    from somewhere import Unresolvable


class Signal(Modality):
    def read(self, media: Any, window: Any, rng: Any) -> torch.Tensor:
        raise NotImplementedError

    def empty(self) -> torch.Tensor:
        raise NotImplementedError

    def prepare(self, batch: torch.Tensor, draws: Any) -> torch.Tensor:
        raise NotImplementedError


class Video(Signal):
    """Frames.

    Args:
        frames: frames a clip.
        mean: of each channel.
        crop: side of the crop in pixels,
            after resizing.
    """

    kind = "video"

    def __init__(
        self,
        *,
        frames: Annotated[int, Field(gt=0)] = 8,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        crop: Annotated[int, Field(gt=0)] | None = None,
    ) -> None:
        self.frames, self.mean, self.crop = frames, mean, crop


class Audio(Signal):
    """Sound."""

    kind = "audio"


class Rows(Dataset):
    """Rows.

    Args:
        count: how many there are.
        manifest: the table.
    """

    def __init__(self, *, count: int = 10, manifest: FilePath | None = None) -> None:
        if count == 13:
            raise ValueError("13 rows\nbring bad luck")
        if count == 14:
            count = round(float("inf"))
        self.count, self.manifest = count, manifest

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        return Sample(str(index), None)

    def labels(self) -> np.ndarray:
        return np.zeros(self.count, np.int32)


class Mixture(Dataset):
    """Several datasets as one.

    Args:
        parts: by name.
        more: further ones.
    """

    def __init__(self, *, parts: dict[str, Dataset], more: list[Dataset] | None = None) -> None:
        self.parts, self.more = parts, more or []

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def sample(self, index: int) -> Sample:
        raise NotImplementedError


class Net(Backbone):
    """A network for pictures that move."""

    modalities = frozenset({"video"})

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        self.width = width

    def forward(self, clip: Any) -> Any:
        raise NotImplementedError


class Trunk(Backbone):
    """A network for anything."""

    modalities = "any"

    def forward(self, clip: Any) -> Any:
        raise NotImplementedError


class Joint(Backbone):
    """A network for several at once."""

    modalities = "any"
    joint = True

    def forward(self, clip: Any) -> Any:
        raise NotImplementedError


def some_net() -> Backbone:
    """A network of which only building tells more."""
    return Joint()


def net(*, depth: Literal[18, 34] = 18) -> Net:
    """A network of some depth."""
    return Net(width=depth)


class Cluster(Objective):
    """Clusters.

    Args:
        clusters: how many, one number or one by modality.
        reduce: how losses become one.
        copy: a name that pydantic's models use themselves.
    """

    def __init__(
        self,
        *,
        clusters: Annotated[int, Field(gt=0)] | dict[str, int],
        reduce: Literal["sum", "mean"] = "sum",
        temperature: float = 1.0,
        copy: bool = False,
    ) -> None:
        super().__init__()
        self.clusters, self.copy = clusters, copy

    def loss(self, batch: Any, features: Any) -> Losses:
        raise NotImplementedError


class Contrast(Objective):
    """Contrasts."""

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()

    def loss(self, batch: Any, features: Any) -> Losses:
        raise NotImplementedError


class Probe(Evaluator):
    """Measures."""

    def __init__(self, *, train: Dataset, views: int = 1, output: Path = Path("out")) -> None:
        self.train, self.views, self.output = train, views, output

    def evaluate(self, context: Any) -> Evaluation:
        return Evaluation({})


def sgd(groups: "Unresolvable", *, lr: Annotated[float, Field(gt=0)], momentum: float = 0.9) -> Any:
    """Descend.

    Args:
        groups: what is optimised.
        lr: the peak.
    """
    return groups, lr, momentum


def constant(step: int) -> float:
    """1."""
    return 1.0


def cosine(step: int, *, warmup: int = 0) -> float:
    """Falls."""
    return float(step >= warmup)


class Board(Tracker):
    """Nowhere.

    Args:
        tag: of its records.
    """

    def __init__(self, *, tag: str = "") -> None:
        self.tag = tag

    def open(self, folder: Path, step: int) -> None:
        raise NotImplementedError

    def track(self, record: Any) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def inline() -> None:
    """Here."""


def untyped(*, size=3) -> None:  # noqa: ANN001
    """Says too little."""


def positional(size: int) -> None:
    """Its parameter cannot be set."""


def _plugin() -> types.ModuleType:
    targets = {
        "modalities": {"video": "Video", "audio": "Audio"},
        "datasets": {"rows": "Rows", "mixture": "Mixture", "missing": "Nothing"},
        "backbones": {
            "net": "Net",
            "trunk": "Trunk",
            "net_of": "net",
            "joint": "Joint",
            "some_net": "some_net",
        },
        "objectives": {"cluster": "Cluster", "contrast": "Contrast"},
        "evaluators": {"probe": "Probe"},
        "optimizers": {"sgd": "sgd"},
        "schedules": {"constant": "constant", "cosine": "cosine"},
        "trackers": {"tensorboard": "Board", "untyped": "untyped"},
        "launchers": {"inline": "inline", "positional": "positional"},
    }
    places = {
        kind: {name: f"{__name__}:{attribute}" for name, attribute in components.items()}
        for kind, components in targets.items()
    }
    return plugin_of("tiny", places)


def plugin_of(name: str, places: Mapping[str, Mapping[str, str]]) -> types.ModuleType:
    """A plugin's module: by kind and name, where its components are."""
    module = types.ModuleType(name)
    for kind, components in places.items():

        def hook(register: Any, components: Mapping[str, str] = components) -> None:
            for component, place in components.items():
                register(component, place)

        hook.__name__ = f"register_{kind}"
        setattr(module, hook.__name__, hookimpl(hook))
    return module


def registry() -> Registry:
    loaded = load_plugins([("tiny", "1.0", _plugin)])
    assert loaded.plugins[0].error is None, loaded.plugins[0].error
    return loaded


RECIPE = """\
modalities:
  video: {use: video, frames: 4}
  audio: audio
backbones:
  video: net
  audio: {use: trunk}
data:
  train:
    use: rows
    count: 100
objective:
  use: cluster
  clusters: 8
training:
  epoch_size: 64
  epochs: 2
  batch_size: 16
  optimizer: {use: sgd, lr: 1e-2}
  schedule: constant
"""
