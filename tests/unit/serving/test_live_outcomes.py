"""What a canary's own users got reaches its judge together and in order, and never more than a bound."""

from __future__ import annotations

import asyncio

import pytest
from fake_backends import CANARY, QUESTION, STABLE, LocalBackends, Scripted, entrance, http_client, table, whole

from serving.backend import Chunk, Head
from serving.errors import BackendFailed
from serving.live_outcomes import LiveOutcomes
from serving.mirroring import Mirroring

CHAT = "/v1/chat/completions"
BODY = {"model": "support-bot", "messages": QUESTION, "max_tokens": 4}
STREAM = (Head(200, (("content-type", "text/event-stream"),)), Chunk(b"data: {}\n\n"))
JUDGE = "support-bot--judge2"


class Told:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, tuple[bool, ...]]] = []

    async def __call__(self, judge_app: str, failed: tuple[bool, ...]) -> None:
        self.outcomes.append((judge_app, failed))


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_they_come_together_in_their_order_and_no_more_than_a_bound():
    told = Told()
    live = LiveOutcomes(told, every_s=0, most=3)
    for failed in (True, False, True, False, False):
        live.note("one", failed=failed)
    live.note("other", failed=False)
    await until(lambda: len(told.outcomes) == 2)
    assert told.outcomes == [("one", (True, False, True)), ("other", (False,))]
    live.note("one", failed=False)
    await until(lambda: len(told.outcomes) == 3)
    await live.aclose()


class Noted(LiveOutcomes):
    """All that is noted, at once."""

    def __init__(self) -> None:
        super().__init__(Told())
        self.failed: list[bool] = []

    def note(self, judge_app: str, *, failed: bool) -> None:
        assert judge_app == JUDGE
        self.failed.append(failed)


class Both:
    """A canary that is scripted, beside a stable revision that is."""

    def __init__(self, canary: Scripted, stable: Scripted | LocalBackends) -> None:
        self.canary, self.stable = canary, stable

    def call(self, app, request):
        return (self.canary if app == CANARY else self.stable).call(app, request)

    async def figures(self, app):
        return []


def judged(canary_weight: int = 10_000):
    routes = table(10_000 - canary_weight, canary_weight)
    route = routes.routes[0].model_copy(update={"judge_app": JUDGE, "live": 1})
    return routes.model_copy(update={"routes": (route,)})


async def noted(canary, stable=None, *, headers=None, routes=None, **body) -> list[bool]:
    live = Noted()
    backends = Both(Scripted(*canary), stable or Scripted(*whole(200)))
    async with http_client(entrance(backends, routes or judged(), live=live)) as http:
        await http.post(CHAT, json={**BODY, **body}, headers=headers)
    return live.failed


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr("serving.gateway._PAUSE_S", 0)


@pytest.mark.parametrize(
    ("canary", "failed"),
    [
        (whole(200), [False]),
        ((*STREAM, Chunk(b"data: [DONE]\n\n")), [False]),
        (whole(500), [True]),
        (whole(503), [True]),
        ((BackendFailed("died"),), [True]),
        ((Head(200, ()), BackendFailed("died")), [True]),
        ((*STREAM, BackendFailed("died")), [True]),
        (STREAM, [True]),
        (whole(400), []),
        (whole(422), []),
        (whole(429), []),
        (whole(504), [True]),
    ],
    ids=[
        "whole",
        "stream",
        "500",
        "503",
        "death",
        "death-in-whole",
        "death-in-stream",
        "torn",
        "400",
        "422",
        "429",
        "504",
    ],
)
async def test_what_the_canary_made_of_its_users_request(canary, failed):
    assert await noted(canary) == failed


async def test_who_gave_little_time_blames_nobody():
    hurried = {"x-athanor-timeout": "2"}
    assert await noted(whole(504), headers=hurried) == []
    assert await noted(whole(500), headers=hurried) == [True]


async def test_a_request_that_breaks_the_other_version_too_is_nobodys_failure():
    assert await noted(whole(500), Scripted(*whole(500))) == []
    assert await noted((BackendFailed("died"),), Scripted(BackendFailed("died"))) == []


async def test_requests_of_others_and_those_for_one_version_say_nothing_of_it():
    assert await noted(whole(500), routes=judged(0)) == []
    assert await noted(whole(500), model="support-student@2") == []
    assert await noted(whole(500), routes=table(0, 10_000)) == []


async def test_the_stable_version_answers_and_the_failure_is_counted(loaded):
    stable = LocalBackends(**{STABLE: (1, loaded)})
    assert await noted((BackendFailed("died"),), stable) == [True]


async def test_in_the_dark_a_request_has_the_time_that_its_client_gave():
    """A canary that is asked in the dark may take as long as its own users would wait for it."""
    seen = asyncio.Queue()
    backends = Scripted(*whole(200))
    gate = entrance(backends, judged(0), mirroring=Mirroring(backends, seen.put))
    mirror = {"app": CANARY, "revision": 2, "share": 1.0}
    route = gate.table.routes[0].model_dump() | {"mirror": mirror}
    gate.table = type(gate.table).model_validate({"routes": [route]})
    gate.table = gate.table.model_copy(update={"auth": "none"})
    async with http_client(gate) as http:
        await http.post(CHAT, json=BODY, headers={"x-athanor-timeout": "450"})
    async with asyncio.timeout(30):
        pair = await seen.get()
    assert pair.request.deadline_s == 450
