"""Several datasets as one, mixed in given shares."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from math import ceil
from typing import Annotated

import numpy as np
from pydantic import Field, StringConstraints

from mmssl.contracts import IGNORE, Dataset, Modality, Sample, Storage
from mmssl.errors import UserError
from mmssl.recipe.typed import Expects
from mmssl.training.progress import Progress

PartName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_-]+$"),
    Expects("letters, digits, '_' and '-'"),
]

# Rows of a part that does not lie in archives, where another does: so many are visited together.
_TOGETHER = 64

# Rows that a pass may have at most: positions are counted in 64 bits, and labels fill memory.
_MOST = 2**40


class Mixed(Dataset):
    """Several datasets that are trained on together, each with its share, whatever its size.

    A pass over the data has as many samples of each part as its weight says, to the nearest whole
    one. The part that is largest for its weight is seen once; the others begin again until they
    have their share. Rows are the parts', one part after the other, so that batches, which are
    drawn from all rows, have every part's share on average. Where parts lie in archives, groups of
    all parts take turns in random order, and the buffer is as large as it takes for a part to have
    its own there: batches have the shares of the groups that meet in it.

    A sample's id is ``<part>/<its id there>``, and ``<part>.2/...``, ``<part>.3/...`` where it
    comes again in the same pass. There are classes only if all parts have the same ones in the
    same order. A part may lack modalities: AudioSet has no text.

    Pseudo-labels are made for every row, and so several times for what comes several times.

    Args:
        datasets: the parts, by names of your choice.
        weights: their shares, as numbers that need not add up to 1; 1 for a part that is not named.
        modalities: by part, the recipe's modalities that are read otherwise there, such as video at
            another rate. Of such a modality what is read counts, in the same shape and type; the
            recipe's prepares and augments it.
    """

    def __init__(
        self,
        *,
        datasets: Annotated[dict[PartName, Dataset], Field(min_length=1)],
        weights: dict[PartName, Annotated[float, Field(gt=0)]] | None = None,
        modalities: dict[PartName, dict[str, Modality]] | None = None,
    ) -> None:
        weights, modalities = weights or {}, modalities or {}
        for what, names in {"weights": list(weights), "modalities": list(modalities)}.items():
            for name in names:
                if name not in datasets:
                    there = ", ".join(datasets)
                    raise UserError(f"mixed: {what} names {name!r}, but the parts are {there}")
        self._names = list(datasets)
        self._parts = list(datasets.values())
        self._weights = [Fraction(weights.get(name, 1.0)) for name in datasets]
        self._modalities = [modalities.get(name, {}) for name in datasets]
        own = (readers for part in self._parts for readers in part.readers)
        self.readers = [*own, *filter(None, self._modalities)]

    @cached_property
    def _shares(self) -> np.ndarray:
        """``[parts]`` int64: the rows of each part in a pass."""
        sizes = [len(part) for part in self._parts]
        for name, size in zip(self._names, sizes, strict=True):
            if not size:
                raise UserError(f"mixed: the part {name!r} is empty")
        # Of a weight of 1, such that no part has fewer rows than there are.
        unit = max(Fraction(n) / w for n, w in zip(sizes, self._weights, strict=True))
        shares = [round(unit * weight) for weight in self._weights]
        if sum(shares) > _MOST:
            name = self._names[int(np.argmax([s / n for s, n in zip(shares, sizes, strict=True)]))]
            raise UserError(
                f"mixed: {name!r} would be repeated until a pass has {float(sum(shares)):.1e} "
                "samples; bring the weights closer to the sizes"
            )
        return np.array(shares, np.int64)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self._shares)

    @cached_property
    def _agree(self) -> bool:
        """Have all parts the same classes?"""
        kinds = {(tuple(part.classes), part.multilabel) for part in self._parts}
        return len(kinds) == 1

    @property
    def classes(self) -> Sequence[str]:  # type: ignore[override]
        """The parts' classes, where all have the same."""
        return self._parts[0].classes if self._agree else ()

    @property
    def multilabel(self) -> bool:  # type: ignore[override]
        """May a sample have several classes?"""
        return self._parts[0].multilabel if self._agree else False

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sample(self, index: int) -> Sample:
        """The sample of a row.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        within = index - int(self._ends[number] - self._shares[number])
        again, row = divmod(within, len(self._parts[number]))
        own = self._parts[number].sample(row)
        name = f"{self._names[number]}.{again + 1}" if again else self._names[number]
        return replace(
            own,
            id=f"{name}/{own.id}",
            label=own.label if self._agree else None,
            labels=own.labels if self._agree else None,
            readers={**own.readers, **self._modalities[number]},
        )

    def materialise(self, progress: Progress) -> None:
        """Write what the parts lack, one after the other."""
        for part in self._parts:
            part.materialise(progress)
        for name, share, part in zip(self._names, self._shares, self._parts, strict=True):
            progress.say(
                f"{name}: {share / len(self):.1%} of a pass, {share / len(part):.3g} times its "
                f"{len(part):,} samples"
            )

    def digest(self) -> str:
        """Of the parts, and of their shares of a pass."""
        parts = zip(self._names, self._shares, self._parts, strict=True)
        text = "\n".join(f"{share} {name} {part.digest()}" for name, share, part in parts)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def storage(self) -> Storage | None:
        """The groups of all parts, repeated as their rows are; None where no part has any.

        Rows of a part without groups cost the same wherever they are; they come in small groups,
        so that some of them are in every buffer.
        """
        found = [part.storage() for part in self._parts]
        if not any(found):
            return None
        groups = [
            _repeated(_small(len(part)) if own is None else own.groups, int(share))
            for part, own, share in zip(self._parts, found, self._shares, strict=True)
        ]
        # A part in archives brings its buffer, and the others as much as their share of it.
        unit = max(
            Fraction(own.buffer) / weight
            for own, weight in zip(found, self._weights, strict=True)
            if own is not None
        )
        return Storage(np.concatenate(groups), ceil(unit * sum(self._weights)))

    def labels(self) -> np.ndarray:
        """``[len(self)]`` int32, `IGNORE` where a sample has no single label."""
        if not self._agree:
            return np.full(len(self), IGNORE, np.int32)
        shares = zip(self._parts, self._shares, strict=True)
        return np.concatenate([np.resize(part.labels(), int(share)) for part, share in shares])


def _small(rows: int) -> np.ndarray:
    """Groups of few rows each."""
    whole, rest = divmod(rows, _TOGETHER)
    return np.array([_TOGETHER] * whole + [rest] * (rest > 0), np.int64)


def _repeated(groups: np.ndarray, rows: int) -> np.ndarray:
    """Groups over and over, until there are so many rows; the last one may be cut."""
    times = -(-rows // int(groups.sum()))
    ends = np.minimum(np.cumsum(np.tile(np.asarray(groups, np.int64), times)), rows)
    sizes = np.diff(ends, prepend=0)
    return sizes[sizes > 0]
