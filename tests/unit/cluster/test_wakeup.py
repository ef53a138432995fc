from __future__ import annotations

import asyncio

import pytest

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
