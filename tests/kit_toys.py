"""A plugin of toys for the tests of the conformance kit: good ones, and each with one defect."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmssl import (
    Backbone,
    BadMedia,
    Batch,
    Callback,
    Dataset,
    Draws,
    Evaluation,
    Evaluator,
    Features,
    Losses,
    Media,
    MissingModality,
    Modality,
    Objective,
    Round,
    Sample,
    Storage,
    Table,
    Tracker,
    Window,
)
from mmssl.training import distributed
from mmssl.training.schedules import Place

# Modalities


class Vector(Modality):
    """A vector that is a function of the sample's row, and of where its window begins."""

    kind = "vector"
    shape = (8,)
    seconds = 2.0

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        row = self.row(media)
        jitter = 0.0 if rng is None else float(rng.normal())
        values = np.random.default_rng(row).normal(size=8) + 0.01 * jitter + 0.01 * window.start
        return torch.from_numpy(values).float()

    def row(self, media: Media) -> int:
        found = media.sample.fields.get("row")
        if found is None:
            raise MissingModality
        return int(found)

    def empty(self) -> Tensor:
        return torch.zeros(8)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch if draws is None else batch + 0.1 * draws.normal(8)


class Beside(Vector):
    """Found by the sample's id, as a file beside the video would be."""

    def row(self, media: Media) -> int:
        found = re.fullmatch(r"row(\d+)", media.sample.id)
        if found is None:
            raise MissingModality
        return int(found[1])


class Listed(Vector):
    """Its shape is a list."""

    shape = [8]  # type: ignore[assignment]  # noqa: RUF012


class Unfinished(Modality):
    """What stands for a sample that lacks it is left out."""

    kind = "vector"
    shape = (8,)

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        return torch.zeros(8)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch


class Ragged(Vector):
    """Longer in odd rows."""

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        read = super().read(media, window, rng)
        return read if self.row(media) % 2 == 0 else torch.cat([read, read])


class Shrinking(Vector):
    """What is missing of a short sample is missing of its clip."""

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        read = super().read(media, window, rng)
        return read[: 1 + int(7 * min(1.0, (media.end - media.start) / self.seconds))]


class Restless(Vector):
    """Draws while reading what nobody seeds."""

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        return super().read(media, window, rng) + float(np.random.normal())


class Hashing(Vector):
    """Text has another hash in every process."""

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        return super().read(media, window, rng) + hash(media.sample.id) % 1000


class Unpicklable(Vector):
    """A function without a name cannot be sent to another process."""

    def __init__(self) -> None:
        self.scale = lambda x: x


class Crashing(Vector):
    """Takes for granted that the field is there."""

    def row(self, media: Media) -> int:
        return int(media.sample.fields["row"])


class Skipping(Vector):
    """Calls damaged what is not there."""

    def row(self, media: Media) -> int:
        if "row" not in media.sample.fields:
            raise BadMedia("no row")
        return super().row(media)


class Misshapen(Vector):
    """Prepares other clips than it declares."""

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return super().prepare(batch, draws)[:, :4]


class Dividing(Vector):
    """Divides by what is 0 of an absent sample."""

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch / batch.norm(dim=1, keepdim=True)


class InPlace(Vector):
    """Works in place on what it is given."""

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch.mul_(2)


class Whitening(Vector):
    """Normalises by its batch."""

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch - batch.mean(0)


class Counting(Vector):
    """Remembers how many batches it saw."""

    def __init__(self) -> None:
        self.count = 0

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        self.count += 1
        return batch + self.count


# Datasets


class Rows(Dataset):
    """Samples that are nothing but their row.

    Args:
        size: how many there are.
    """

    classes = ("even", "odd")

    def __init__(self, *, size: int = 32) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int) -> Sample:
        return Sample(self.name(index), None, 0.0, 10.0, self.label(index), {"row": str(index)})

    def name(self, index: int) -> str:
        return f"row{index}"

    def label(self, index: int) -> int:
        return index % 2


