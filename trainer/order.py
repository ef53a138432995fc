"""Which samples make up global step s: a pure function of (lengths, seed, settings), for any number of workers (I2).

Nothing is remembered from step to step, so a resumed job asks for step s and gets what it would have got. An epoch
takes every token of every sample once. Randomness is the raw stream of Philox, which numpy promises never to change.
It reads no data; turning indices into tensors is `batch.collate`'s.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from trainer.batch import Piece, padded_length
from trainer.packing import Row, best_fit_decreasing, wrap

_SAMPLES, _BATCHES, _SUBSET = range(3)
_BATCHES_PER_WINDOW = 8
"""Rows are sorted by length inside a window of about so many batches: less padding, still a random order."""


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one optimizer step over all workers; each row lists the samples packed in it, or pieces of them."""

    epoch: int
    rows: tuple[Row, ...]

    @property
    def sample_ids(self) -> tuple[int, ...]:
        """One for each piece, row by row."""
        return tuple(piece.sample_index for row in self.rows for piece in row)


def permutation(count: int, *, seed: int, epoch: int, stream: int) -> list[int]:
    """0..count-1 in the order that (seed, epoch, stream) gives."""
    generator = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64), counter=[0, 0, 0, stream])
    order: list[int] = np.argsort(generator.random_raw(count), kind="stable").tolist()
    return order


def choose(count: int, wanted: int | None, *, seed: int) -> list[int]:
    """Which of `count` rows a job with `max_samples: wanted` takes, in ascending order."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted(permutation(count, seed=seed, epoch=0, stream=_SUBSET)[:wanted])


class SampleOrder:
    """Every sample has an index from 0; `lengths` are their tokens, none over `max_length`."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        seed: int,
        batch_tokens: int,
        max_length: int,
        packing_strategy: Literal["none", "bfd", "wrapped"] = "none",
    ) -> None:
        if not lengths or min(lengths) < 1 or max(lengths) > max_length:
            raise ValueError(f"lengths must be there and between 1 and max_length={max_length}")
        self._lengths = tuple(lengths)
        self._whole = tuple(Piece(index, 0, length) for index, length in enumerate(lengths))
        self._seed = seed
        self._batch_tokens = batch_tokens
        self._max_length = max_length
        self._packing_strategy = packing_strategy
        self._first_steps = [0]
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def steps_per_epoch(self, epoch: int) -> int:
        return len(self._epoch(epoch))

    def steps_for_epochs(self, num_epochs: float) -> int:
        """Optimizer steps of `num_epochs`, whole or not: the last, partial epoch is rounded up to a whole step."""
        whole = int(num_epochs)
        rest = num_epochs - whole
        last = math.ceil(rest * self.steps_per_epoch(whole)) if rest > 0 else 0
        return self._first_step(whole) + last

    def global_batch(self, step: int) -> GlobalBatch:
        """The rows of global step `step` (from 0), which may lie in any epoch."""
        while self._first_steps[-1] <= step:
            self._first_step(len(self._first_steps))
        epoch = bisect_right(self._first_steps, step) - 1
        return GlobalBatch(epoch, self._epoch(epoch)[step - self._first_step(epoch)])

    def num_tokens(self, step: int) -> int:
        """Of a global step, padding not counted."""
        return sum(map(self._length, self.global_batch(step).rows))

    def micro_batches(self, step: int, rank: int, world: int, micro_batch_tokens: int) -> list[list[Row]]:
        """This rank's share of the step; every rank gets the same number of micro-batches, some of them empty."""
        rows = self.global_batch(step).rows
        shares = [self._cut(rows[r::world], micro_batch_tokens) for r in range(world)]
        most = max(len(share) for share in shares)
        mine = [list(micro_batch) for micro_batch in shares[rank]]
        return mine + [[] for _ in range(most - len(mine))]

    def is_whole(self, piece: Piece) -> bool:
        """Whether no cut was made in its sample."""
        return piece == self._whole[piece.sample_index]

    def _first_step(self, epoch: int) -> int:
        while len(self._first_steps) <= epoch:
            done = len(self._first_steps) - 1
            self._first_steps.append(self._first_steps[done] + self.steps_per_epoch(done))
        return self._first_steps[epoch]

    def _make_epoch(self, epoch: int) -> tuple[tuple[Row, ...], ...]:
        """The global batches of one epoch."""
        order = permutation(len(self._lengths), seed=self._seed, epoch=epoch, stream=_SAMPLES)
        batches = list(self._cut(self._bucketed(self._rows(order)), self._batch_tokens))
        shuffled = permutation(len(batches), seed=self._seed, epoch=epoch, stream=_BATCHES)
        return tuple(tuple(batches[place]) for place in shuffled)

    def _rows(self, order: list[int]) -> list[Row]:
        """Samples to rows, in random order."""
        if self._packing_strategy == "wrapped":
            return wrap(self._lengths, order, self._max_length)
        if self._packing_strategy == "none":
            return [(self._whole[index],) for index in order]
        place = {index: at for at, index in enumerate(order)}
        packed = best_fit_decreasing(self._lengths, order, self._max_length)
        packed.sort(key=lambda row: place[row[0]])
        return [tuple(self._whole[index] for index in row) for row in packed]

    def _bucketed(self, rows: list[Row]) -> list[Row]:
        """Rows sorted by length inside windows, up and down in turn, so that neighbours are of like length."""
        mean = padded_length(math.ceil(sum(self._lengths) / len(rows)))
        window = _BATCHES_PER_WINDOW * max(1, self._batch_tokens // mean)
        windows = [rows[start : start + window] for start in range(0, len(rows), window)]
        return [row for at, some in enumerate(windows) for row in sorted(some, key=self._length, reverse=at % 2 == 1)]

    def _length(self, row: Row) -> int:
        return sum(piece.end - piece.start for piece in row)

    def _cut(self, rows: Iterable[Row], tokens: int) -> list[list[Row]]:
        """Greedy: a batch takes the next row while (padded length of its longest) x (its rows) is within `tokens`."""
        batches: list[list[Row]] = []
        longest = 0
        for row in rows:
            longest = max(longest, padded_length(self._length(row)))
            if not batches or longest * (len(batches[-1]) + 1) > tokens:
                batches.append([])
                longest = padded_length(self._length(row))
            batches[-1].append(row)
        return batches
