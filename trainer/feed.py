"""Micro-batches of one worker with the teacher's answers beside them, asked ahead and used in order.

How far ahead (`prefetch_depth`) changes waiting, never results. Which samples come when is `order.py`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from trainer.batch import Batch, Piece, Sample, collate, num_targets, piece_of
from trainer.faculty import Answered
from trainer.order import SampleOrder
from trainer.packing import Row
from trainer.peers import Peers
from trainer.samples import Samples

_PROBE_SAMPLES, _PROBE_TOKENS = 4, 64


@dataclass(frozen=True)
class MicroBatch:
    """What one worker holds at once in step `step`."""

    step: int
    place: int
    last: bool
    batch: Batch


@dataclass
class Feed:
    """Everything one worker reads, in order, from any step on."""

    samples: Samples | Sequence[Sample]
    order: SampleOrder
    peers: Peers
    micro_batch_tokens: int
    pad_id: int
    _targets: dict[int, int] = field(default_factory=dict)
    """Of the step that was last asked about."""

    def micro_batches(self, first_step: int, total_steps: int) -> Iterator[MicroBatch]:
        for step in range(first_step, total_steps):
            rows = self._rows(step, self.peers.rank)
            for place, micro_rows in enumerate(rows):
                batch = collate(micro_rows, self.samples, self.pad_id)
                yield MicroBatch(step, place, place == len(rows) - 1, batch)

    def probe(self) -> Batch:
        """The ends of a few real samples with something to learn, the same on every worker."""
        pieces = [piece for row in self.order.global_batch(0).rows for piece in row]
        learned = [short for piece in pieces if self._num_targets(short := _end_of(piece))][:_PROBE_SAMPLES]
        return collate([[piece] for piece in learned], self.samples, self.pad_id)

    def num_targets(self, step: int) -> int:
        """Learned positions of the step over all workers: what sums are divided by (I3); at least 1."""
        if step not in self._targets:
            pieces = (piece for row in self.order.global_batch(step).rows for piece in row)
            self._targets = {step: max(1, sum(map(self._num_targets, pieces)))}
        return self._targets[step]

    def num_tokens(self, step: int) -> int:
        """Tokens of the step over all workers, padding not counted."""
        return self.order.num_tokens(step)

    def sample_ids(self, step: int, rank: int, place: int) -> tuple[int, ...]:
        """Of one micro-batch of any worker."""
        rows = self._rows(step, rank)[place]
        return tuple(self.samples[index]["sample_id"] for row in rows for index, _, _ in row)

    def num_places(self, step: int) -> int:
        """Micro-batches of the step; the same on every worker."""
        return len(self._rows(step, self.peers.rank))

    def _rows(self, step: int, rank: int) -> list[list[Row]]:
        return self.order.micro_batches(step, rank, self.peers.world, self.micro_batch_tokens)

    def _num_targets(self, piece: Piece) -> int:
        """Kept on disk for whole samples; what is cut is counted, and there are two such pieces to a row at most."""
        if not isinstance(self.samples, Samples):
            return num_targets(piece_of(self.samples[piece.sample_index], piece))
        if self.order.is_whole(piece):
            return self.samples.num_targets[piece.sample_index]
        return self.samples.num_targets_of(piece)


def _end_of(piece: Piece) -> Piece:
    """Of a long one the last tokens, where answers stand."""
    return piece._replace(start=max(piece.start, piece.end - _PROBE_TOKENS))


def no_answers(_batch: Batch) -> Callable[[], list[Answered]]:
    """Of a learner without teachers."""
    return list


def with_answers(
    micro_batches: Iterator[MicroBatch], ask: Callable[[Batch], Callable[[], list[Answered]]], prefetch_depth: int
) -> Iterator[tuple[MicroBatch, list[Answered]]]:
    """Each micro-batch with the teachers' answers; `prefetch_depth` later ones are already asked for."""
    asked: deque[tuple[MicroBatch, Callable[[], list[Answered]]]] = deque()
    for micro_batch in micro_batches:
        asked.append((micro_batch, ask(micro_batch.batch)))
        if len(asked) > prefetch_depth:
            first, answer = asked.popleft()
            yield first, answer()
    yield from ((micro_batch, answer()) for micro_batch, answer in asked)