class Twins(Rows):
    """Two samples of each name."""

    def name(self, index: int) -> str:
        return f"row{index // 2}"


class Shuffled(Rows):
    """In another order every time."""

    def __init__(self, *, size: int = 32) -> None:
        super().__init__(size=size)
        self.order = np.random.permutation(size)

    def name(self, index: int) -> str:
        return f"row{self.order[index]}"


class Handle(Rows):
    """Holds what cannot be sent to another process."""

    def __init__(self, *, size: int = 32) -> None:
        super().__init__(size=size)
        self.file = open(__file__)  # noqa: SIM115


class Mislabelled(Rows):
    """Its labels are not those of its samples."""

    def labels(self) -> np.ndarray:
        return np.zeros(len(self), np.int32)


class Unclassed(Rows):
    """More labels than classes."""

    def label(self, index: int) -> int:
        return index % 3


class Opening(Rows):
    """Opens each file to see how long it is."""

    def sample(self, index: int) -> Sample:
        try:
            with Media(Sample("probe", __file__)) as media:
                media.length  # noqa: B018
        except (BadMedia, OSError, TypeError, AttributeError):
            pass
        return super().sample(index)


class Misstored(Rows):
    """Says that it has more rows than it has."""

    def storage(self) -> Storage:
        return Storage(np.array([10, 10, 20]), 4)


# Backbones


class Net(Backbone):
    """Two layers.

    Args:
        dim: of its features.
    """

    modalities = frozenset({"vector"})

    def __init__(self, *, dim: int = 6) -> None:
        super().__init__()
        self.dim = dim
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, dim)

    def forward(self, clip: Tensor) -> Features:
        return Features(self.last(self.first(clip).relu()))


class Undeclared(Net):
    """It says in a way of its own what it serves."""

    modalities = "vector"  # type: ignore[assignment]


class Narrow(Net):
    """Gives fewer features than it declares."""

    def forward(self, clip: Tensor) -> Features:
        return Features(super().forward(clip).pooled[:, 1:])


class Scaling(Net):
    """Changes the clips that it is given."""

    def forward(self, clip: Tensor) -> Features:
        return super().forward(clip.mul_(1.5))


class Unseeded(Net):
    """Initialises by NumPy."""

    def __init__(self, *, dim: int = 6) -> None:
        super().__init__(dim=dim)
        with torch.no_grad():
            self.last.bias += float(np.random.normal())


class Dropping(Net):
    """Drops out also when it is measured."""

    def forward(self, clip: Tensor) -> Features:
        return super().forward(functional.dropout(clip, 0.5, training=True))


class Mixing(Net):
    """A clip's features depend on its neighbours'."""

    def forward(self, clip: Tensor) -> Features:
        return super().forward(clip - clip.mean(0))


class Hidden(Net):
    """Holds back a part of what it knows."""

    def __init__(self, *, dim: int = 6) -> None:
        super().__init__(dim=dim)
        self.secret = [torch.randn(8)]

    def forward(self, clip: Tensor) -> Features:
        return super().forward(clip + self.secret[0].to(clip.device))


class Lambda(Net):
    """Cannot be pickled."""

    def __init__(self, *, dim: int = 6) -> None:
        super().__init__(dim=dim)
        self.activation = lambda x: x


class Idle(Net):
    """A layer of it does nothing."""

    def __init__(self, *, dim: int = 6) -> None:
        super().__init__(dim=dim)
        self.spare = nn.Linear(3, 3)


class Coarse(Net):
    """Subtracts large numbers."""

    def forward(self, clip: Tensor) -> Features:
        pooled = super().forward(clip).pooled
        return Features(((pooled + 4096) - 4096).float() + 0 * pooled.float())


class Bound(Net):
    """Makes a tensor on the CPU, wherever it is."""

    def forward(self, clip: Tensor) -> Features:
        return super().forward(clip + torch.ones(8, device="cpu"))


