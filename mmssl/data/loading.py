"""From rows to batches: loader processes read clips, the main process receives batches.

Training (`training_batches`) walks positions; a row that cannot be read is replaced by another
one, a function of the position, and reported. Measuring (`ordered_batches`) walks rows in order;
a row that cannot be read stays in its place, absent in every modality, and is reported.

A row that takes too long is unreadable, and so is one whose reading ends its process. What a batch
holds is a function of its number, so the main process then starts the loader again, behind the last
batch that arrived.
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from mmssl.contracts import IGNORE, Batch, Dataset, Modality, Sample, Split, Window
from mmssl.data import timing
from mmssl.data.draws import derive_seed
from mmssl.data.media import Media
from mmssl.data.processes import Crew, expendable, reading
from mmssl.data.sampling import Sampler
from mmssl.data.time_limit import time_limit as limited_to
from mmssl.errors import BadMedia, MissingModality, UserError

# So many rows in a row unreadable: the data are not at fault but the path to them.
_ATTEMPTS = 20

# So many loader processes dead one after the other: it is not one file that kills them.
_DEATHS = 5


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read."""

    row: int
    id: str
    reason: str


@dataclass
class Loaded:
    """A batch as it comes from a loader process, with what could not be read for it.

    ``exhausted``: so many samples in a row were unreadable that the batch is not whole. An
    exception in a loader process would reach the main one with a traceback in its message.
    ``lacking``: of modalities that no sample of the batch has, why the first one lacks them.
    ``seconds``: by step of reading, where that is measured (`mmssl.data.timing`).
    """

    batch: Batch
    unreadable: list[Unreadable]
    exhausted: bool = False
    lacking: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def pin_memory(self) -> "Loaded":
        """Called by torch's loader: page-locked memory, from which copies do not block."""
        batch = self.batch
        pinned = replace(
            batch,
            seeds=batch.seeds.pin_memory(),
            clips={name: clip.pin_memory() for name, clip in batch.clips.items()},
            labels=batch.labels.pin_memory(),
        )
        return replace(self, batch=pinned)


@dataclass(frozen=True)
class Clip:
    """One sample, read: raw tensors by modality, which of them are real, and why others are not."""

    row: int
    seed: int
    label: Tensor
    tensors: dict[str, Tensor]
    present: dict[str, bool]
    lacks: dict[str, str] = field(default_factory=dict)


def training_window(start: float, end: float, seconds: float, rng: np.random.Generator) -> Window:
    """A window uniformly placed in ``[start, end]``, or around it where it does not fit inside.

    A window that is longer covers all of ``[start, end]`` and may begin before it: what
    modalities read of it is near its middle, and that differs from draw to draw.
    """
    return _window(start, end, seconds, rng.random())


@dataclass(frozen=True)
class Views:
    """What of a sample is looked at in evaluation: clips, and crops of each.

    Attributes:
        clips: uniformly placed; the first begins where the sample does, the last ends with it, a
            single one is central.
        crops: along the longer side of the picture, from one end to the other; a single one is
            central.
    """

    clips: int = 1
    crops: int = 1

    def __len__(self) -> int:
        return self.clips * self.crops

    def window(self, view: int, start: float, end: float, seconds: float) -> Window:
        """The part of ``[start, end]`` that a view shows: all crops of a clip, then the next one's.

        Where a clip of ``seconds`` does not fit inside, clips are placed around it instead, the
        central one alike on both sides.
        """
        clip, crop = divmod(view, self.crops)
        window = _window(start, end, seconds, _among(clip, self.clips))
        return replace(window, place=_among(crop, self.crops))


#: The middle of a sample.
CENTRAL = Views()


def _among(number: int, count: int) -> float:
    return 0.5 if count == 1 else number / (count - 1)


def _window(start: float, end: float, seconds: float, share: float) -> Window:
    """From the earliest (``share`` 0) to the latest (1) that lies inside, or covers all."""
    first, last = sorted((start, end - seconds))
    return Window(first + share * (last - first), seconds)


