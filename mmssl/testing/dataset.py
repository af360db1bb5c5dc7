"""What holds of every dataset.

It is a list of rows: cheap to build, the same in every process and at every start, since
pseudo-labels and memories are kept by row.
"""

import copy
import pickle
from functools import cached_property
from unittest import mock

import numpy as np

from mmssl.contracts import IGNORE, Dataset, Sample
from mmssl.data.media import Media
from mmssl.recipe.component import ComponentSpec
from mmssl.testing.check import fail, not_applicable, require
from mmssl.testing.crew import on_ranks
from mmssl.testing.material import Material, seed_everything
from mmssl.training.progress import Silent

# So many samples are looked at, spread over all.
_LOOKED_AT = 2048


class Case:
    """A dataset as a recipe names it.

    Args:
        material: of the recipe.
        spec: the dataset.
    """

    def __init__(self, material: Material, spec: ComponentSpec) -> None:
        self.material = material
        self.spec = spec

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset, with all that it makes."""
        dataset = self.build()
        dataset.materialise(Silent())
        return dataset

    def build(self) -> Dataset:
        """Another one of the same parameters."""
        dataset: Dataset = self.spec.build()
        return dataset

    @cached_property
    def rows(self) -> list[int]:
        """Some rows, spread over all."""
        size = len(self.dataset)
        return sorted({size * i // _LOOKED_AT for i in range(_LOOKED_AT)}) if size else []

    @cached_property
    def samples(self) -> list[Sample]:
        """What stands there."""
        return [self.dataset.sample(row) for row in self.rows]


def has_samples(case: Case) -> None:
    """Every row below its length is a sample"""
    require(len(case.dataset) > 0, "it has no samples: the recipe must name data that are there")
    for row, sample in zip(case.rows, case.samples, strict=True):
        if not isinstance(sample, Sample):
            fail(f"sample({row}) is a {type(sample).__name__}: return a mmssl.Sample")
        if not isinstance(sample.id, str) or not sample.id:
            fail(f"the id of sample({row}) is {sample.id!r}: it must be text that names the sample")
        if sample.end is not None and sample.end < sample.start:
            fail(f"{sample.id} ends at {sample.end:g} s, before it starts at {sample.start:g} s")
        for name, value in sample.fields.items():
            require(
                isinstance(name, str) and isinstance(value, str),
                f"the field {name!r} of {sample.id} is {value!r}: fields are text; a modality "
                "makes of it what it needs",
            )


def has_unique_ids(case: Case) -> None:
    """No two of its samples have the same id"""
    seen: dict[str, int] = {}
    for row, sample in zip(case.rows, case.samples, strict=True):
        if sample.id in seen:
            fail(
                f"the samples {seen[sample.id]} and {row} are both called {sample.id!r}: make ids "
                "unique, such as by the file's path and the segment's number"
            )
        seen[sample.id] = row


def is_stable(case: Case) -> None:
    """It is the same when it is built again"""
    seed_everything(1)
    again = case.build()
    seed_everything(2)
    require(
        len(again) == len(case.dataset),
        f"built again it has {len(again)} samples, not {len(case.dataset)}",
    )
    for row, sample in zip(case.rows, case.samples, strict=True):
        if _plain(again.sample(row)) != _plain(sample):
            fail(
                f"built again, the sample {row} is {again.sample(row)} and not {sample}: sort what "
                "a folder or a set lists, and shuffle nothing (the sampler does)"
            )
    require(
        again.digest() == case.dataset.digest(),
        "built again its digest() differs: a run could not be resumed",
    )
    require(list(again.classes) == list(case.dataset.classes), "built again its classes differ")


def is_stable_elsewhere(case: Case) -> None:
    """It pickles, and is the same in another process"""
    try:
        sent = pickle.dumps(case.dataset)
    except Exception as error:
        fail(
            f"it does not pickle ({type(error).__name__}: {error}), so it cannot be sent to a "
            "loader process: open files when a sample is asked for, keep no lambda, lock or handle"
        )
    rows = case.rows[:64]
    here = [_plain(case.dataset.sample(row)) for row in rows]
    for there, digest in on_ranks(_rows, sent, rows):
        if there != here:
            fail("in another process its samples differ: use no hash() of text, no order of a set")
        require(digest == case.dataset.digest(), "in another process its digest() differs")
    copy.deepcopy(case.dataset)


def _rows(sent: bytes, rows: list[int]) -> tuple[list[object], str]:
    dataset: Dataset = pickle.loads(sent)  # noqa: S301 - from this process's parent
    return [_plain(dataset.sample(row)) for row in rows], dataset.digest()


def _plain(sample: Sample) -> tuple[object, ...]:
    """What can be compared of a sample: its readers are objects of their own."""
    return (
        sample.id, sample.media, sample.start, sample.end, sample.label, dict(sample.fields),
        sample.root, sample.span, sample.labels, sorted(sample.readers),
    )  # fmt: skip


def has_labels(case: Case) -> None:
    """labels() are those of its samples, and index classes"""
    dataset = case.dataset
    labels = dataset.labels()
    require(
        isinstance(labels, np.ndarray) and labels.dtype == np.int32,
        f"labels() is {getattr(labels, 'dtype', type(labels).__name__)}: return int32",
    )
    require(
        labels.shape == (len(dataset),), f"labels() has shape {labels.shape}, not ({len(dataset)},)"
    )
    count = len(dataset.classes)
    for row, sample in zip(case.rows, case.samples, strict=True):
        own = IGNORE if sample.label is None else sample.label
        if labels[row] != own:
            fail(f"labels()[{row}] is {labels[row]}, but sample({row}).label is {sample.label}")
        several = sample.labels or ()
        for label in (*([] if sample.label is None else [sample.label]), *several):
            if not 0 <= label < count:
                fail(
                    f"the sample {sample.id!r} has the label {label}, and there are {count} "
                    "classes: labels index classes, from 0"
                )
        if sample.labels is not None and not dataset.multilabel:
            fail(f"{sample.id!r} has several labels: set multilabel = True")
        if sample.label is not None and dataset.multilabel:
            fail(f"{sample.id!r} has a single label, but multilabel is set: use labels")
    require(
        len(set(dataset.classes)) == count, "two of its classes have the same name: number them"
    )


def reads_nothing(case: Case) -> None:
    """Building it and asking for samples opens no media"""
    opened: list[str] = []

    def note(self: Media, *_: object) -> None:
        opened.append(str(self.sample.media))

    with mock.patch.object(Media, "_source", note), mock.patch("av.open", _Refusal()) as refused:
        dataset = case.build()
        for row in case.rows[:64]:
            dataset.sample(row)
        dataset.labels()
    if opened or refused.asked:
        fail(
            f"it opened {(opened or refused.asked)[0]}: a dataset only lists what there is, and "
            "loader processes read it; what must be known beforehand belongs into a list on disk"
        )


class _Refusal:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, file: object, *args: object, **kwargs: object) -> None:
        self.asked.append(str(file))
        raise OSError("a dataset opened a media file")


def has_storage(case: Case) -> None:
    """storage() covers its rows"""
    storage = case.dataset.storage()
    if storage is None:
        not_applicable("any of its rows costs the same")
    total, size = int(storage.groups.sum()), len(case.dataset)
    require(total == size, f"the groups of storage() hold {total} rows of {size}")
    require(storage.buffer >= 1, f"the buffer of storage() is {storage.buffer}, less than 1")


TESTS = (
    has_samples,
    has_unique_ids,
    is_stable,
    is_stable_elsewhere,
    has_labels,
    reads_nothing,
    has_storage,
)