class Pair(Backbone):
    """A network for two vectors at once."""

    modalities = frozenset({"vector"})
    joint = True
    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        found = {}
        for name, clip in clips.items():
            mask = present[name].to(clip.device).float()[:, None]
            found[name] = Features(self.net(clip * mask).pooled * mask)
        return found


class Leaking(Pair):
    """Looks at absent rows."""

    def forward(self, clips: dict[str, Tensor], present: dict[str, Tensor]) -> dict[str, Features]:
        return {name: Features(self.net(clip).pooled) for name, clip in clips.items()}


class Parted(Net):
    """Its subnetwork is another network."""

    def subnetworks(self) -> Mapping[str, Backbone]:
        return {"part": Net()}


# Objectives


class Agree(Objective):
    """Features of all modalities should be near each other."""

    def build(self, encoders: Any) -> None:
        self.heads = nn.ModuleDict({name: nn.Linear(dim, 4) for name, dim in encoders.dims.items()})
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        if self.training:
            self.seen += distributed.total(torch.ones(())) / distributed.size()
        first, second = (self.heads[name](f.pooled) for name, f in features.items())
        both = torch.stack(list(batch.present.values())).all(0).to(first.device)
        distance = self.distance(first, second, both)
        count = distributed.total(both.sum())
        total = distributed.global_mean((distance * both).sum(), count)
        return Losses(total, {"distance": total.detach()})

    def distance(self, first: Tensor, second: Tensor, both: Tensor) -> Tensor:
        return (first - second).square().mean(1)


class Attached(Agree):
    """Its part drags the graph along."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        losses = super().loss(batch, features)
        return Losses(losses.total, {"distance": losses.total})


class Detached(Agree):
    """Teaches the encoders nothing."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        return super().loss(batch, {n: Features(f.pooled.detach()) for n, f in features.items()})


class Renaming(Agree):
    """Its parts depend on what is in the batch."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        losses = super().loss(batch, features)
        return (
            losses
            if any(map(bool, map(torch.all, batch.present.values())))
            else Losses(losses.total)
        )


class Empty(Agree):
    """Means over nothing."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        first, second = (self.heads[name](f.pooled) for name, f in features.items())
        both = torch.stack(list(batch.present.values())).all(0)
        total = self.distance(first, second, both)[both].mean()
        return Losses(total, {"distance": total.detach()})


class Branching(Agree):
    """Has no gradient where nothing is there."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        losses = super().loss(batch, features)
        if not bool(torch.stack(list(batch.present.values())).all(0).any()):
            return Losses(torch.zeros(()), losses.parts)
        return losses


class Peeking(Agree):
    """Counts raw clips of rows that are absent."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        losses = super().loss(batch, features)
        raw = sum(clip.square().mean() for clip in batch.clips.values())
        return Losses(losses.total * (1 + raw), losses.parts)


class Careless(Agree):
    """Compares features of all rows, those of absent ones, too."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        everywhere = {name: torch.ones_like(mask) for name, mask in batch.present.items()}
        return super().loss(replace(batch, present=everywhere), features)


class Rolling(Agree):
    """Rolls dice that nobody seeds."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        losses = super().loss(batch, features)
        return Losses(losses.total * Rolling.dice.uniform(), losses.parts)

    dice = np.random.default_rng(0)


