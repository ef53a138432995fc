"""A judge that does not answer keeps no other judge from what it must know, and costs a gateway only a time."""

from __future__ import annotations

import asyncio

import pytest
from fake_backends import CANARY, STABLE, table

from serving.backend import BackendRequest
from serving.errors import BackendFailed
from serving.judges import Judges
from serving.live_outcomes import LiveOutcomes
from serving.mirroring import MirroredPair, Outcome
from serving.routes import Backend, Mirror, Route, RouteTable

HANGS, HEARS = "desk--judge2", "support-bot--judge2"


class Calls:
    """The way to the judges: one of them never answers."""

    def __init__(self, *errors: Exception) -> None:
        self.heard: list[tuple[object, ...]] = []
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.errors = list(errors)

    async def __call__(self, app, method, *args):
        self.asked.append(app)
        if self.errors:
            raise self.errors.pop(0)
        if app == HANGS:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.append(method)
        self.heard.append((app, method, *args))


def routed(judge_app: str | None, name: str = "support-bot", **changes) -> Route:
    mirror = Mirror(app=CANARY, revision=2, share=1.0)
    return (
        table(10_000, 0, mirror=mirror).routes[0].model_copy(update={"name": name, "judge_app": judge_app, **changes})
    )


def of(*routes: Route, calls: Calls, **times: float) -> Judges:
    return Judges(calls, lambda: RouteTable(routes=routes), **times)


def a_pair(canary_app: str = CANARY) -> MirroredPair:
    def outcome(app: str, revision: int) -> Outcome:
        backend = Backend(app=app, model=f"m@{revision}", revision=revision, weight=0)
        return Outcome(backend, 200, {0: (1,)}, 0.1, 0.2, True)

    request = BackendRequest("POST", "/v1/completions", (), b"{}", "r")
    return MirroredPair("support-bot", request, outcome(STABLE, 1), outcome(canary_app, 2))


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def test_a_judge_that_never_answers_silences_no_other():
    calls = Calls()
    judges = of(routed(HANGS, "desk"), routed(HEARS), calls=calls)
    live = LiveOutcomes(judges.note_live, every_s=0)
    live.note(HANGS, failed=True)
    await until(lambda: calls.asked == [HANGS])
    for number in range(3):
        live.note(HEARS, failed=False)
        await until(lambda number=number: len(calls.heard) == number + 1)
    assert calls.heard == [(HEARS, "note_live", (False,))] * 3
    await live.aclose()
    assert calls.cancelled == ["note_live"]


async def test_what_takes_a_judge_too_long_is_ended_and_it_is_told_again(caplog):
    calls = Calls()
    judges = of(routed(HANGS), calls=calls, note_s=0.01, observe_s=0.01)
    live = LiveOutcomes(judges.note_live, every_s=0)
    for number in range(2):
        live.note(HANGS, failed=True)
        await until(lambda number=number: len(calls.cancelled) == number + 1)
    await judges.observe(a_pair())
    await live.aclose()
    assert calls.cancelled == ["note_live", "note_live", "observe"]
    assert f"{HANGS} missed request r: no answer within 0.01 s" in caplog.text


async def test_a_judge_that_fails_misses_what_it_was_told(caplog):
    calls = Calls(BackendFailed("it died"))
    judges = of(routed(HEARS), calls=calls)
    await judges.note_live(HEARS, (True, False))
    await judges.note_live(HEARS, (True,))
    assert calls.heard == [(HEARS, "note_live", (True,))]
    assert f"{HEARS} missed 2 requests of its canary: it died" in caplog.text


@pytest.mark.parametrize(
    "routes", [(), (routed("support-bot--judge3"),), (routed(None),)], ids=["gone", "next", "none"]
)
async def test_a_judge_that_is_in_the_table_no_more_is_not_called(routes):
    calls = Calls()
    await of(*routes, calls=calls).note_live(HEARS, (True,))
    assert calls.asked == []


async def test_a_pair_goes_to_the_judge_of_its_own_canary():
    calls, pair = Calls(), a_pair()
    await of(routed(HEARS), calls=calls).observe(pair)
    assert calls.heard == [(HEARS, "observe", pair)]
    for route in (routed(None), routed(HEARS, mirror=None), routed(HEARS, "another")):
        await of(route, calls=calls).observe(pair)
    await of(routed(HEARS), calls=calls).observe(a_pair("support-bot--r3"))
    assert len(calls.asked) == 1
