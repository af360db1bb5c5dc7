"""Which row of the dataset stands at each position of training.

Training is a stream of positions 0, 1, 2, ... over all epochs and rounds. The row at a position
is a function of the seed and the position alone, found in constant time and memory: resuming
is an integer, and neither workers nor ranks change what is drawn.
"""

import math
from collections.abc import Sequence

import numpy as np

from mmssl.contracts import IGNORE, Storage
from mmssl.data.draws import derive_seed

_FEISTEL_ROUNDS = 6


def hash_positions(positions: np.ndarray, seed: int) -> np.ndarray:
    """uint64 hashes of uint64 positions under a seed (the SplitMix64 finaliser)."""
    with np.errstate(over="ignore"):
        x = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = x + np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class Permutation:
    """A seeded permutation of ``range(size)`` that holds no table.

    A Feistel network permutes the next power of four; what falls outside the range is permuted
    again until it falls inside, which leaves a bijection (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002).

    Args:
        size: number of elements, at least 1.
        seed: any integer.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got {size}")
        self.size = size
        half = max(1, math.ceil(math.log2(size) / 2)) if size > 1 else 1
        self._half = np.uint64(half)
        self._mask = np.uint64((1 << half) - 1)
        self._keys = [derive_seed("feistel", seed, i) for i in range(_FEISTEL_ROUNDS)]

    def _network(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (hash_positions(right, key) & self._mask)
        return (left << self._half) | right

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """The elements at ``positions`` (integers in ``[0, size)``), int64, in the same shape."""
        flat = np.asarray(positions).astype(np.uint64).reshape(-1)
        out = self._network(flat)
        outside = np.flatnonzero(out >= self.size)
        while len(outside):
            out[outside] = self._network(out[outside])
            outside = outside[out[outside] >= self.size]
        return out.astype(np.int64).reshape(np.shape(positions))


class Sampler:
    """The row at every position: a new permutation for each pass over the data, or balanced.

    Args:
        size: number of rows in the dataset.
        seed: the recipe's seed.
        balanced_over: labelings, ``[size]`` int32 with `IGNORE` for rows without label. When
            given, a position first draws a class uniformly among those that have members, then
            a member uniformly; several labelings take turns from position to position.
        storage: how rows lie where they are stored; a pass then visits groups in random order
            and shuffles rows within buffers. Classes are balanced within each buffer: over those
            that have members there.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        balanced_over: Sequence[np.ndarray] = (),
        storage: Storage | None = None,
    ) -> None:
        self.size = size
        self.seed = seed
        self._labelings = [np.asarray(labels) for labels in balanced_over] if storage else []
        self._members = [] if storage else [_Members(labels) for labels in balanced_over]
        self._storage = storage
        self._pass: tuple[int, Permutation | _Buffered] | None = None
        self._balance: tuple[tuple[int, int, int], np.ndarray, _Members | None] | None = None

    def rows(self, positions: np.ndarray, attempt: int = 0) -> np.ndarray:
        """The rows at ``positions``, int64.

        Args:
            positions: ``[n]`` integers, 0 or more.
            attempt: 0 for the row itself; 1, 2, ... for its substitutes when it is unreadable.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if self._members:
            return self._balanced(positions, attempt)
        if self._labelings:
            return np.array([self._in_buffer(int(p), attempt) for p in positions], np.int64)
        if attempt:
            key = derive_seed(self.seed, "substitute", attempt)
            return (hash_positions(positions, key) % np.uint64(self.size)).astype(np.int64)
        passes, offsets = np.divmod(positions, self.size)
        rows = np.empty_like(positions)
        for number in np.unique(passes):
            chosen = passes == number
            rows[chosen] = self._permutation(int(number))(offsets[chosen])
        return rows

    def _in_buffer(self, position: int, attempt: int) -> int:
        """The row at a position: a class that the position's buffer has, then a member there."""
        number, offset = divmod(position, self.size)
        buffered = self._permutation(number)
        assert isinstance(buffered, _Buffered)
        turn = position % len(self._labelings)
        place = number, offset // buffered.buffer, turn
        if self._balance is None or self._balance[0] != place:
            rows = buffered.rows_of(place[1])
            labels = self._labelings[turn][rows]
            members = _Members(labels) if (labels != IGNORE).any() else None
            self._balance = place, rows, members
        _, rows, members = self._balance
        at = np.array([position])
        first = hash_positions(at, derive_seed(self.seed, "class", attempt))
        second = hash_positions(at, derive_seed(self.seed, "member", attempt))
        chosen = second % np.uint64(len(rows)) if members is None else members.draw(first, second)
        return int(rows[int(chosen[0])])

    def _permutation(self, number: int) -> "Permutation | _Buffered":
        if self._pass is None or self._pass[0] != number:
            seed = derive_seed(self.seed, "pass", number)
            if self._storage is None:
                self._pass = (number, Permutation(self.size, seed))
            else:
                self._pass = (number, _Buffered(self._storage, seed))
        return self._pass[1]

    def _balanced(self, positions: np.ndarray, attempt: int) -> np.ndarray:
        first = hash_positions(positions, derive_seed(self.seed, "class", attempt))
        second = hash_positions(positions, derive_seed(self.seed, "member", attempt))
        rows = np.empty_like(positions)
        for turn, members in enumerate(self._members):
            chosen = positions % len(self._members) == turn
            rows[chosen] = members.draw(first[chosen], second[chosen])
        return rows


