"""A followed log goes on after the terminal record, until the control plane knows that its driver is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from athanor.v1 import job_service_pb2
from fakes import World

from cluster.services import logs


class Steps:
    """In the place of the bell: each wait makes the next step of the story."""

    def __init__(self, *steps: Callable[[], Awaitable[None]]) -> None:
        self._steps = list(steps)

    def ticket(self) -> object:
        return object()

    async def sleep(self, _seconds: float) -> None:
        if self._steps:
            await self._steps.pop(0)()


async def test_the_tail_after_the_terminal_record_is_not_lost(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    log = driver.path.with_name("driver.log")
    log.write_text("step 1\n")
    await driver.report(driver.record("USER_ERROR", reason="DATA_EMPTY"))

    async def last_words() -> None:
        with log.open("a") as file:
            file.write("Traceback: no rows\n")

    async def released() -> None:
        await last_words()
        driver.exit()
        await world.rounds()

    request = job_service_pb2.StreamJobLogsRequest(uid=uid, follow=True)
    pieces = logs.stream(world.settings, world.store, Steps(last_words, released), request)
    assert b"".join([piece.data async for piece in pieces]) == b"step 1\n" + 2 * b"Traceback: no rows\n"


async def test_a_process_that_does_not_end_keeps_nobody_waiting(world: World, monkeypatch) -> None:
    monkeypatch.setattr(logs, "_QUIET_S", 0.0)
    uid = world.create()
    driver = await world.running(uid)
    await driver.report(driver.record("SUCCEEDED"))
    request = job_service_pb2.StreamJobLogsRequest(uid=uid, follow=True)
    assert [piece async for piece in logs.stream(world.settings, world.store, Steps(), request)] == []