class Remembering(Agree):
    """Counts also in validation."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        losses = super().loss(batch, features)
        self.seen += 1
        return losses


class Forgetting(Agree):
    """What the round began with is in no checkpoint."""

    scale = 1.0

    def begin_round(self, round: Round) -> Iterable[nn.Parameter]:
        if not round.resumed:
            self.scale = 2.0
        return ()

    def distance(self, first: Tensor, second: Tensor, both: Tensor) -> Tensor:
        return self.scale * super().distance(first, second, both)


class Growing(Agree):
    """Grows in a round, and stays so."""

    def begin_round(self, round: Round) -> Iterable[nn.Parameter]:
        self.register_buffer("memory", torch.zeros(round.sizes["train"]))
        return ()


class Overflowing(Agree):
    """Too large for 16 bits: half a byte of it is lost."""

    def distance(self, first: Tensor, second: Tensor, both: Tensor) -> Tensor:
        large = first.to(torch.float16) * 7e4 if first.dtype == torch.bfloat16 else first
        return super().distance(large.float(), second, both)


class Unequal(Agree):
    """Spaces of unequal sizes."""

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
        (first, one), (second, other) = features.items()
        return {"space": {first: one.pooled, second: other.pooled[:, :3]}}


class Lonely(Agree):
    """Compares with rows of its own rank only."""

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        first, second = (self.heads[name](f.pooled) for name, f in features.items())
        mask = torch.stack(list(batch.present.values())).all(0).float()
        scores = (first @ second.T) * mask[None]
        total = (scores.logsumexp(1) - scores.diagonal()).mean()
        return Losses(total, {"nce": total.detach()})


# Evaluators


class Measure(Evaluator):
    """The spread of features.

    Args:
        data: to measure on.
    """

    def __init__(self, *, data: Dataset) -> None:
        self.data = data

    def evaluate(self, context: Any) -> Evaluation:
        found = context.features(self.data)
        return self.says({name: float(x.pooled.std()) for name, x in found.items()})

    def says(self, metrics: dict[str, Any]) -> Evaluation:
        return Evaluation(metrics, [Table("spread", ("of", "is"), list(metrics.items()))])


class Tensors(Measure):
    """Its figures are tensors."""

    def says(self, metrics: dict[str, Any]) -> Evaluation:
        return Evaluation({name: torch.tensor(value) for name, value in metrics.items()})  # type: ignore[misc]


class Guessing(Measure):
    """Guesses."""

    def says(self, metrics: dict[str, Any]) -> Evaluation:
        dice = np.random.default_rng().normal()
        return Evaluation({name: value + dice for name, value in metrics.items()})


class Alone(Measure):
    """Goes on with rank 0 alone, under another name."""

    def says(self, metrics: dict[str, Any]) -> Evaluation:
        return Evaluation({**metrics, f"of {distributed.size()}": 1.0})


# Optimizers and schedules


def descend(groups: Any, *, lr: float = 0.1) -> torch.optim.Optimizer:
    """Goes down.

    Args:
        groups: of parameters.
        lr: step's length.
    """
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


class _Amnesic(torch.optim.SGD):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "state": {}}


def amnesic(groups: Any, *, lr: float = 0.1) -> torch.optim.Optimizer:
    """Forgets its momentum.

    Args:
        groups: of parameters.
        lr: step's length.
    """
    return _Amnesic(groups, lr=lr, momentum=0.9)


class _Decaying(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter *= 0.99
        return super().step(closure)


def decaying(groups: Any, *, lr: float = 0.1) -> torch.optim.Optimizer:
    """Decays what is frozen, too.

    Args:
        groups: of parameters.
        lr: step's length.
    """
    return _Decaying(groups, lr=lr)


def flat(groups: Any, *, lr: float = 0.1) -> torch.optim.Optimizer:
    """Loses the groups' own settings.

    Args:
        groups: of parameters.
        lr: step's length.
    """
    return torch.optim.SGD([{"params": g["params"]} for g in groups], lr=lr)


def steady(at: Place) -> float:
    """Always the peak.

    Args:
        at: where the round stands.
    """
    return 1.0


def rising(at: Place) -> float:
    """Above the peak.

    Args:
        at: where the round stands.
    """
    return 1.0 + at.epoch


# Trackers and callbacks


class Lines(Tracker):
    """Lines in a file."""

    def open(self, folder: Path, step: int) -> None:
        self.file = (self.place(folder) / "lines.txt").open("a")

    def place(self, folder: Path) -> Path:
        return folder

    def track(self, record: Mapping[str, Any]) -> None:
        self.file.write(f"{record}\n")

    def close(self) -> None:
        self.file.close()


class Strewing(Lines):
    """Lines where one happens to be."""

    def place(self, folder: Path) -> Path:
        return Path()


class Adding(Lines):
    """Takes every figure for a number."""

    def track(self, record: Mapping[str, Any]) -> None:
        sum(value for value in record.values() if not isinstance(value, str))


class Once(Lines):
    """Cannot be opened twice."""

    def open(self, folder: Path, step: int) -> None:
        self.file = (folder / "lines.txt").open("x")


class Average(Callback):
    """Counts steps, and keeps the count."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, run: Any, losses: Losses) -> None:
        self.steps += 1
        run.report({"steps": float(self.steps)})

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