class ClipReader:
    """Reads clips of a dataset; a copy of it lives in every loader process.

    Args:
        dataset: where samples come from.
        modalities: what is read of each, in the recipe's order; `Sample.readers` go before them.
        seed: the recipe's seed.
        sampler: which row stands at a position, for training; None to read rows in order.
        views: with ``sampler=None``, of each row: item ``row * len(views) + view``.
        where: what messages call the dataset, such as ``data.train``.

    Raises:
        UserError: what some samples are read by does not go into one batch with the others.
    """

    def __init__(
        self,
        dataset: Dataset,
        modalities: Mapping[str, Modality],
        *,
        seed: int,
        sampler: Sampler | None = None,
        views: Views = CENTRAL,
        where: str = "",
    ) -> None:
        self.dataset = dataset
        self.modalities = dict(modalities)
        self.seed = seed
        self.sampler = sampler
        self.views = views
        self.where = where
        #: Seconds that reading one sample may take; the loader sets it.
        self.time_limit = math.inf
        #: Rows whose reading ended a process, and how; the loader finds out.
        self.deadly: dict[int, str] = {}
        for readers in dataset.readers:
            _check(readers, self.modalities)

    def __getitem__(self, item: int) -> tuple[Clip, list[Unreadable]]:
        with timing.step("read"):  # what is not counted under a name of its own
            if self.sampler is None:
                return self._at_row(item)
            return self._at_position(item, self.sampler)

    def __getitems__(self, items: Sequence[int]) -> list[tuple[Clip, list[Unreadable]]] | UserError:
        """All of a batch, as torch's loader asks for them.

        A mistake is returned: one that is raised in a loader process would reach the main one with
        a traceback in its message.
        """
        try:
            return [self[item] for item in items]
        except UserError as error:
            return UserError(f"{self.where}: {error}" if self.where else str(error))

    def _at_position(self, position: int, sampler: Sampler) -> tuple[Clip, list[Unreadable]]:
        failures: list[Unreadable] = []
        for attempt in range(_ATTEMPTS):
            row = int(sampler.rows(np.array([position]), attempt)[0])
            sample = self.dataset.sample(row)
            try:
                return self._read(row, sample, position, attempt), failures
            except BadMedia as error:
                failures.append(Unreadable(row, sample.id, str(error)))
        return self._empty(row, sample), failures

    def _read(self, row: int, sample: Sample, position: int, attempt: int) -> Clip:
        def rng(stream: str) -> np.random.Generator:
            return np.random.default_rng(derive_seed(self.seed, position, attempt, stream))

        with self._watched(row), Media(sample) as media:
            readers = self._readers(sample)
            window = training_window(media.start, media.end, _seconds(readers), rng("window"))
            read = _read_all(readers, media, window, rng)
        seed = derive_seed(self.seed, "augment", position)
        return Clip(row, seed, self._label(sample), *read)

    def _at_row(self, item: int) -> tuple[Clip, list[Unreadable]]:
        row, view = divmod(item, len(self.views))
        sample = self.dataset.sample(row)
        try:
            with self._watched(row), Media(sample) as media:
                readers = self._readers(sample)
                window = self.views.window(view, media.start, media.end, _seconds(readers))
                read = _read_all(readers, media, window, lambda _: None)
        except BadMedia as error:
            return self._empty(row, sample), [Unreadable(row, sample.id, str(error))]
        return Clip(row, 0, self._label(sample), *read), []

    @contextmanager
    def _watched(self, row: int) -> Iterator[None]:
        """While a row is read: others can see which, and it has so much time."""
        if row in self.deadly:
            raise BadMedia(self.deadly[row])
        with reading(row), limited_to(self.time_limit, expendable=expendable()):
            yield

    def _empty(self, row: int, sample: Sample) -> Clip:
        empty = {name: modality.empty() for name, modality in self.modalities.items()}
        return Clip(row, 0, self._label(sample), empty, dict.fromkeys(empty, False))

    def _readers(self, sample: Sample) -> dict[str, Modality]:
        """What a sample is read by."""
        return {name: sample.readers.get(name, own) for name, own in self.modalities.items()}

    def _label(self, sample: Sample) -> Tensor:
        """A sample's row of `Batch.labels`."""
        if not self.dataset.multilabel:
            return torch.tensor(IGNORE if sample.label is None else sample.label)
        if sample.labels is None:
            return torch.full((len(self.dataset.classes),), float(IGNORE))
        targets = torch.zeros(len(self.dataset.classes))
        targets[list(sample.labels)] = 1.0
        return targets


