"""Where the time of a recipe's training goes: real steps, taken apart.

A few dozen steps of the training loop itself, in a temporary folder. Loader processes say what
they spend reading on (`mmssl.data.timing`); the loop says what a step spends on, and the device
is waited for after each of its parts, which costs a run of small networks some of its speed.

Pseudo-labels are not there yet, and to make them would mean to read the whole dataset. So the
objective begins its first round with random features of some rows, and the other rows have these
rows' pseudo-labels in turn: what a step computes and how much it reads is the same.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from mmssl.contracts import Split, Table
from mmssl.data import timing
from mmssl.data.draws import derive_seed
from mmssl.data.loading import Unreadable
from mmssl.errors import UserError
from mmssl.pipeline.stages import placed, pretraining
from mmssl.recipe import Recipe
from mmssl.training.features import Streamed
from mmssl.training.interruption import StopRequests
from mmssl.training.log import Log
from mmssl.training.loop import Pretraining
from mmssl.training.progress import Progress, Silent
from mmssl.training.rounds import TrainingRound

# Rows that the objective makes pseudo-labels of.
_REHEARSED = 16_384

# The first steps allocate memory, choose kernels and compile.
_WARM_UP = 3

# What lies ready when the clock starts is no speed of the loader: batches are made ahead by no
# more than keeps its processes busy, as many steps are not counted, and where training is the
# faster side what is ready then is thrown away.
_PREFETCH = 2

# What reading and steps call their parts, by the name in the table.
LOADER_PARTS = {
    "open": "open",
    "seek": "seek",
    "decode video": "decode video",
    "convert": "convert",
    "decode audio": "audio",
    "collate": "collate",
}
OTHER_READING = "other reading"
DEVICE_PARTS = {
    "transfer": "transfer",
    "prepare": "prepare",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "backward",
}
OTHER_STEP = "other"


@dataclass
class Profile:
    """What was measured; times are wall-clock seconds per clip.

    Attributes:
        steps: how many were counted.
        clips: in all of them.
        workers: loader processes, 0 where the training process reads.
        wall: from clip to clip, in training.
        waiting: of it, for data.
        loader: of a loader process, by part.
        device: of the training process and its device, by part.
        unreadable: samples that were replaced, and why.
    """

    steps: int
    clips: int
    workers: int
    wall: float
    waiting: float
    loader: dict[str, float]
    device: dict[str, float]
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def loader_rate(self) -> float:
        """Clips per second that the loader's processes read beside training, if never held up.

        Training's threads were computing meanwhile: where both share cores, as on a CPU, a loader
        that has them to itself is faster.
        """
        return self._parallel / max(sum(self.loader.values()), 1e-9)

    @property
    def device_rate(self) -> float:
        """Clips per second that training could take, did it never wait for data.

        Measured beside the loader's processes, as it runs.
        """
        return 1 / max(sum(self.device.values()), 1e-9)

    @property
    def too_short(self) -> bool:
        """Whether training took clips faster than they are read, as it can for some steps."""
        return 1 / self.wall > 1.1 * self.loader_rate

    @property
    def _parallel(self) -> int:
        return max(1, self.workers)

    def table(self) -> Table:
        """Every part: milliseconds per clip, share, and clips per second that it alone allows."""
        rows: list[tuple[str, str, float, str, float | None]] = []

        def add(side: str, part: str, seconds: float, whole: float, parallel: int) -> None:
            alone = parallel / seconds if seconds > 1e-6 else None
            if alone is not None and alone >= 100:
                alone = round(alone)
            rows.append((side, part, 1000 * seconds, f"{seconds / max(whole, 1e-9):.1%}", alone))

        reading = sum(self.loader.values())
        side = f"loader, {self.workers} workers" if self.workers else "loader, no workers"
        side = side.replace("1 workers", "1 worker")
        for part, seconds in self.loader.items():
            add(side, part, seconds, reading, self._parallel)
        add(side, "all", reading, reading, self._parallel)
        for part, seconds in self.device.items():
            add("training", part, seconds, self.wall, 1)
        rows.append(("training", "waiting for data", 1000 * self.waiting, self._waited, None))
        add("training", "all", self.wall, self.wall, 1)
        columns = ("where", "part", "ms per clip", "share", "alone, clips/s")
        return Table("where the time goes", columns, rows)

    @property
    def _waited(self) -> str:
        return f"{self.waiting / max(self.wall, 1e-9):.1%}"

    def summary(self) -> str:
        """One line."""
        beside = " beside training" if self.workers else ""
        return (
            f"measured: {1 / self.wall:.1f} clips/s over {self.steps} steps of "
            f"{self.clips // self.steps} clips, {self._waited} of the time waiting for data; "
            f"the loader could read {self.loader_rate:.1f}{beside}, training that never waits "
            f"take {self.device_rate:.1f}"
        )


def profile(recipe: Recipe, steps: int, progress: Progress) -> Profile:
    """Measure ``steps`` training steps of a recipe; its run's folder is not touched.

    Raises:
        UserError: the recipe does not fit together, or its data cannot be read.
    """
    if recipe.objective.build().rounds == 0:
        raise recipe.error(("objective",), "trains nothing: there are no steps to measure")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    with TemporaryDirectory(prefix="mmssl-profile-") as folder:
        try:
            training = pretraining(recipe, Path(folder), progress)
            prefetch = min(_PREFETCH, training.loader.prefetch)
            training.loader = replace(training.loader, timed=True, prefetch=prefetch)
            rows = _rehearse(training, Path(folder), progress)
            return _measure(training, rows, steps, progress)
        except UserError as error:
            raise placed(recipe, error) from error
        finally:
            timing.measure(False)


def _rehearse(training: Pretraining, folder: Path, progress: Progress) -> int:
    """Begin the first round; returns the number of rows that it was told there are."""
    size = len(training.datasets["train"])
    rows = min(size, _REHEARSED)
    log = Log(folder, {}, length=0, step=0)
    with closing(log), progress.task("pseudo-labels of random features", 1) as advance:
        training.objective.begin_round(
            _Rehearsal(
                number=1,
                total=training.objective.rounds,
                resumed=False,
                clusters=folder / "clusters",
                step=0,
                recipe_seed=training.settings.seed,
                device=training.device,
                datasets={"train": training.datasets["train"]},
                stream=training.stream,
                log=log,
                progress=Silent(),
                stop=StopRequests(),
                rows=rows,
            )
        )
        advance()
    return rows


@dataclass
class _Rehearsal(TrainingRound):
    """A first round whose features are random numbers, and which has ``rows`` samples."""

    rows: int

    @property
    def sizes(self) -> dict[Split, int]:
        return {"train": self.rows}

    def features(
        self,
        *,
        split: Split = "train",
        indices: np.ndarray | range | None = None,
        title: str = "features",
    ) -> Iterator[Streamed]:
        index = np.arange(self.rows) if indices is None else np.asarray(indices)
        dims = self.stream.encoders.dims
        for number, first in enumerate(range(0, len(index), 1024)):
            some = index[first : first + 1024]
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "rehearsal", number))
            yield Streamed(
                index=some,
                pooled={
                    name: torch.randn(len(some), dim, generator=generator).to(self.device)
                    for name, dim in dims.items()
                },
                present={name: np.ones(len(some), bool) for name in dims},
                labels=np.zeros(len(some), np.int64),
            )

    def truth(self, split: Split = "train") -> np.ndarray | None:
        return None


def _measure(training: Pretraining, rows: int, steps: int, progress: Progress) -> Profile:
    size, count = len(training.datasets["train"]), training.settings.batch_size
    workers = training.loader.workers
    ready = training.loader.prefetch * workers
    ahead = _WARM_UP + ready
    balanced_over = [np.resize(labels, size) for labels in training.objective.balanced_over()]
    plan = training.plan(1)
    read: Counter[str] = Counter()
    trained: dict[str, float] = defaultdict(float)
    reading = computing = 0.0  # in the steps that are not counted
    waited = spent = 0.0
    unreadable: list[Unreadable] = []
    training.train_mode()
    batches = training.batches(ahead + ready + steps, balanced_over)
    title = f"measuring {steps} steps after {ahead}"
    with closing(batches), progress.task(title, ahead + steps) as advance:
        for number in range(ahead + steps):
            # Training is faster, so that it would use up what is ready, and then wait. Where the
            # loader is faster it stays ready.
            if number == ahead and reading > computing * workers:
                for _ in range(ready):
                    next(batches)
            began = time.perf_counter()
            loaded = next(batches)
            arrived = time.perf_counter()
            if number == 0:  # not before the loader has begun, which measures by itself
                timing.measure(wait=lambda: _wait(training.device))
            # Rows beyond those of the rehearsal have their pseudo-labels in turn.
            batch = replace(loaded.batch, index=loaded.batch.index % rows)
            factor = plan.factor(training.settings.place(number, plan.epochs))
            with timing.step(OTHER_STEP):
                training.step(batch, factor)
            parts = timing.take()
            training.state.global_step += 1
            unreadable += loaded.unreadable
            if number >= ahead:
                waited += arrived - began
                spent += time.perf_counter() - began
                read.update(loaded.seconds)
                for name, seconds in parts.items():
                    trained[name] += seconds
            elif number >= _WARM_UP:
                reading += sum(loaded.seconds.values())
                computing += time.perf_counter() - arrived
            advance()
    clips = steps * count
    loader = dict.fromkeys([*LOADER_PARTS.values(), OTHER_READING], 0.0)
    resampling = {
        f"read {name}": "audio" for name, m in training.modalities.items() if m.kind == "audio"
    }
    for name, seconds in read.items():
        loader[(LOADER_PARTS | resampling).get(name, OTHER_READING)] += seconds / clips
    device = dict.fromkeys([*DEVICE_PARTS.values(), OTHER_STEP], 0.0)
    for name, seconds in trained.items():
        device[DEVICE_PARTS.get(name, OTHER_STEP)] += seconds / clips
    # The loop's own work between two steps, of which there is little.
    device[OTHER_STEP] += (spent - waited - sum(trained.values())) / clips
    return Profile(steps, clips, workers, spent / clips, waited / clips, loader, device, unreadable)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
