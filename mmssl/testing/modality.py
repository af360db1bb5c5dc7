"""What holds of every modality.

Reading happens in loader processes, of which there may be any number, and preparing on the device,
for a batch that may be a part of a larger one. Runs are equal to the last bit all the same, since
both are functions of the sample, the seed and the position alone.
"""

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmssl.contracts import Modality, Window
from mmssl.data.draws import Draws, derive_seed
from mmssl.data.loading import Clip, ClipReader
from mmssl.data.media import Media
from mmssl.errors import BadMedia, MissingModality
from mmssl.recipe.component import ComponentSpec
from mmssl.testing.check import fail, not_applicable, require, shown
from mmssl.testing.crew import on_ranks
from mmssl.testing.material import Few, Material, seed_everything
from mmssl.testing.tensors import ROUNDING, difference

# So many positions are read twice.
_POSITIONS = 4


class Case:
    """A modality as a recipe names it.

    Args:
        material: of the recipe.
        spec: the modality.
        key: under which it stands; one of a dataset's own readers has the key that it reads.
    """

    def __init__(self, material: Material, spec: ComponentSpec, key: str) -> None:
        self.material = material
        self.spec = spec
        self.key = key

    @cached_property
    def modality(self) -> Modality:
        """The modality, built."""
        modality: Modality = self.spec.build()
        return modality

    @cached_property
    def clips(self) -> list[Clip]:
        """Of several samples."""
        return self.material.clips(self.key, self.modality)

    @property
    def raw(self) -> Tensor:
        """A batch of them; each caller has its own."""
        return torch.stack([clip.tensors[self.key] for clip in self.clips])

    def reader(self, *, training: bool) -> ClipReader:
        """The core's reader of this modality alone."""
        return self.material.reader({self.key: self.modality}, training=training)

    def draws(self, rows: slice | list[int] = slice(None)) -> Draws:
        """What the core lends `prepare` for some rows of the batch."""
        seeds = [
            derive_seed(self.material.recipe.seed, "check", row) for row in range(len(self.raw))
        ]
        return Draws(torch.tensor(seeds)[rows], self.key)

    def modes(self) -> Iterator[tuple[str, bool]]:
        """In evaluation, in training."""
        yield "in evaluation (draws=None)", False
        yield "in training", True

    def prepare(
        self, training: bool, rows: slice | list[int] = slice(None), raw: Tensor | None = None
    ) -> Tensor:
        """`prepare` of some rows, by the seeds that they have in the whole batch."""
        batch = (self.raw if raw is None else raw)[rows]
        with torch.no_grad():
            return self.modality.prepare(batch, self.draws(rows) if training else None)


def declares_itself(case: Case) -> None:
    """Kind, shape, dtype and seconds are set."""
    modality = case.modality
    for name, expected, example in (
        ("kind", str, "kind = 'imu'"),
        ("seconds", int | float, "seconds = 2.0, or 0.0 where any window will do"),
        ("shape", tuple, "self.shape = (channels, steps)"),
        ("dtype", torch.dtype, "dtype = torch.float32"),
    ):
        value = getattr(modality, name, None)
        if not isinstance(value, expected) or value == "":
            fail(f"{name} is {value!r}: set it in the class or in __init__, as {example}")
    if not all(isinstance(size, int) and size > 0 for size in modality.shape):
        fail(f"shape is {modality.shape}: it must hold whole numbers > 0, without the batch's size")
    require(modality.seconds >= 0, f"seconds is {modality.seconds}: the length of a clip is >= 0")


def reads_one_form(case: Case) -> None:
    """Read gives every sample the shape and dtype of empty()"""
    empty = case.modality.empty()
    require(isinstance(empty, Tensor), f"empty() returned {shown(empty)}: return a tensor of zeros")
    require(not bool(empty.any()), "empty() must be zeros: absent rows of a batch are")
    reader = case.reader(training=True)
    clips = [*case.clips, *(reader[position][0] for position in range(_POSITIONS))]
    for clip in clips:
        read = clip.tensors[case.key]
        if not isinstance(read, Tensor):
            fail(f"read returned {shown(read)}: return a tensor")
        if (read.shape, read.dtype) != (empty.shape, empty.dtype):
            sample = case.material.train.sample(clip.row)
            fail(
                f"read gave {shown(read)} for the sample {sample.id!r} and empty() gives "
                f"{shown(empty)}: every sample must be read as the same shape and dtype, cut or "
                "padded where its media are too long or too short"
            )