def _check(readers: Mapping[str, Modality], modalities: Mapping[str, Modality]) -> None:
    for name, reader in readers.items():
        if name in modalities:
            theirs, ours = reader.empty(), modalities[name].empty()
            if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
                raise UserError(
                    f"modality {name!r}: some samples would be read as {_form(theirs)}, the others "
                    f"as {_form(ours)}; a batch needs one size"
                )


def _form(tensor: Tensor) -> str:
    """``32 x 224 x 224 x 3 uint8``."""
    return f"{' x '.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"


def _seconds(modalities: Mapping[str, Modality]) -> float:
    """The length of the window that all can be read from."""
    return max(modality.seconds for modality in modalities.values())


def _read_all(
    modalities: Mapping[str, Modality],
    media: Media,
    window: Window,
    rng: Callable[[str], np.random.Generator | None],
) -> tuple[dict[str, Tensor], dict[str, bool], dict[str, str]]:
    """Tensors by modality, which are real, and of the others why they are not."""
    tensors, present, lacks = {}, {}, {}
    for name, modality in modalities.items():
        try:
            with timing.step(f"read {name}"):
                tensors[name] = modality.read(media, window, rng(name))
            present[name] = True
        except MissingModality as error:
            tensors[name] = modality.empty()
            present[name] = False
            reason = f": {error}" if str(error) else ""
            lacks[name] = f"{media.sample.id}{reason}"
        except Exception as error:  # also a defect of the modality, whose traceback tells of whom
            error.add_note(f"while the modality {name!r} read the sample {media.sample.id!r}")
            raise
    if not any(present.values()):
        raise BadMedia(f"has none of the modalities {', '.join(present)}")
    return tensors, present, lacks


def collate(items: Sequence[tuple[Clip, list[Unreadable]]], split: Split) -> Loaded:
    """Stack clips into a batch, in a loader process."""
    clips = [clip for clip, _ in items]
    names = list(clips[0].tensors)
    with timing.step("collate"):
        batch = Batch(
            index=torch.tensor([clip.row for clip in clips]),
            seeds=torch.tensor([clip.seed for clip in clips]),
            # In a loader process straight into the memory that it shares with the main one.
            clips={name: default_collate([clip.tensors[name] for clip in clips]) for name in names},
            present={name: torch.tensor([clip.present[name] for clip in clips]) for name in names},
            labels=torch.stack([clip.label for clip in clips]),
            split=split,
        )
    return Loaded(
        batch,
        unreadable=[failure for _, failures in items for failure in failures],
        exhausted=any(len(failures) == _ATTEMPTS for _, failures in items),
        lacking={
            name: next(why for clip in clips if (why := clip.lacks.get(name)) is not None)
            for name in names
            if any(name in clip.lacks for clip in clips) and not any(c.present[name] for c in clips)
        },
        seconds=timing.take(),
    )


def _answer(
    items: Sequence[tuple[Clip, list[Unreadable]]] | UserError, split: Split
) -> Loaded | UserError:
    """What a loader process makes of a batch."""
    return items if isinstance(items, UserError) else collate(items, split)


@dataclass(frozen=True)
class Part:
    """What one rank reads of each batch.

    A batch is computed in micro-batches, each of which all ranks compute together, so a rank has
    a part of every one: then no mean depends on the number of ranks.

    Attributes:
        rank: 0 or more.
        ranks: their number.
        micro_batches: of a step.
    """

    rank: int = 0
    ranks: int = 1
    micro_batches: int = 1


