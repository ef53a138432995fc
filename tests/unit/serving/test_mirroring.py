"""What is asked in the dark, however busy whoever compares is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fake_backends import CANARY, Scripted, table, whole

from serving.backend import BackendRequest
from serving.mirroring import Mirroring, Outcome

REQUEST = BackendRequest("POST", "/v1/completions", (), b"{}", "r")


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def started(mirroring: Mirroring, num: int, app: str = CANARY) -> None:
    route = table(10_000, 0).routes[0]
    stable, canary = route.backends
    canary = canary.model_copy(update={"app": app})
    for _ in range(num):
        mirroring.start(route, canary, REQUEST, Outcome(stable, 200, {0: (1,)}, 0.1, 0.2, True))


async def test_a_busy_judge_takes_no_load_off_the_canary():
    """Else its latency under few requests would be compared with the other's under all."""
    free, pairs = asyncio.Event(), []

    async def compare(pair):
        pairs.append(pair)
        await free.wait()

    backends = Scripted(*whole(200))
    mirroring = Mirroring(backends, compare, most_asked=4, most_compared=2)
    for _ in range(3):
        started(mirroring, 4)
        asked = len(backends.calls)
        await until(lambda asked=asked: len(backends.calls) == asked + 4)
        await until(lambda: len(mirroring._running) == 2)
    assert [app for app, _ in backends.calls] == [CANARY] * 12
    assert (len(pairs), mirroring.not_compared, mirroring.left_out) == (2, 10, 0)
    free.set()
    await until(lambda: not mirroring._running)
    started(mirroring, 1)
    await until(lambda: len(pairs) == 3)
    await mirroring.aclose()


async def test_a_judge_that_hangs_and_a_canary_that_hangs_take_no_place_of_another_canary():
    """Each has its own places: to be asked in the dark, and to be compared."""
    pairs = []

    class OneHangs(Scripted):
        async def call(self, app, request):
            if app == "hangs":
                await asyncio.Event().wait()
            async for item in super().call(app, request):
                yield item

    async def compare(pair):
        pairs.append(pair.canary.backend.app)
        if pair.canary.backend.app == "not compared":
            await asyncio.Event().wait()

    mirroring = Mirroring(OneHangs(*whole(200)), compare, most_asked=2, most_compared=2)
    for app in ("hangs", "not compared", CANARY):
        started(mirroring, 2, app)
    await until(lambda: len(pairs) == 4)
    started(mirroring, 1, "hangs")
    started(mirroring, 2, "not compared")
    await until(lambda: mirroring.not_compared == 2)
    started(mirroring, 1)
    await until(lambda: len(pairs) == 5)
    assert (pairs[-1], mirroring.left_out) == (CANARY, 1)
    await mirroring.aclose()


async def test_a_canary_has_the_time_that_the_request_has():
    class Hangs(Scripted):
        async def call(self, app, request):
            self.calls.append((app, request))
            await asyncio.Event().wait()
            yield

    pairs = asyncio.Queue()
    mirroring = Mirroring(Hangs(), pairs.put)
    route = table(10_000, 0).routes[0]
    stable, canary = route.backends
    hurried = replace(REQUEST, deadline_s=0.01)
    mirroring.start(route, canary, hurried, Outcome(stable, 200, {0: (1,)}, 0.1, 0.2, True))
    async with asyncio.timeout(30):
        pair = await pairs.get()
    assert (pair.canary.status, pair.canary.is_whole, pair.canary.error) == (0, False, "no answer in time")
    await mirroring.aclose()


async def test_beyond_a_number_at_once_requests_are_left_out():
    class Hangs(Scripted):
        async def call(self, app, request):
            self.calls.append((app, request))
            await asyncio.Event().wait()
            yield

    backends, pairs = Hangs(), asyncio.Queue()
    mirroring = Mirroring(backends, pairs.put, most_asked=2)
    started(mirroring, 5)
    await until(lambda: len(backends.calls) == 2)
    assert mirroring.left_out == 3
    await mirroring.aclose()
    assert pairs.empty()


async def test_what_breaks_when_a_pair_is_handed_over_is_logged_under_the_requests_id(caplog):
    async def breaks(_):
        raise ValueError("broken")

    mirroring = Mirroring(Scripted(*whole(200)), breaks)
    started(mirroring, 1)
    await until(lambda: not mirroring._running)
    assert "request r was mirrored and could not be handed over" in caplog.text
