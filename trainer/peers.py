"""The workers of one learner, seen from one of them: rank, world, and the few things they agree on.

Thin over an existing torch.distributed process group; it starts none (the launcher does) and moves no objects:
numbers and JSON only, so that nothing is ever unpickled (I5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.device import compute_device


@dataclass(frozen=True)
class Peers:
    """`world` workers in lockstep; every method of one is collective, `is_first` apart."""

    rank: int
    world: int

    @staticmethod
    def alone() -> Peers:
        return Peers(rank=0, world=1)

    @staticmethod
    def of_process_group() -> Peers:
        """The peers of the default process group; alone when there is none."""
        if not dist.is_initialized():
            return Peers.alone()
        return Peers(rank=dist.get_rank(), world=dist.get_world_size())

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            self.sum([0.0])

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all peers, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM) if self.world > 1 else [float(value) for value in values]

    def max(self, value: float) -> int:
        """The largest whole number among the peers'."""
        return int(self.largest(value))

    def largest(self, value: float) -> float:
        return self._reduce([value], dist.ReduceOp.MAX)[0] if self.world > 1 else value

    def any(self, flag: bool) -> bool:
        """Whether any peer says so."""
        return self.sum([float(flag)])[0] > 0

    def broadcast(self, document: Any) -> Any:
        """The first peer's JSON document, on every peer; the others' is ignored."""
        if self.world == 1:
            return document
        text = json.dumps(document).encode() if self.is_first else b""
        length = int(self.sum([len(text)])[0])
        buffer = torch.zeros(length, dtype=torch.uint8)
        if self.is_first:
            buffer.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        shared = buffer.to(_device_of_group())
        dist.broadcast(shared, src=0)
        return json.loads(bytes(shared.cpu().tolist()))

    def gather(self, rows_SD: Tensor) -> Tensor:
        """The rows of all peers, in their order; only this peer's own carry a gradient."""
        if self.world == 1:
            return rows_SD
        counts = [int(count) for count in self.sum([len(rows_SD) * (rank == self.rank) for rank in range(self.world)])]
        sent = rows_SD.new_zeros((max(counts), rows_SD.shape[1]), device=_device_of_group())
        sent[: len(rows_SD)] = rows_SD.detach()
        parts = [torch.empty_like(sent) for _ in counts]
        dist.all_gather(parts, sent)
        found = [part[:count].to(rows_SD.device) for part, count in zip(parts, counts, strict=True)]
        return torch.cat([*found[: self.rank], rows_SD, *found[self.rank + 1 :]])

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        shared: Tensor = torch.tensor(list(values), dtype=torch.float64, device=_device_of_group())
        dist.all_reduce(shared, op=operation)
        return [float(value) for value in shared.tolist()]


def _device_of_group() -> torch.device:
    """NCCL reduces on the GPU, gloo on the CPU."""
    return compute_device() if dist.get_backend() == "nccl" else torch.device("cpu")