WHOLE = Part()


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are loaded; no setting changes what is in them.

    Attributes:
        workers: loader processes; 0 reads in this process.
        prefetch: batches that each process keeps ready.
        pin: use page-locked memory, for copies to a GPU.
        time_limit: seconds that reading one sample may take before it counts as unreadable.
        timed: measure where the time of reading goes (`Loaded.seconds`).
    """

    workers: int = 0
    prefetch: int = 4
    pin: bool = False
    time_limit: float = 60.0
    timed: bool = False


def _load(
    reader: ClipReader, batches: Sequence[list[int]], split: Split, settings: LoaderSettings
) -> Generator[Loaded]:
    reader.time_limit = settings.time_limit
    arrived = deaths = 0
    while arrived < len(batches):
        crew = Crew(min(settings.workers, len(batches) - arrived))
        arriving = crew.work(
            reader,
            _Rest(batches, arrived),
            partial(_answer, split=split),
            prefetch=settings.prefetch,
            pin=settings.pin,
            timed=settings.timed,
        )
        try:
            with closing(arriving):
                for loaded in arriving:
                    if isinstance(loaded, UserError):
                        raise loaded
                    if loaded.exhausted:
                        last = loaded.unreadable[-1]
                        where = f"{reader.where}: " if reader.where else ""
                        raise UserError(
                            f"{where}{_ATTEMPTS} samples in a row could not be read; the last was "
                            f"{last.id}: {last.reason}"
                        )
                    arrived, deaths = arrived + 1, 0
                    yield loaded
        # The others, when a process dies while its batch is handed over.
        except (RuntimeError, EOFError, OSError):
            died = crew.deaths()
            crew.kill()
            if not died:
                raise
            deaths += 1
            if deaths == _DEATHS:
                raise UserError(
                    f"{_DEATHS} loader processes died one after the other ({died[-1].how}): is "
                    "there enough memory? Lower data.workers or data.prefetch"
                ) from None
            for death in died:
                if death.row is not None:
                    reader.deadly[death.row] = death.reason(reader.time_limit)
        except BaseException:
            # Its traceback holds the loader, which would be ended at this process's exit: by a
            # SIGTERM that loader processes let pass.
            crew.kill()
            raise


class _Rest(Sequence[list[int]]):
    """What is left of batches from one on."""

    def __init__(self, batches: Sequence[list[int]], first: int) -> None:
        self._batches, self._first = batches, first

    def __len__(self) -> int:
        return len(self._batches) - self._first

    def __getitem__(self, index: Any) -> Any:
        return self._batches[self._first + index]


class _Share(Sequence[list[int]]):
    """A rank's positions of consecutive batches, made when asked for: a round may have 10^8."""

    def __init__(self, start: int, length: int, count: int, part: Part) -> None:
        if length % (part.ranks * part.micro_batches):
            raise ValueError(
                f"a batch of {length} cannot be split into {part.micro_batches} micro-batches on "
                f"{part.ranks} ranks"
            )
        self._start, self._length, self._count, self._part = start, length, count, part

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        whole = self._length // self._part.micro_batches
        own = whole // self._part.ranks
        first = self._start + index * self._length + self._part.rank * own
        starts = (first + micro * whole for micro in range(self._part.micro_batches))
        return [position for begin in starts for position in range(begin, begin + own)]


def training_batches(
    reader: ClipReader,
    *,
    start: int,
    batch_size: int,
    count: int,
    settings: LoaderSettings,
    part: Part = WHOLE,
) -> Generator[Loaded]:
    """``count`` batches of consecutive positions from ``start``; closing ends the processes.

    Args:
        reader: of the dataset, with a sampler.
        start: the first position.
        batch_size: positions in a batch of all ranks.
        count: batches.
        settings: how they are loaded.
        part: what this rank reads of each.
    """
    return _load(reader, _Share(start, batch_size, count, part), "train", settings)


def ordered_batches(
    reader: ClipReader,
    rows: np.ndarray | range,
    *,
    batch_size: int,
    split: Split,
    settings: LoaderSettings,
    part: Part = WHOLE,
) -> Generator[Loaded]:
    """Batches of ``batch_size`` items: all views of each row, row after row.

    Of several ranks each gets its part of every batch. What is left of the last one when all
    ranks have equally many comes as a batch of its own, the same on every rank.
    """
    return _load(reader, _Slices(rows, len(reader.views), batch_size, part), split, settings)


class _Slices(Sequence[list[int]]):
    """Batches of items, ``row * views + view``, made when asked for."""

    def __init__(self, rows: np.ndarray | range, views: int, length: int, part: Part) -> None:
        self._rows, self._views, self._length, self._part = rows, views, length, part
        self._size = len(rows) * views
        # What ranks cannot share equally of the last batch is one of its own.
        self._shared = self._size - self._size % length % part.ranks
        self._shared_batches = -(-self._shared // length)

    def __len__(self) -> int:
        return self._shared_batches + (self._shared < self._size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index == self._shared_batches:
            first, last = self._shared, self._size
        else:
            first = index * self._length
            own = (min(first + self._length, self._shared) - first) // self._part.ranks
            first += self._part.rank * own
            last = first + own
        places = (divmod(item, self._views) for item in range(first, last))
        return [int(self._rows[row]) * self._views + view for row, view in places]