def reads_by_position(case: Case) -> None:
    """Reading is a function of the sample, the seed and the position"""
    for training in (False, True):
        reader = case.reader(training=training)
        items = range(_POSITIONS) if training else [clip.row for clip in case.clips]
        seed_everything(1)
        once = [reader[item][0].tensors[case.key] for item in items]
        seed_everything(2)
        again = [reader[item][0].tensors[case.key] for item in reversed(items)]
        for ours, theirs in zip(once, reversed(again), strict=True):
            if found := difference(ours, theirs):
                what = "with the same rng" if training else "with rng=None, as in evaluation,"
                fail(
                    f"read {what} gave something else the second time ({found}): draw from the rng "
                    "that read receives alone, choose nothing where it is None, and keep no state "
                    "in the modality between samples"
                )


def reads_in_other_processes(case: Case) -> None:
    """Reading in another process gives the same clips"""
    reader = case.reader(training=True)
    try:
        sent = pickle.dumps(reader)
        pickle.loads(sent)  # noqa: S301 - what was pickled here
    except Exception as error:
        fail(
            f"the modality or its dataset does not pickle ({type(error).__name__}: {error}), so it "
            "cannot be sent to a loader process: open files when reading, and keep no lambda, lock "
            "or handle in it"
        )
    here = [reader[position][0] for position in range(_POSITIONS)]
    for rank, there in enumerate(on_ranks(_read, sent, _POSITIONS)):
        for ours, theirs in zip(here, there, strict=True):
            found = difference(theirs.tensors[case.key], ours.tensors[case.key])
            if found or ours.seed != theirs.seed:
                fail(
                    f"in another process (rank {rank}) the clip of the same position is not the "
                    f"same: {found}. Nothing that read depends on may differ between processes, "
                    "such as hash() of text, the process's number, or the order of a set"
                )


def _read(sent: bytes, count: int) -> list[Clip]:
    reader = pickle.loads(sent)  # noqa: S301 - from this process's parent
    return [reader[position][0] for position in range(count)]


def reads_short_samples(case: Case) -> None:
    """A sample shorter than a clip gives the same shape"""
    modality, empty = case.modality, case.modality.empty()
    clip = case.clips[0]
    sample = case.material.train.sample(clip.row)
    seconds = modality.seconds or 1.0
    with Media(sample) as media:
        start, end = media.start, media.end
    length = end - start
    short = min(seconds / 4, length / 2) if length > 0 else seconds / 4
    cut = replace(sample, start=start + (length / 2 if length > 0 else 0), readers={})
    cut = replace(cut, end=cut.start + short)
    reader = ClipReader(Few([cut]), {case.key: modality}, seed=0)
    read, failures = reader[0]
    if failures and not read.present[case.key]:
        return  # it says that it cannot, which skips the sample
    if (read.tensors[case.key].shape, read.tensors[case.key].dtype) != (empty.shape, empty.dtype):
        fail(
            f"of a sample of {short:.3g} s, where a clip needs {modality.seconds:g} s, read gave "
            f"{shown(read.tensors[case.key])} and not {shown(empty)}: pad what is too short, or "
            "raise mmssl.BadMedia"
        )
    with Media(sample) as media:
        try:
            beyond = modality.read(media, Window(end + seconds, seconds), None)
        except (BadMedia, MissingModality):
            return
    if (beyond.shape, beyond.dtype) != (empty.shape, empty.dtype):
        fail(
            f"of a window beyond the sample's end read gave {shown(beyond)} and not "
            f"{shown(empty)}: pad it, or raise mmssl.BadMedia"
        )


def is_absent(case: Case) -> None:
    """A sample without it is absent, and no crash"""
    modality = case.modality
    sample = case.material.train.sample(case.clips[0].row)
    # Of a name that is nobody's, as files may be named after samples.
    name, end = f"{sample.id} without anything", sample.start + 1.0
    bare = replace(sample, id=name, media=None, span=None, fields={}, readers={}, end=end)
    for rng in (None, np.random.default_rng(0)):
        with Media(bare) as media:
            window = Window(bare.start, modality.seconds)
            try:
                read = modality.read(media, window, rng)
            except MissingModality:
                continue
            except BadMedia as error:
                fail(
                    "of a sample without media and fields read raised BadMedia, which skips the "
                    f"whole sample with all its other modalities ({error}): raise "
                    "mmssl.MissingModality where the sample has nothing to read"
                )
            except Exception as error:
                fail(
                    f"of a sample without media and fields read raised {type(error).__name__}: "
                    f"{error}. Raise mmssl.MissingModality where the sample lacks this modality: "
                    "look up fields with .get, and leave media.container to raise it"
                )
        fail(
            f"of a sample without media and fields read gave {shown(read)}: raise "
            "mmssl.MissingModality, so that objectives know that there is nothing"
        )


