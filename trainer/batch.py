"""Samples to tensors: one micro-batch, right-padded, with every sample of a row kept apart from its neighbours (I3).

Shapes: B rows, T positions of a row (a multiple of 8), N positions whose next token is learned.
It does not choose samples (`order.py`) and does not know models.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

NOT_LEARNED = -100
"""Label of a position that is not learned (the convention of Hugging Face; labels are aligned, not shifted)."""
ROW_MULTIPLE = 8
"""Rows are padded to a multiple of this many positions."""


class Sample(TypedDict):
    """One tokenised sample; `labels[t]` is `input_ids[t]` where that token is learned, else NOT_LEARNED."""

    sample_id: int
    input_ids: list[int]
    labels: list[int]
    teacher: NotRequired[int]
    """Place in `teachers` of the one that teaches this sample, where each has its own; else 0."""


class Piece(NamedTuple):
    """Tokens `start` to `end` - 1 of a sample: all of it, or what lies on one side of a cut."""

    sample_index: int
    start: int
    end: int


@dataclass(frozen=True)
class Batch:
    """What one worker holds at once."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    """From 0 in every sample, and in every piece of a sample that is cut."""
    segment_ids_BT: Tensor
    """0 is padding, 1.. the sample's place in its row."""
    rows_N: Tensor
    """b * T + t for each position t whose next token is learned, in ascending order."""
    target_ids_N: Tensor
    """That next token; it is always of the same sample."""
    sample_ids: tuple[int, ...]
    """Row by row, in the order of the segments; once for each piece of a sample that is cut."""
    teachers: tuple[int, ...] = ()
    """Of each sample, as in `Sample`."""

    @property
    def num_targets(self) -> int:
        return self.rows_N.numel()

    def is_packed(self) -> bool:
        return bool((self.segment_ids_BT > 1).any())

    def owners_N(self) -> Tensor:
        """For each learned position, the index into `sample_ids` of the sample it belongs to."""
        return self._owners_BT().flatten()[self.rows_N]

    def taught_by(self, teachers: Collection[int]) -> tuple[Batch, Tensor]:
        """Their samples alone, in rows as short as they allow, and which of the N positions are theirs (ascending)."""
        mine = [teacher in teachers for teacher in self.teachers]
        per_row_B = self.segment_ids_BT.amax(dim=1).tolist()
        firsts = [0, *itertools.accumulate(per_row_B)]
        lines = [[at for at in range(first, end) if mine[at]] for first, end in itertools.pairwise(firsts)]
        rows_M = torch.tensor(mine, dtype=torch.bool)[self.owners_N()].nonzero()[:, 0]
        return collate([line for line in lines if line], self._samples(), pad_id=0), rows_M

    def _samples(self) -> list[Sample]:
        """What `collate` was given."""
        labels_BT = torch.full_like(self.input_ids_BT, NOT_LEARNED)
        labels_BT.view(-1)[self.rows_N + 1] = self.target_ids_N
        owners_BT = torch.where(self.segment_ids_BT > 0, self._owners_BT(), -1)
        found: list[Sample] = []
        for at, (sample_id, teacher) in enumerate(zip(self.sample_ids, self.teachers, strict=True)):
            ids, labels = self.input_ids_BT[owners_BT == at].tolist(), labels_BT[owners_BT == at].tolist()
            found.append(Sample(sample_id=sample_id, input_ids=ids, labels=labels, teacher=teacher))
        return found

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.input_ids_BT.to(device),
            self.position_ids_BT.to(device),
            self.segment_ids_BT.to(device),
            self.rows_N.to(device),
            self.target_ids_N.to(device),
            self.sample_ids,
            self.teachers,
        )

    def _owners_BT(self) -> Tensor:
        """For each position the index of its sample; of padding that of the sample before its row's first."""
        per_row_B = self.segment_ids_BT.amax(dim=1)
        first_B = per_row_B.cumsum(0) - per_row_B
        return first_B[:, None] + self.segment_ids_BT - 1


def padded_length(length: int) -> int:
    """The length of a row that holds `length` tokens."""
    return max(1, -(-length // ROW_MULTIPLE)) * ROW_MULTIPLE


def num_targets(sample: Sample) -> int:
    """Learned tokens of a sample that lies whole in its row; its first token is none of them."""
    return sum(label != NOT_LEARNED for label in sample["labels"][1:])


def piece_of(sample: Sample, piece: Piece) -> Sample:
    """As a sample of its own, whose first token is not learned: nothing stands before it any more."""
    _, start, end = piece
    return {**sample, "input_ids": sample["input_ids"][start:end], "labels": sample["labels"][start:end]}


def collate(rows: Sequence[Sequence[int | Piece]], samples: Sequence[Sample], pad_id: int) -> Batch:
    """`rows[b]` lie in row b one after the other: pieces, or indices into `samples` for whole ones.

    No rows give `empty_batch`.
    """
    if not rows:
        return empty_batch(pad_id)
    lines = [
        [piece_of(samples[at.sample_index], at) if isinstance(at, Piece) else samples[at] for at in row] for row in rows
    ]
    length = padded_length(max(sum(len(sample["input_ids"]) for sample in line) for line in lines))
    input_ids = torch.full((len(lines), length), pad_id, dtype=torch.long)
    targets = torch.full_like(input_ids, NOT_LEARNED)
    positions, segments = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    for b, line in enumerate(lines):
        start = 0
        for segment, sample in enumerate(line, start=1):
            end = start + len(sample["input_ids"])
            input_ids[b, start:end] = torch.tensor(sample["input_ids"])
            positions[b, start:end] = torch.arange(end - start)
            segments[b, start:end] = segment
            targets[b, start : end - 1] = torch.tensor(sample["labels"][1:])
            start = end
    flat = targets.flatten()
    rows_N = (flat != NOT_LEARNED).nonzero()[:, 0]
    ids = tuple(sample["sample_id"] for line in lines for sample in line)
    teachers = tuple(sample.get("teacher", 0) for line in lines for sample in line)
    return Batch(input_ids, positions, segments, rows_N, flat[rows_N], ids, teachers)


def empty_batch(pad_id: int) -> Batch:
    """One row of padding, nothing learned: what an idle worker runs to stay in step with the others."""
    zeros = torch.zeros((1, ROW_MULTIPLE), dtype=torch.long)
    nothing = torch.zeros(0, dtype=torch.long)
    return Batch(torch.full_like(zeros, pad_id), zeros, zeros, nothing, nothing, ())
