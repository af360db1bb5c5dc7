"""What a plugin subclasses or returns.

The way of the data, one direction and no detours::

    Dataset.sample(i) -> Sample --Modality.read (loader worker)--> raw tensor
        --collate--> Batch --Modality.prepare (device, whole batch)--> Batch
        --Backbone--> Features --Objective.loss--> Losses

Shapes: ``B`` samples, ``C`` channels, ``T`` frames, ``H`` and ``W`` pixels, ``F`` mel filters,
``N`` tokens, ``D`` dimensions.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mmssl.data.draws import Draws
    from mmssl.data.media import Media
    from mmssl.recipe import Recipe
    from mmssl.recipe.model import Training
    from mmssl.training.encoders import Encoders
    from mmssl.training.progress import Progress

Split = Literal["train", "validation"]

#: The label of what has none: a sample without class, or one that could not be read.
IGNORE = -100


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a dataset. It holds no tensors and reads nothing.

    Attributes:
        id: unique in its dataset and stable between runs; names the sample in messages.
        media: path or fsspec URL (``s3://...``) of the file that holds its media, or None for a
            modality read from `fields`.
        start: where the sample begins in the file, in seconds.
        end: where it ends, in seconds; None for the end of the file.
        label: index into `Dataset.classes`, or None. Pretraining without labels only measures
            with it.
        labels: of a multi-label dataset, all the classes of the sample, as indices; None where it
            was not labelled. `label` is None then.
        fields: any further columns of the row; a new modality reads its own.
        root: folder that relative paths in `fields` are relative to.
        span: first byte and number of bytes of the media in that file, where it is a part of an
            archive; None for the whole file.
        readers: by name, modalities that this sample is read by, where other than the recipe's,
            such as one at the rate of its source. They read tensors of the same shape and dtype as
            the recipe's, which prepare them.
    """

    id: str
    media: str | None
    start: float = 0.0
    end: float | None = None
    label: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    span: tuple[int, int] | None = None
    labels: tuple[int, ...] | None = None
    readers: "Mapping[str, Modality]" = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """Rows that lie together, for data that are read fastest nearly in order.

    Training then visits groups in random order, one after the other, and shuffles rows within
    buffers that this stream is cut into, instead of jumping through all of the data.

    Attributes:
        groups: ``[G]`` int64, the number of consecutive rows in each group, such as a shard.
        buffer: how many rows are shuffled together, at least 1; more mixes better, fewer touch
            fewer groups at a time.
    """

    groups: np.ndarray
    buffer: int


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a sample that one clip covers, the same for all its modalities.

    Attributes:
        start: seconds from the beginning of the file.
        seconds: length, the longest that any of the recipe's modalities needs.
        place: where along a picture's longer side an evaluation's crop lies, from 0, its left or
            upper end, to 1; the middle by default. Modalities without pictures pass over it.
    """

    start: float
    seconds: float
    place: float = 0.5

    def centred(self, seconds: float) -> "Window":
        """The window of another length around the same middle."""
        return replace(self, start=self.start + (self.seconds - seconds) / 2, seconds=seconds)


@dataclass
class Batch:
    """Clips of B samples.

    Attributes:
        index: ``[B]`` int64 on the CPU, the samples' rows in their dataset.
        seeds: ``[B]`` int64, from which every augmentation of a sample is drawn.
        clips: by modality, ``[B, ...]``; rows of absent modalities are zeros.
        present: by modality, ``[B]`` bool on the CPU: does the sample have the modality?
        labels: ``[B]`` int64, the dataset's labels, `IGNORE` where there is none. Of a multi-label
            dataset ``[B, C]`` float32, 1 for each class of a sample and 0 for the others; a row
            of `IGNORE` where it was not labelled.
        split: which dataset the samples come from.
    """

    index: Tensor
    seeds: Tensor
    clips: dict[str, Tensor]
    present: dict[str, Tensor]
    labels: Tensor
    split: Split = "train"

    def __len__(self) -> int:
        return len(self.index)

    def chunk(self, parts: int) -> "list[Batch]":
        """Consecutive parts of equal size; ``parts`` must divide the batch's length."""
        size = len(self) // parts
        if size * parts != len(self):
            raise ValueError(f"{parts} parts of a batch of {len(self)} are not equal")
        return [
            replace(
                self,
                index=self.index[rows],
                seeds=self.seeds[rows],
                clips={name: clip[rows] for name, clip in self.clips.items()},
                present={name: mask[rows] for name, mask in self.present.items()},
                labels=self.labels[rows],
            )
            for rows in (slice(i * size, (i + 1) * size) for i in range(parts))
        ]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with clips, seeds and labels on another device.

        `index` and `present` stay on the CPU: they steer the host, and reading them back would
        make it wait for the device. Copies from pinned memory do not block.
        """

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            seeds=move(self.seeds),
            clips={name: move(clip) for name, clip in self.clips.items()},
            labels=move(self.labels),
        )


@dataclass
class Features:
    """What a backbone makes of one modality.

    A backbone may return a subclass, a dataclass too, with further tensors ``[B, ...]`` for
    objectives that know it.

    Attributes:
        pooled: ``[B, D]``, one vector a clip.
        tokens: ``[B, N, D]`` where the backbone has them.
    """

    pooled: Tensor
    tokens: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Features of the same class, with each of their tensors changed."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{name: change(x) for name, x in tensors.items() if isinstance(x, Tensor)}
        )


@dataclass
class Losses:
    """What an objective makes of a batch.

    Of several ranks each sees a part of the batch, and the mean over ranks of `total` and of every
    part is their value for the whole: `mmssl.training.distributed` says how to keep to that.

    Attributes:
        total: scalar, what is minimised.
        parts: detached scalars by name, for the log.
        counts: how many samples a part is the mean of, where it is not the whole batch; over all
            ranks.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)


