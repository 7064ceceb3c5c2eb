"""The order of training: a pure function of (seed, epoch, position), for any number of processes and any start.

An epoch shuffles the shards, cuts them into windows, and permutes the samples of each window. The permutation is
computed only for the positions asked for: one of 1,024 processes pays for its own samples (0.3 µs each, where numpy's
permutation of whole windows costs 16 µs), and a training resumes at any position at once.
"""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt64

from groupvit.errors import InputError

WINDOW = 32
"""Shards whose samples are mixed with each other."""

_ROUNDS = np.arange(6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 4096  # numpy's cost per call is spread over this many positions


def _mix(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of splitmix64 (Steele et al., 2014): every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(
    index: UInt64[np.ndarray, " n"], size: UInt64[np.ndarray, " n"], key: UInt64[np.ndarray, " n"]
) -> UInt64[np.ndarray, " n"]:
    """Return the place of `index` in the permutation of range(size) that `key` names.

    This is a Feistel network over a square of at least `size` cells. An index that lands beyond `size` is permuted
    again until it is inside (Black and Rogaway, 2002).
    """
    side = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    side += side * side < size  # the root of a number beyond 2**53 may be one too small
    result, walking = index.copy(), np.arange(len(index))
    while len(walking):
        width, keys = side[walking], key[walking]
        left, right = np.divmod(result[walking], width)
        for offset in _ROUNDS:
            left, right = right, (left + _mix(right + keys + offset)) % width
        result[walking] = left * width + right
        walking = walking[result[walking] >= size[walking]]
    return result


class Order:
    """The order of shards with `counts` samples each under a seed; positions run on from epoch to epoch."""

    def __init__(self, counts: Int64[np.ndarray, " shards"], seed: int, *, window: int = WINDOW):
        self.counts = counts
        self.seed = seed
        self.window = window
        self.samples = int(counts.sum())
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, "_"], ...]:
        """Return the shards of an epoch in their order, and the first position of each and of each window of them."""
        shards = np.random.default_rng([self.seed, epoch]).permutation(len(self.counts))
        starts = np.concatenate([[0], np.cumsum(self.counts[shards])])
        return shards, starts, np.append(starts[: -1 : self.window], self.samples)

    def __call__(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "n 3"]:
        """Return epoch, shard and row of each position."""
        epochs, within = np.divmod(positions, self.samples)
        places = np.empty((len(positions), 3), dtype=np.int64)
        places[:, 0] = epochs
        for epoch in np.unique(epochs):
            places[epochs == epoch, 1:] = self._of_epoch(int(epoch), within[epochs == epoch])
        return places

    def _of_epoch(self, epoch: int, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "n 2"]:
        shards, starts, windows = self._epoch(epoch)
        window = np.searchsorted(windows, positions, side="right") - 1
        first = windows[window]
        size = windows[window + 1] - first
        base = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)
        keys = _mix(base + window.astype(np.uint64))
        mixed = first + permute((positions - first).astype(np.uint64), size.astype(np.uint64), keys).astype(np.int64)
        place = np.searchsorted(starts, mixed, side="right") - 1
        return np.stack([shards[place], mixed - starts[place]], axis=1)


class BatchSampler:
    """Endless batches of (epoch, shard, row) for one of `world` processes, from position `start` on.

    Batch n of all processes holds the positions from n x `batch_size` on, and each process takes an equal share.
    Batches may span two epochs, and nothing is repeated or lost when `world` changes between two of them.
    """

    def __init__(self, order: Order, batch_size: int, *, start: int = 0, rank: int = 0, world: int = 1):
        if batch_size % world:
            raise InputError(f"a batch of {batch_size} cannot be shared equally by {world} processes")
        self.order = order
        self.batch_size = batch_size
        self.share = batch_size // world
        self.start = start
        self.offsets = np.arange(self.share) + rank * self.share

    def __iter__(self) -> Iterator[Int64[np.ndarray, "batch 3"]]:
        batches = -(-min(_BLOCK, self.order.samples) // self.share)
        for first in range(self.start, 2**62, batches * self.batch_size):
            positions = first + np.arange(batches)[:, None] * self.batch_size + self.offsets
            yield from self.order(positions.ravel()).reshape(batches, self.share, 3)
