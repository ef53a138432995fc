"""The torch.distributed group of a few Ray processes: rank 0 holds the store where they meet, on a port it was given.

Who tells the others the address is the affair of each group.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_JOIN_TIMEOUT = timedelta(minutes=5)
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Meeting:
    """The store of a group, as one process holds it."""

    store: Any
    host: str

    @property
    def address(self) -> str:
        return f"{self.host}:{self.store.port}"

    @classmethod
    def open(cls, host: str) -> Meeting:
        """On a free port of this process: rank 0's part."""
        return cls(_store(host, 0, is_master=True), host)

    @classmethod
    def find(cls, address: str) -> Meeting:
        """At `host:port`: the others' part."""
        host, port = address.rsplit(":", 1)
        return cls(_store(host, int(port), is_master=False), host)


def join(meeting: Meeting, rank: int, world: int) -> None:
    """Makes this process rank `rank` of the default group: NCCL between GPUs, gloo between CPUs."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(0)
    # Ray shows each process its own GPUs alone, so the local rank is 0 everywhere.
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "MASTER_ADDR": meeting.host}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_PORT=str(meeting.store.port))
    backend = "nccl" if has_gpu else "gloo"
    dist.init_process_group(backend, store=meeting.store, rank=rank, world_size=world, timeout=_COLLECTIVE_TIMEOUT)


def use_threads(num_cpus: float) -> None:
    """As many compute threads as whole CPUs are reserved; one for a share of a CPU."""
    torch.set_num_threads(max(1, int(num_cpus)))


def _store(host: str, port: int, *, is_master: bool) -> Any:
    store = dist.TCPStore  # type: ignore[attr-defined]
    return store(host, port, is_master=is_master, wait_for_workers=False, timeout=_JOIN_TIMEOUT)