class Modality(ABC):
    """A kind of signal: how it is read in a loader worker and prepared on the device.

    Attributes:
        kind: what backbones know it as; a thermal camera whose clips look like video to a
            network has the kind ``"video"``.
        seconds: the length of media that one clip needs; 0 where any window will do.
        shape: what `prepare` returns for one sample, without the batch dimension.
        dtype: of what `prepare` returns; integers for tokens.
    """

    kind: str
    seconds: float = 0.0
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @abstractmethod
    def read(self, media: "Media", window: Window, rng: np.random.Generator | None) -> Tensor:
        """Read one clip, in a loader worker.

        Args:
            media: the sample and its open file, shared with the sample's other modalities.
            window: the span to read. A file that is shorter gives a defined result.
            rng: for what must be chosen while reading, a function of seed and position alone;
                None in evaluation, where the choice is the central one.

        Returns:
            The smallest faithful tensor (uint8 frames, PCM), of the same shape for every sample.

        Raises:
            MissingModality: the sample lacks this modality.
            BadMedia: the file is damaged; the sample is skipped with this reason.
        """

    @abstractmethod
    def empty(self) -> Tensor:
        """What stands in a batch for a sample that lacks the modality: zeros shaped as `read`'s."""

    @abstractmethod
    def prepare(self, batch: Tensor, draws: "Draws | None") -> Tensor:
        """Augment and normalise a whole batch on the training device.

        Args:
            batch: ``[B, *read's shape]``.
            draws: random numbers, row by row a function of the sample's seed alone; None in
                evaluation, where nothing is random.

        Returns:
            ``[B, *self.shape]`` of `dtype`.
        """


