"""What the loop lends an objective between rounds: see `mmssl.contracts.Round`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmssl.contracts import IGNORE, Dataset, Split
from mmssl.data.draws import derive_seed
from mmssl.training.features import FeatureStream, Streamed
from mmssl.training.interruption import StopRequests
from mmssl.training.log import Log
from mmssl.training.progress import Progress


@dataclass
class TrainingRound:
    """One round of a run."""

    number: int
    total: int
    resumed: bool
    clusters: Path
    step: int
    recipe_seed: int
    device: torch.device
    datasets: Mapping[Split, Dataset]
    stream: FeatureStream
    log: Log
    progress: Progress
    stop: StopRequests

    @property
    def folder(self) -> Path:
        """``clusters/round-NN``, made when first asked for."""
        folder = self.clusters / f"round-{self.number:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def previous(self) -> Path | None:
        """The folder of the round before."""
        return self.clusters / f"round-{self.number - 1:02d}" if self.number > 1 else None

    @property
    def seed(self) -> int:
        """A function of the recipe's seed and the round's number."""
        return derive_seed(self.recipe_seed, "round", self.number)

    @property
    def sizes(self) -> dict[Split, int]:
        """The number of samples by split."""
        return {split: len(dataset) for split, dataset in self.datasets.items()}

    def features(
        self,
        *,
        split: Split = "train",
        indices: np.ndarray | range | None = None,
        title: str = "features",
    ) -> Iterator[Streamed]:
        """Stream features of central clips.

        Raises:
            Interrupted: a signal asked the run to stop. What the objective wrote so far stays.
        """
        dataset = self.datasets[split]
        rows = range(len(dataset)) if indices is None else indices
        name = f"round {self.number}/{self.total}: {title}"
        with self.progress.task(name, len(rows)) as advance:
            for batch in self.stream(dataset, rows, split=split):
                yield batch
                advance(len(batch.index))
                if self.stop.is_set():
                    raise self.stop.interrupted()

    def truth(self, split: Split = "train") -> np.ndarray | None:
        """The dataset's labels, for measuring."""
        labels = self.datasets[split].labels()
        return labels if bool((labels != IGNORE).any()) else None

    def say(self, text: str) -> None:
        """Show a line."""
        self.progress.say(text)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Log figures of this round."""
        record = {"kind": "round", "step": self.step, "round": self.number, **metrics}
        self.log.write(record)
        self.progress.round(self.number, self.total, metrics)