class _Buffered:
    """A permutation that reads nearly in order: groups shuffled, then rows within a buffer.

    The rows of all groups, group after group in random order, are a stream. It is cut into
    buffers, each of which is permuted. Unlike a buffer that is refilled row by row, this one has
    no history: any position is found at once.
    """

    def __init__(self, storage: Storage, seed: int) -> None:
        groups = np.asarray(storage.groups, np.int64)
        order = Permutation(len(groups), derive_seed(seed, "groups"))(np.arange(len(groups)))
        self._seed = seed
        self.buffer = storage.buffer
        self._ends = np.cumsum(groups[order])
        # What is to be added to a place in the stream to get the row.
        self._shifts = (np.cumsum(groups) - groups)[order] - (self._ends - groups[order])

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        buffers, within = np.divmod(positions, self.buffer)
        stream = np.empty_like(positions)
        for number in np.unique(buffers):
            first, count = self._span(int(number))
            chosen = buffers == number
            permutation = Permutation(count, derive_seed(self._seed, "buffer", int(number)))
            stream[chosen] = first + permutation(within[chosen])
        return self._rows(stream)

    def rows_of(self, number: int) -> np.ndarray:
        """All rows of a buffer, int64."""
        first, count = self._span(number)
        return self._rows(np.arange(first, first + count))

    def _span(self, number: int) -> tuple[int, int]:
        first = number * self.buffer
        return first, min(self.buffer, int(self._ends[-1]) - first)

    def _rows(self, stream: np.ndarray) -> np.ndarray:
        return stream + self._shifts[np.searchsorted(self._ends, stream, side="right")]


class _Members:
    """The rows of each class, as one array of rows and one of offsets."""

    def __init__(self, labels: np.ndarray) -> None:
        labels = np.asarray(labels)
        valid = np.flatnonzero(labels != IGNORE)
        if not len(valid):
            raise ValueError("cannot balance over a labeling in which every row is ignored")
        order = np.argsort(labels[valid], kind="stable")
        # int32 where it suffices: this array grows with the dataset.
        narrow = np.int32 if len(labels) < 2**31 else np.int64
        self._rows = valid[order].astype(narrow)
        _, self._starts, self._counts = np.unique(
            labels[self._rows], return_index=True, return_counts=True
        )

    def draw(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        classes = (first % np.uint64(len(self._starts))).astype(np.int64)
        members = (second % self._counts[classes].astype(np.uint64)).astype(np.int64)
        return self._rows[self._starts[classes] + members].astype(np.int64)
