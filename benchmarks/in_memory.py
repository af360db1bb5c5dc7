"""Training without reading: small networks, clips that lie in memory, and a loop written by hand.

Shared by the benchmarks of the training loop and of several processes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmssl.contracts import Dataset, Modality, Sample, Window
from mmssl.data.draws import Draws
from mmssl.data.loading import LoaderSettings
from mmssl.data.media import Media
from mmssl.training.encoders import Encoders
from mmssl.training.loop import Pretraining
from mmssl.training.optimizers import adamw
from mmssl.training.progress import Advance, Silent
from mmssl.training.schedules import constant
from mmssl.training.settings import RoundPlan, Settings
from mmssl_backbones.audio_resnet import ResNet18Audio
from mmssl_backbones.video_resnet import r2plus1d_18
from mmssl_evaluators.supervised import Supervised

CLASSES = 16
SAMPLES = 256
BLOCK = 10  # steps that are timed together: one of them is logged
LR = 1e-3


class Numbers(Dataset):
    """Samples that are their number; the class is the number modulo that of classes."""

    def __init__(self) -> None:
        self.classes = [f"class {i}" for i in range(CLASSES)]

    def __len__(self) -> int:
        return SAMPLES

    def sample(self, index: int) -> Sample:
        return Sample(str(index), None, 0.0, 1.0, index % CLASSES)


class InMemory(Modality):
    """Rows of a tensor, as networks take them."""

    def __init__(self, kind: str, clips: Tensor) -> None:
        self.kind, self.clips, self.shape = kind, clips, tuple(clips.shape[1:])

    def read(self, media: Media, window: Window, rng: np.random.Generator | None) -> Tensor:
        return self.clips[int(media.sample.id)]

    def empty(self) -> Tensor:
        return torch.zeros(self.shape)

    def prepare(self, batch: Tensor, draws: Draws | None) -> Tensor:
        return batch


def make_clips(frames: int, size: int) -> dict[str, Tensor]:
    """Random clips: video ``[N, 3, T, H, W]``, log-mel spectrograms ``[N, 1, 40, 100]``."""
    generator = torch.Generator().manual_seed(0)
    return {
        "video": torch.randn(SAMPLES, 3, frames, size, size, generator=generator),
        "audio": torch.randn(SAMPLES, 1, 40, 100, generator=generator),
    }


def make_backbones(width: float) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"video": r2plus1d_18(width=width), "audio": ResNet18Audio(width=width)}


def make_pretraining(
    folder: Path, clips: dict[str, Tensor], *, width: float, batch: int, steps: int
) -> Pretraining:
    """One round of so many steps, with a classifier on each of two encoders, as XDC has them."""
    encoders = Encoders(make_backbones(width), list(clips))  # type: ignore[arg-type]
    objective = Supervised(classes=CLASSES)
    objective.build(encoders)
    settings = Settings(
        seed=0,
        epoch_size=steps * batch,
        batch_size=batch,
        accumulate=1,
        make_optimizer=partial(adamw, lr=LR),
        lr_batch=None,
        restart_optimizer=False,
        early_stop=None,
        freeze_encoders=False,
        precision="fp32",
        sync_batch_norm=True,
        channels_last=False,
        log_every=BLOCK,
        checkpoint_steps=None,
        checkpoint_minutes=10.0,
        keep=1,
        max_bad=0.1,
    )
    return Pretraining(
        folder=folder,
        encoders=encoders,
        objective=objective,
        modalities={name: InMemory(name, rows) for name, rows in clips.items()},
        train=Numbers(),
        validation=None,
        plan=lambda number: RoundPlan(1, constant),
        settings=settings,
        loader=LoaderSettings(workers=0),
        device=torch.device("cpu"),
        trackers={},
        progress=Silent(),
    )


class Network(nn.Module):
    """The same networks, classifiers and loss."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.backbones = nn.ModuleDict(make_backbones(width))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(net.dim, CLASSES) for name, net in self.backbones.items()}  # type: ignore[arg-type]
        )

    def forward(self, clips: dict[str, Tensor], labels: Tensor) -> Tensor:
        losses = [
            cross_entropy(self.heads[name](net(clips[name]).pooled), labels)
            for name, net in self.backbones.items()
        ]
        return torch.stack(losses).sum()


class ByHand:
    """The loop that one would write: rows at random, forward, backward, step.

    Args:
        network: from clips and labels to the loss; DDP's wrapper or not.
        clips: all there are.
        batch: clips in a step of this process.
        seed: of the choice of rows.
    """

    def __init__(
        self, network: nn.Module, clips: dict[str, Tensor], *, batch: int, seed: int = 0
    ) -> None:
        self.network, self.clips, self.batch = network.train(), clips, batch
        self.labels = torch.arange(SAMPLES) % CLASSES
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> None:
        rows = torch.randperm(SAMPLES, generator=self.generator)[: self.batch]
        self.step({name: clips[rows] for name, clips in self.clips.items()}, self.labels[rows])

    def step(self, clips: dict[str, Tensor], labels: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.network(clips, labels)
        loss.backward()
        self.optimizer.step()


@dataclass
class Turns:
    """Two sides that make one step each in turn, so that both meet the same weather.

    Attributes:
        ours: seconds of each of our steps.
        others: seconds of each of the other side's.
    """

    ours: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def blocks(self) -> list[tuple[float, float]]:
        """Seconds of each ten steps of both; the first ten are warm-up and left out."""
        starts = range(BLOCK, len(self.ours) - BLOCK + 1, BLOCK)
        ours, others = (
            [sum(side[start : start + BLOCK]) for start in starts]
            for side in (self.ours, self.others)
        )
        return list(zip(ours, others, strict=True))


class Taking(Silent):
    """Watches a run, and after each of its steps lets the other loop make one.

    Args:
        other: one step of the other loop.

    Attributes:
        turns: what steps took.
    """

    def __init__(self, other: Callable[[], None]) -> None:
        self.other = other
        self.turns = Turns()

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        began = time.perf_counter()

        def advance(count: int = 1, **figures: str) -> None:
            nonlocal began
            self.turns.ours.append(time.perf_counter() - began)
            self.turns.others.append(seconds_of(self.other))
            began = time.perf_counter()

        yield advance


def in_turns(ours: Callable[[], object], others: Callable[[], object], steps: int) -> Turns:
    turns = Turns()
    for _ in range(steps):
        turns.ours.append(seconds_of(ours))
        turns.others.append(seconds_of(others))
    return turns


def seconds_of(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
