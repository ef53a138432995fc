"""The teacher on Ray: N shard actors in one placement group, and the gateway actor that alone dispatches to them.

The gateway owns the shards: they end with it, and it starts them again when they are lost. It carries references and
never opens a parcel, so it needs no torch and moves no tensor (I6).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.driver.teacher_dispatch import Answer, Dispatcher, Operation, Policy, Replicas, ShardLost
from cluster.driver.teacher_shard import Load, TeacherShard
from trainer.errors import TrainerError

log = logging.getLogger(__name__)

_GATEWAY_RESTARTS = 3


@dataclass(frozen=True)
class TeacherPlan:
    """What a teacher group consists of."""

    load: Load
    shards: int
    cpus_per_shard: float
    gpus_per_shard: float = 0.0
    replicas: int = 1
    """Groups of `shards` actors that answer side by side."""
    index: int = 0
    """Among the different teachers of the job."""
    policy: Policy = field(default_factory=Policy)
    logs: Sequence[Path] = ()
    """Where each actor copies what it prints; without one for each, none does."""

    @property
    def num_actors(self) -> int:
        return self.shards * self.replicas


def gateway_name(index: int) -> str:
    return f"teacher-{index}-gateway"


class RayShards:
    """A `ShardGroup` of actors: one replica of the teacher."""

    def __init__(self, plan: TeacherPlan, place: PlacementGroup, replica: int) -> None:
        self._plan = plan
        self._place = place
        self._replica = replica
        self._actors: list[ActorHandle] = []
        self._generation = 0

    @property
    def num_shards(self) -> int:
        return self._plan.shards

    async def start(self) -> None:
        self._generation += 1
        self._actors = [self._start_shard(rank) for rank in range(self.num_shards)]
        (address,) = await _all([self._actors[0].open_meeting.remote()]) if self.num_shards > 1 else [""]
        await _all(actor.load.remote(address) for actor in self._actors)
        log.info("teacher ready: %d shard(s)", self.num_shards)

    async def answer(self, operation: Operation, parcels: Sequence[Any | None]) -> Sequence[Answer]:
        return await _all(
            actor.answer.remote(operation, parcel) for actor, parcel in zip(self._actors, parcels, strict=True)
        )

    def stop(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _start_shard(self, rank: int) -> ActorHandle:
        suffix = "" if self._generation == 1 else f"-restart-{self._generation - 1}"
        plan = self._plan
        bundle = self._replica * plan.shards + rank
        options = {
            "name": f"teacher-{plan.index}-{bundle}{suffix}",
            "num_cpus": plan.cpus_per_shard,
            "num_gpus": plan.gpus_per_shard,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._place, placement_group_bundle_index=bundle),
        }
        log_path = plan.logs[bundle] if plan.logs else None
        shard = ray.remote(TeacherShard).options(**options)
        return shard.remote(rank, plan.shards, plan.cpus_per_shard, plan.load, log_path)


async def _all(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """All results, or the first error: the teacher's own words as they are, everything else as ShardLost."""
    try:
        return await asyncio.gather(*calls)
    except RayTaskError as error:
        if isinstance(error.cause, TrainerError):
            raise error.cause from None
        raise ShardLost("SHARD_FAILED", _last_line(error)) from error
    except RayError as error:
        raise ShardLost("SHARD_LOST", _last_line(error)) from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class TeacherGateway:
    """Async actor: a dispatcher for each replica, reachable from every student worker."""

    def __init__(self, plan: TeacherPlan, place: PlacementGroup) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self._num_shards = plan.num_actors
        self._dispatchers = [Dispatcher(RayShards(plan, place, at), plan.policy) for at in range(plan.replicas)]
        self._replicas = Replicas(self._dispatchers)
        self._running: list[asyncio.Task[None]] = []

    async def num_shards(self) -> int:
        """Of all replicas. Begins to load the teacher, if that has not begun, without waiting for it."""
        if not self._running:
            loop = asyncio.get_running_loop()
            self._running = [loop.create_task(dispatcher.run()) for dispatcher in self._dispatchers]
        return self._num_shards

    async def ask(self, operation: Operation, parcel: list[ray.ObjectRef]) -> Answer:
        """`[reference of the question]` -> `[reference of the answer]`."""
        await self.num_shards()
        return await self._replicas.ask(operation, parcel)


@dataclass(frozen=True)
class TeacherGroup:
    """A teacher that runs; it ends with `stop`, and with its driver. Keep it: Ray ends actors that nobody holds."""

    gateway: ActorHandle
    place: PlacementGroup

    def stop(self) -> None:
        ray.kill(self.gateway)
        remove_placement_group(self.place)


def start_teacher(plan: TeacherPlan) -> TeacherGroup:
    """Returns at once, while the group goes on loading."""
    bundle = {"CPU": plan.cpus_per_shard, "GPU": plan.gpus_per_shard}
    bundles = [{name: amount for name, amount in bundle.items() if amount} for _ in range(plan.num_actors)]
    place = placement_group(bundles, strategy="PACK", name=f"teacher-{plan.index}")
    gateway = (
        ray.remote(TeacherGateway)
        .options(name=gateway_name(plan.index), num_cpus=0, max_restarts=_GATEWAY_RESTARTS, max_task_retries=-1)
        .remote(plan, place)
    )
    gateway.num_shards.remote()
    return TeacherGroup(gateway, place)
