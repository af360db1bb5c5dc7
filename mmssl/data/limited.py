"""A part of a dataset, spread evenly over it."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from mmssl.contracts import Dataset, Sample, Storage

if TYPE_CHECKING:
    from mmssl.training.progress import Progress


class Limited(Dataset):
    """So many samples of a dataset, at equal distances: a list ordered by class keeps its classes.

    Args:
        dataset: the whole.
        limit: the number of samples, 1 to ``len(dataset)``.
    """

    def __init__(self, dataset: Dataset, limit: int) -> None:
        if not 1 <= limit <= len(dataset):
            raise ValueError(f"cannot take {limit} of {len(dataset)} samples")
        self.dataset = dataset
        self.classes = dataset.classes
        self.multilabel = dataset.multilabel
        self.readers = dataset.readers
        self._limit = limit

    def __len__(self) -> int:
        return self._limit

    def sample(self, index: int) -> Sample:
        """The sample at ``0 <= index < len(self)``.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < self._limit:
            raise IndexError(f"row {index} of {self._limit}")
        return self.dataset.sample(index * len(self.dataset) // self._limit)

    def materialise(self, progress: "Progress") -> None:
        """Write what the whole dataset lacks: it knows no parts."""
        self.dataset.materialise(progress)

    def digest(self) -> str:
        """Of the whole dataset, and of how much of it is used."""
        text = f"{self._limit} of {self.dataset.digest()}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def storage(self) -> Storage | None:
        """The whole's groups, each with those of its rows that are used."""
        whole = self.dataset.storage()
        if whole is None:
            return None
        # Row i of the part is row i * size // limit of the whole, so before row e of the whole
        # there are e * limit / size of them, rounded up.
        ends = np.cumsum(np.asarray(whole.groups, np.int64))
        ours = -(-ends * self._limit // len(self.dataset))
        return Storage(np.diff(ours, prepend=0), whole.buffer)
