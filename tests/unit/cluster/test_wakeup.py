from __future__ import annotations

import asyncio
import itertools

import pytest

from cluster import wakeup
from cluster.errors import ShuttingDown
from cluster.wakeup import WakeUp

FOR_EVER_S = 60.0


async def test_ring_between_ticket_and_wait_is_not_missed() -> None:
    wake_up = WakeUp()
    ticket = wake_up.ticket()
    await asyncio.to_thread(wake_up.ring)
    async with asyncio.timeout(5):
        await wake_up.wait(ticket, FOR_EVER_S)


async def test_everybody_is_woken() -> None:
    wake_up = WakeUp()
    ticket = wake_up.ticket()
    waiters = [asyncio.create_task(wake_up.wait(ticket, FOR_EVER_S)) for _ in range(3)]
    wake_up.ring()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiters)


async def test_wait_ends_without_a_ring() -> None:
    wake_up = WakeUp()
    async with asyncio.timeout(5):
        await wake_up.wait(wake_up.ticket(), 0.01)


async def test_close_ends_every_wait() -> None:
    wake_up = WakeUp()
    waiter = asyncio.create_task(wake_up.wait(wake_up.ticket(), FOR_EVER_S))
    await asyncio.sleep(0)
    wake_up.close()
    with pytest.raises(ShuttingDown):
        await waiter


@pytest.mark.parametrize("steps", range(5))
async def test_who_is_cancelled_at_a_ring_goes_all_the_same(steps: int) -> None:
    wake_up = WakeUp()
    waiter = asyncio.create_task(wake_up.wait(wake_up.ticket(), FOR_EVER_S))
    await asyncio.sleep(0.01)
    wake_up._ring()
    for _ in range(steps):
        await asyncio.sleep(0)
    if waiter.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waiter


async def test_rounds_take_a_share_of_the_time_while_it_rings_and_rings() -> None:
    wake_up, began = WakeUp(), list[float]()

    async def one() -> None:
        began.append(asyncio.get_running_loop().time())
        wake_up.ring()
        if len(began) == 4:
            wake_up.close()

    async with asyncio.timeout(5):
        await wake_up.rounds(one, FOR_EVER_S)
    pauses = [after - before for before, after in itertools.pairwise(began)]
    assert min(pauses) > 0.9 * wakeup._REST_S


async def test_the_first_ring_after_a_quiet_time_is_heard_at_once() -> None:
    wake_up, rounds = WakeUp(), asyncio.Semaphore(0)

    async def one() -> None:
        rounds.release()

    task = asyncio.create_task(wake_up.rounds(one, FOR_EVER_S))
    async with asyncio.timeout(5):
        await rounds.acquire()
        await asyncio.sleep(2 * wakeup._REST_S)
        for _ in range(3):  # each is heard long before the interval is over
            wake_up.ring()
            await rounds.acquire()
        wake_up.close()
        await task