class Dataset(ABC):
    """Where samples come from. Cheap: reading media is the loader's work.

    Attributes:
        classes: names of the classes that labels index; empty for unlabelled data.
        multilabel: may a sample have several classes? They are in `Sample.labels` then.
        readers: all that `Sample.readers` is of its samples, to be checked before any is read.
    """

    classes: Sequence[str] = ()
    multilabel: bool = False
    readers: Sequence[Mapping[str, Modality]] = ()

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """The sample at ``0 <= index < len(self)``."""

    def materialise(self, progress: "Progress") -> None:  # noqa: B027 - most have nothing to make
        """Write what is missing, before the data are first read; must be safe to kill.

        Args:
            progress: who watches, for what takes longer than two seconds.
        """

    def digest(self) -> str:
        """Tells whether rows mean what they meant before: pseudo-labels are kept by row.

        By default of the number of samples and of the ids of 4096 rows spread over all.
        """
        size = len(self)
        rows = {size * i // 4096 for i in range(4096)} if size else set()
        text = "\n".join([str(size), *(self.sample(row).id for row in sorted(rows))])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def storage(self) -> Storage | None:
        """How rows lie where they are stored; None where any row costs the same."""
        return None

    def labels(self) -> np.ndarray:
        """``[len(self)]`` int32, `IGNORE` where a sample has no single label.

        Used for measuring only.
        """
        labels = (self.sample(i).label for i in range(len(self)))
        return np.fromiter((IGNORE if x is None else x for x in labels), np.int32, len(self))


class Backbone(nn.Module):
    """A network from the tensors of one or several modalities to features.

    A subclass either overrides ``forward(clip: Tensor) -> Features`` for one modality, or, for
    a recipe key such as ``video+audio``, ``forward(clips: dict[str, Tensor], present:
    dict[str, Tensor]) -> dict[str, Features]`` and sets ``joint = True``.

    Attributes:
        modalities: the kinds that it serves (`Modality.kind`), or ``"any"``.
        dim: D of its features.
        joint: takes several modalities at once: ``forward(clips, present)``. An attribute of the
            class: recipes are checked by it before anything is built.
    """

    modalities: frozenset[str] | Literal["any"]
    dim: int
    joint: bool = False

    def subnetworks(self) -> "Mapping[str, Backbone]":
        """Networks within this one that can be measured by themselves, by name; none by default.

        They share its parameters, and have no others: a copy of one is a part of its weights.
        """
        return {}


class FeatureBatch(Protocol):
    """Features of some samples, as a `Round` streams them.

    Attributes:
        index: ``[b]`` int64, ascending positions in the dataset.
        pooled: by modality, ``[b, D]`` float32 on the training device.
        present: by modality, ``[b]`` bool on the CPU; false also where reading failed.
    """

    index: np.ndarray
    pooled: dict[str, Tensor]
    present: dict[str, np.ndarray]


class Round(Protocol):
    """What the training loop lends an objective between rounds.

    Every rank has one. What a rank shows and reports is dropped unless it is rank 0.

    Attributes:
        number: 1 for the first round.
        total: the number of rounds.
        resumed: true when the round had begun before this process: nothing may be computed
            anew then, only loaded from `folder`.
        folder: where the round's files belong; they survive a kill, so write each atomically.
        previous: the folder of the round before, or None in round 1.
        seed: a function of the recipe's seed and the round's number.
        device: where features are.
        sizes: the number of samples by split; ``"validation"`` only where there is one.
    """

    number: int
    total: int
    resumed: bool
    device: torch.device

    @property
    def folder(self) -> Path: ...  # noqa: D102 - described above

    @property
    def previous(self) -> Path | None: ...  # noqa: D102

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def sizes(self) -> Mapping[Split, int]: ...  # noqa: D102

    def features(
        self,
        *,
        split: Split = "train",
        indices: np.ndarray | range | None = None,
        title: str = "features",
    ) -> Iterator[FeatureBatch]:
        """Stream features of central clips, encoders in eval mode, without gradients.

        Args:
            split: the dataset.
            indices: rows to visit on this rank, such as its
                `mmssl.training.distributed.share` of them; None for all.
            title: what the progress bar calls this pass.
        """

    def truth(self, split: Split = "train") -> np.ndarray | None:
        """The dataset's labels, ``[N]`` int32, or None if it has none. For measuring only."""

    def say(self, text: str) -> None:
        """Show a line to whoever watches."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Put figures of this round into the log, the trackers and the terminal's table."""


class Objective(nn.Module):
    """A self-supervised task: heads, loss, and what happens between rounds.

    It sees features by modality and works for any modalities whose backbones fit.

    Attributes:
        rounds: how often `begin_round` is called; 1 unless the objective relabels, and 0 for one
            that trains nothing.
        class_names: the classes of the training data, empty without labels; set before `build`.
        multilabel: may a sample have several of them? Set before `build`, too.
        frozen: what a round does not train, of the encoders or of the objective itself: parameters,
            or whole modules, which then compute as in evaluation. `begin_round` sets it.
    """

    rounds: int = 1
    frozen: Sequence[nn.Module | nn.Parameter] = ()
    class_names: Sequence[str] = ()
    multilabel: bool = False

    def build(self, encoders: "Encoders") -> None:
        """Create the modules that need the features' sizes.

        Args:
            encoders: ``encoders.dims`` is D by modality, in the recipe's order. An objective
                that sends further inputs through a backbone keeps a reference that torch does
                not see as its own module, such as a tuple.

        Raises:
            UserError: the modalities do not fit the objective.
        """

    def begin_round(self, round: Round) -> Iterable[nn.Parameter]:
        """Relabel and reset; called before a round's first step and when one is resumed.

        Called on every rank, which must come out of it with the same state. Files are for rank 0
        to write (`mmssl.training.distributed.on_main`).

        Returns:
            The parameters that begin anew, whose momentum is to be forgotten.
        """
        return ()

    def finish(self) -> None:
        """Drop what only training needs, such as a memory of its samples.

        Called when training is over, before what was learned is saved; what remains must fit an
        objective that was built and has not been trained.
        """

    def balanced_over(self) -> Sequence[np.ndarray]:
        """Labelings (``[N]`` int32, `IGNORE` for none) over whose classes training is balanced.

        Empty for plain shuffling. With several, batch positions take turns.
        """
        return ()

    def plan(self, *, samples: int, ranks: int) -> "Sequence[Table]":
        """What the objective costs besides the steps, for a dry run: tables.

        Called after `build`, before there are any data: by formula, in no time.

        Args:
            samples: the number of samples to train on.
            ranks: the number of processes that train together.
        """
        return ()

    def augment(self, batch: Batch, clips: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """Change prepared clips, and what the loss is told of them, before they are encoded.

        Called in training only, on the device; by default nothing changes. Draw from
        ``Draws(batch.seeds, ...)``, so that the number of ranks changes nothing.

        Args:
            batch: whose raw `Batch.clips` are not used any more.
            clips: by modality, as `Modality.prepare` returned them.
        """
        return batch, clips

    def embeddings(self, features: dict[str, Features]) -> dict[str, dict[str, Tensor]]:
        """Where features of several modalities can be compared: by space, then by modality.

        Args:
            features: by modality.

        Returns:
            ``[B, D]`` tensors, D being the same for all modalities of a space, compared by their
            cosine. Empty, by default, for an objective that aligns no modalities.
        """
        return {}

    def loss(self, batch: Batch, features: dict[str, Features]) -> Losses:
        """The loss of one batch, averaged over what is valid in it; finite for any presence.

        Rows that `Batch.present` calls absent count nowhere, not as negatives, in means or in batch
        statistics: whatever stands there changes nothing.

        Ranks meet in collective calls, also in the backward pass, so nothing may be left out by
        what is in this rank's part of the batch: mask rows instead of branching, and name the
        same parts on every rank. Buffers must end up equal on all ranks.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss")


@dataclass(frozen=True)
class Table:
    """A table of an evaluation: strings and numbers, row by row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Evaluation:
    """What an evaluator found.

    Attributes:
        metrics: figures by name, fractions between 0 and 1 unless the name says otherwise.
        tables: shown in the terminal and written as JSON.
        figures: matplotlib figures by file name without ending; written as PNG.
    """

    metrics: dict[str, float]
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, "Figure"] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of the readable samples of a dataset, as `EvaluationContext.features` gives them.

    Attributes:
        index: ``[n]`` int64, ascending; a row stands once, or once a view.
        pooled: ``[n, D]`` float32 on the CPU.
        labels: ``[n]`` int64, `IGNORE` for none; of a multi-label dataset ``[n, C]`` float32, as in
            `Batch.labels`.
    """

    index: np.ndarray
    pooled: np.ndarray
    labels: np.ndarray


#: Which encoders: as pretraining left them, or the same before any training.
Weights = Literal["pretrained", "initial"]

#: From features by modality to what is wanted of them: ``[B, D]`` float tensors by name. A name is
#: a modality's, or several joined by ``+``, all of which a sample must have.
Read = Callable[[dict[str, Features]], Mapping[str, Tensor]]


class EvaluationContext(Protocol):
    """What a stage lends an evaluator. Every rank has one, and all must call the same.

    What takes long, features and training, goes on after a kill where it was: calls are told
    apart by their order, so an evaluator must make the same ones each time.

    Attributes:
        run_folder: the run, for what pretraining left (``clusters/round-NN/...``).
        folder: the evaluation's own, ``evaluations/<name>``, for further files; rank 0 writes.
        pretraining_data: the dataset of pretraining, for measuring what was found in it.
        device: where encoders run.
        progress: who watches what takes longer than two seconds.
        components: the modalities that are measured by key, in the recipe's order.
        modalities: their keys.
        seed: the recipe's seed.
    """

    run_folder: Path
    folder: Path
    pretraining_data: Dataset
    device: torch.device
    progress: "Progress"
    components: dict[str, Modality]

    @property
    def modalities(self) -> Sequence[str]: ...  # noqa: D102 - described above

    @property
    def seed(self) -> int: ...  # noqa: D102

    def encoders(self, weights: Weights = "pretrained") -> "Encoders":
        """The encoders that are measured, on `device`; a copy for whoever asks."""

    def objective(self) -> Objective:
        """The objective as pretraining left it, on `device`, in eval mode.

        Raises:
            UserError: this run has not kept it.
        """

    def features(
        self,
        dataset: Dataset,
        *,
        weights: "Weights | Encoders" = "pretrained",
        read: Read | None = None,
        modalities: Mapping[str, Modality] | None = None,
        clips: int = 1,
        crops: int = 1,
        over_views: Literal["mean", "max", "none"] = "mean",
        unlabelled: bool = False,
        training: "Training | None" = None,
    ) -> dict[str, LabelledFeatures]:
        """Features by modality of a dataset's clips.

        Args:
            dataset: what to read; samples that are unreadable are left out.
            weights: of which encoders, or encoders themselves, such as `train` returned.
            read: what of the features, which are float32, is wanted; by default `Features.pooled`
                of each modality.
            modalities: what is read of a sample, where other than `components`: clips of another
                length, or some modalities only.
            clips: clips per sample, uniformly placed.
            crops: crops per clip, along the longer side of the picture.
            over_views: mean or largest value over a sample's ``clips * crops`` views, or all
                of them, one after the other.
            unlabelled: also samples without label.
            training: whose precision, and whose batches, if they are not too large, features are
                computed in; by default pretraining's.
        """

    def train(
        self,
        dataset: Dataset,
        *,
        objective: Objective,
        training: "Training",
        validation: Dataset | None = None,
        weights: Weights = "pretrained",
        modalities: Mapping[str, Modality] | None = None,
    ) -> "Encoders":
        """Train encoders further, by the same loop as in pretraining.

        Args:
            dataset: to train on.
            objective: not yet built; its heads are trained ones afterwards.
            training: as the block of this name in a recipe.
            validation: its loss is measured after every epoch; `Training.early_stop` needs it.
            weights: where to begin.
            modalities: what is read of a sample, where other than `components`; encoders of the
                others take no part.

        Returns:
            Trained encoders, in eval mode.
        """


class Evaluator(ABC):
    """Measures a pretrained encoder on a labelled dataset.

    A recipe may give each one ``subnetworks`` and ``modalities``, too: which networks are measured
    and how clips are read. The context follows them, and an evaluator need not know.

    Attributes:
        encodes: does it send clips through networks? Those keys are refused where it does not.
    """

    encodes: bool = True

    def check(self, modalities: Sequence[str]) -> None:  # noqa: B027 - most fit any
        """Check, before anything is trained, that there is what it is to measure.

        Args:
            modalities: those that are measured.

        Raises:
            UserError: there is not.
        """

    @abstractmethod
    def evaluate(self, context: EvaluationContext) -> Evaluation:
        """Measure; deterministic given the encoders and the seed."""


class Tracker(ABC):
    """Where metrics go beside ``log.jsonl``."""

    @abstractmethod
    def open(self, folder: Path, step: int) -> None:
        """Begin, or go on after ``step`` global steps: what was tracked later is to be dropped."""

    @abstractmethod
    def track(self, record: Mapping[str, Any]) -> None:
        """One record of the log: ``kind`` ("step", "validation", "round"), ``step``, figures."""

    @abstractmethod
    def close(self) -> None:
        """The run ends or is interrupted; what is raised here does not hide why."""

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint that is being written keeps for a later `load_state_dict`.

        What was tracked before is in no later process's log again, so flush it. Numbers, strings,
        tensors, and lists and dicts of them; nothing by default. If it fails, the checkpoint keeps
        what it gave the time before, and the run ends.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most keep nothing
        """Take back what `state_dict` gave when the checkpoint at `open`'s step was written.

        Called before `open`, and only if the run that is gone on with had this tracker then.
        """


class RunContext(Protocol):
    """What pretraining lends its callbacks. Every rank has one.

    Attributes:
        folder: the run's; rank 0 writes.
        round: which one is at work, from 1.
        rounds: how many there are.
        step: optimizer steps done in the run.
        epoch: epochs done in the round, with a fraction.
        device: where encoders and objective are.
        seed: the recipe's.
        encoders: as they are trained; in training mode between two steps, and to be left so.
        objective: the same.
        resumed: was the run begun by an earlier process?
    """

    @property
    def folder(self) -> Path: ...  # noqa: D102 - described above

    @property
    def round(self) -> int: ...  # noqa: D102

    @property
    def rounds(self) -> int: ...  # noqa: D102

    @property
    def step(self) -> int: ...  # noqa: D102

    @property
    def epoch(self) -> float: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def encoders(self) -> "Encoders": ...  # noqa: D102

    @property
    def objective(self) -> Objective: ...  # noqa: D102

    @property
    def resumed(self) -> bool: ...  # noqa: D102

    def say(self, text: str) -> None:
        """Show a line to whoever watches; what ranks but 0 say is dropped."""

    def report(self, figures: Mapping[str, float]) -> None:
        """Put figures into the log and the trackers, as a record of the kind ``"callback"``.

        What ranks but 0 report is dropped. The names ``kind``, ``step`` and ``round`` are taken.
        """


class Callback:
    """Something else that happens at steps, rounds and checkpoints of pretraining.

    A subclass overrides what it needs. A recipe names callbacks under ``callbacks``, and they are
    a part of what the run learns: another list of them is another run. Evaluations that train go
    without.

    Every rank calls them at the same points, in the recipe's order, so they may meet in collective
    calls (`mmssl.training.distributed`); encoders and objective must end up equal on all ranks, and
    files are for rank 0 to write. What they draw must follow from the seed and the step.

    A process that is killed loses what was done since the last checkpoint, and it is done again:
    all that a callback remembers belongs into `state_dict`. A `UserError` ends the run with its
    text; any other exception is a defect, and ends it with a traceback.
    """

    def on_run_start(self, run: RunContext) -> None:
        """A process begins with the run, or goes on with it (``run.resumed``).

        Encoders, objective and this callback's own state are loaded by then.
        """

    def on_step_end(self, run: RunContext, losses: Losses) -> None:
        """An optimizer step is done, and counted in ``run.step``.

        Args:
            run: what is lent.
            losses: of the step before the optimizer changed anything, detached; the mean over
                ranks is the global batch's.
        """

    def on_round_end(self, run: RunContext) -> None:
        """All steps of ``run.round`` are done; the checkpoint that ends it follows."""

    def on_checkpoint(self, run: RunContext, path: Path) -> None:
        """A checkpoint was written, with the state from before this call.

        When one is written may depend on the clock, so nothing that is learned may depend on this.
        Figures that are reported here are lost to a run that goes on from it.

        Args:
            run: what is lent.
            path: the file; rank 0 sees it whole, others may be earlier than it.
        """

    def on_run_end(self, run: RunContext) -> None:
        """The last round is done: the last moment to change what was learned.

        What is saved as the run's encoders and objective is what they are after this call. A
        process that is stopped or killed does not call it; the one that completes the run does.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint is to keep; called on rank 0, and loaded on every rank.

        Numbers, strings, tensors, and lists and dicts of them; nothing by default.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, before `on_run_start`; tensors are on the CPU."""


class Launcher(ABC):
    """A way to run a recipe's stages: in this process, as local processes, on a cluster.

    Attributes:
        ranks: the number of processes that train together, in pretraining.
        here: do they compute on this machine? Elsewhere there may be other devices.
    """

    ranks: int = 1
    here: bool = True

    def ranks_of(self, stage: str) -> int:
        """The number of processes of a stage, "pretrain" or an evaluation; by default `ranks`."""
        return self.ranks

    def check(self, recipe: "Recipe") -> None:  # noqa: B027 - most fit every recipe
        """Check, before anything is started, that the recipe can be launched so.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def launch(self, recipe: "Recipe", stages: list[str], progress: "Progress") -> None:
        """Run ``stages``, which stand in an order that satisfies what each needs.

        Args:
            recipe: the run's.
            stages: "pretrain" and names of evaluations; finished ones are left out.
            progress: who watches.
        """

    def launch_all(self, runs: "Sequence[tuple[Recipe, list[str]]]", progress: "Progress") -> None:
        """Launch the runs of a sweep, by default one after the other; one's failure stops no other.

        Args:
            runs: recipes that differ in a few fields, and each one's stages.
            progress: who watches.

        Raises:
            UserError: some failed; why was said when they did.
        """
        failed = []
        for recipe, stages in runs:
            progress.say(f"run: {recipe.name}")
            try:
                self.launch(recipe, stages, progress)
            except UserError as error:
                progress.say(f"{recipe.name} failed: {error}")
                failed.append(recipe.name)
        if failed:
            raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")
