from __future__ import annotations

import asyncio
import threading

from fakes import World

from cluster.lifecycle import State
from cluster.security.caller import ANYBODY, Caller, Role, caller, calling
from cluster.services.file_work import on_files
from cluster.services.visible import Look
from cluster.store.records import Change


async def test_a_storage_that_hangs_keeps_nobody_waiting_who_asks_the_store(world: World) -> None:
    uid, may_end = world.create(), threading.Event()
    hanging = [asyncio.create_task(on_files(may_end.wait, 60.0)) for _ in range(100)]
    try:
        async with asyncio.timeout(30):
            for _ in range(20):
                assert (await asyncio.to_thread(world.store.get_job, uid)).state is State.QUEUED
    finally:
        may_end.set()
    assert all(await asyncio.gather(*hanging))


async def test_it_knows_who_calls() -> None:
    with calling(Caller("ann", Role.VIEWER)):
        assert (await on_files(caller)).name == "ann"


async def test_a_job_is_read_again_when_something_changed_and_not_at_every_look(world: World) -> None:
    uid, reads, get_job = world.create(), list[str](), world.store.get_job
    world.store.get_job = lambda uid: reads.append(uid) or get_job(uid)  # type: ignore[method-assign, func-returns-value]
    look, ticket = Look(world.store, ANYBODY, uid), asyncio.Event()
    for _ in range(50):
        assert (await look.job(ticket)).state is State.QUEUED
    assert len(reads) == 1
    world.store.transition(get_job(uid), Change("CANCEL_ASKED", "", State.CANCELLING))
    assert (await look.job(asyncio.Event())).state is State.CANCELLING
    assert len(reads) == 2