def prepares_its_form(case: Case) -> None:
    """Prepare gives [B, *shape] of dtype, finite, on the batch's device"""
    modality = case.modality
    for mode, training in case.modes():
        raw = case.raw
        prepared = case.prepare(training)
        if not isinstance(prepared, Tensor):
            fail(f"prepare returned {shown(prepared)} {mode}: return a tensor")
        if tuple(prepared.shape) != (len(raw), *modality.shape) or prepared.dtype != modality.dtype:
            declared = torch.empty(len(raw), *modality.shape, dtype=modality.dtype)
            fail(
                f"prepare gave {shown(prepared)} {mode}, and shape and dtype declare "
                f"{shown(declared)} for {len(raw)} clips: correct one of them"
            )
        require(
            prepared.device == raw.device,
            f"prepare moved a batch from {raw.device} to {prepared.device} {mode}: make new "
            "tensors on batch.device",
        )
        if prepared.is_floating_point() and not bool(prepared.isfinite().all()):
            fail(
                f"prepare gave values that are not finite {mode}: guard logarithms and divisions, "
                "such as by a standard deviation of 0"
            )


def prepares_silence(case: Case) -> None:
    """Prepare of an absent sample's zeros is finite"""
    empty = case.modality.empty()
    batch = torch.stack([empty] * len(case.raw))
    for mode, training in case.modes():
        prepared = case.prepare(training, raw=batch)
        if prepared.is_floating_point() and not bool(prepared.isfinite().all()):
            fail(
                f"prepare of what empty() gives is not finite {mode}: rows of absent samples pass "
                "through it with the others, and 0 times infinity is no number; add an epsilon"
            )


def prepares_a_copy(case: Case) -> None:
    """Prepare does not change its input"""
    for mode, training in case.modes():
        raw = case.raw
        before = raw.clone()
        case.prepare(training, raw=raw)
        if found := difference(raw, before):
            fail(
                f"prepare changed the batch that it was given {mode} ({found}): use operations "
                "that return a new tensor, no x.add_() or x[...] = ..."
            )


def prepares_by_seed(case: Case) -> None:
    """Prepare is a function of the clips and their draws"""
    for mode, training in case.modes():
        seed_everything(1)
        once = case.prepare(training)
        seed_everything(2)
        if found := difference(case.prepare(training), once):
            way = "draw from draws alone, not from torch.rand" if training else "choose nothing"
            fail(f"prepare of the same batch gave something else {mode} ({found}): {way}")


def prepares_parts(case: Case) -> None:
    """Prepare of a batch equals prepare of its parts"""
    for mode, training in case.modes():
        whole = case.prepare(training)
        for row in range(len(whole)):
            part = case.prepare(training, slice(row, row + 1))
            if found := difference(part[0], whole[row], ROUNDING):
                fail(
                    f"prepare of a clip alone is not what it is in a batch {mode} ({found}): a "
                    "row's result may depend on that row and its draws only, so normalise each "
                    "clip by itself and take random numbers for all rows at once (draws.uniform "
                    "gives [B])"
                )
        order = list(reversed(range(len(whole))))
        if found := difference(case.prepare(training, order), whole[order], ROUNDING):
            fail(
                f"prepare depends on the order of a batch {mode} ({found}): a row's result may "
                "depend on that row and its draws only"
            )


def copies(case: Case) -> None:
    """A copy of it prepares alike"""
    try:
        twin = copy.deepcopy(case.modality)
    except Exception as error:
        fail(f"it cannot be copied ({type(error).__name__}: {error}): keep no lock or handle in it")
    if found := difference(twin.prepare(case.raw, case.draws()), case.prepare(True)):
        fail(f"a copy of it prepares a batch otherwise ({found}): keep no state between batches")


def prepares_on_cuda(case: Case) -> None:
    """Prepare works on CUDA"""
    if not torch.cuda.is_available():
        not_applicable("there is no CUDA device here")
    raw = case.raw.cuda()
    for mode, training in case.modes():
        draws = Draws(torch.arange(len(raw), device="cuda"), case.key) if training else None
        prepared = case.modality.prepare(raw, draws)
        require(
            prepared.device == raw.device,
            f"prepare left the GPU {mode}: it gave a tensor on {prepared.device}; make new tensors "
            "on batch.device, and move constants there",
        )


TESTS = (
    declares_itself,
    reads_one_form,
    reads_by_position,
    reads_in_other_processes,
    reads_short_samples,
    is_absent,
    prepares_its_form,
    prepares_silence,
    prepares_a_copy,
    prepares_by_seed,
    prepares_parts,
    copies,
    prepares_on_cuda,
)