class Misspelt(Average):
    """Waits for what never comes."""

    def on_step_ends(self, run: Any) -> None:
        self.steps += 1


class NumPyState(Average):
    """Keeps what a checkpoint cannot hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"steps": np.int64(self.steps)}


class Losing(Average):
    """Keeps nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Drifting(Average):
    """Moves each rank's encoders its own way."""

    def on_step_end(self, run: Any, losses: Losses) -> None:
        with torch.no_grad():
            for parameter in run.encoders.parameters():
                parameter += 0.01 * distributed.rank()


# What a component of any kind may lack


class Silent(Net):
    def __init__(self, *, dim: int = 6) -> None:
        super().__init__(dim=dim)


class Positional(Net):
    """Its parameter may be passed by position.

    Args:
        dim: of its features.
    """

    def __init__(self, dim: int = 6) -> None:
        super().__init__(dim=dim)


class Untyped(Net):
    """Its parameter has no type.

    Args:
        dim: of its features.
        width: of what?
    """

    def __init__(self, *, width=3) -> None:  # noqa: ANN001
        super().__init__()


class Undescribed(Net):
    """Says nothing of its width."""

    def __init__(self, *, width: int = 3) -> None:
        super().__init__()


class Misdefaulted(Net):
    """Its default is none of its values.

    Args:
        dim: of its features.
    """

    def __init__(self, *, dim: int = "six") -> None:  # type: ignore[assignment]
        super().__init__(dim=6)


class Stranger(nn.Module):
    """No backbone at all."""

    modalities = frozenset({"vector"})
    dim = 6


def unannotated():  # noqa: ANN201
    """Does not say what it returns."""
    return Net()


KINDS: dict[str, dict[str, Any]] = {
    "modalities": {
        c.__name__.lower(): c
        for c in (
            Vector, Beside, Listed, Ragged, Shrinking, Restless, Hashing, Unpicklable, Crashing,
            Skipping, Misshapen, Dividing, InPlace, Whitening, Counting, Unfinished,
        )
    },
    "datasets": {
        c.__name__.lower(): c
        for c in (
            Rows, Twins, Shuffled, Handle, Mislabelled, Unclassed, Opening, Misstored,
        )
    },
    "backbones": {
        c.__name__.lower(): c
        for c in (
            Net, Undeclared, Narrow, Scaling, Unseeded, Dropping, Mixing, Hidden, Lambda, Idle,
            Coarse, Bound, Pair, Leaking, Parted, Silent, Positional, Untyped, Undescribed,
            Misdefaulted, Stranger, unannotated,
        )
    },
    "objectives": {
        c.__name__.lower(): c
        for c in (
            Agree, Attached, Detached, Renaming, Empty, Branching, Peeking, Careless, Rolling,
            Remembering, Forgetting, Growing, Overflowing, Unequal, Lonely,
        )
    },
    "evaluators": {c.__name__.lower(): c for c in (Measure, Tensors, Guessing, Alone)},
    "optimizers": {c.__name__: c for c in (descend, amnesic, decaying, flat)},
    "schedules": {c.__name__: c for c in (steady, rising)},
    "trackers": {c.__name__.lower(): c for c in (Lines, Strewing, Adding, Once)},
    "callbacks": {
        c.__name__.lower(): c for c in (Average, Misspelt, NumPyState, Losing, Drifting)
    },
}  # fmt: skip
