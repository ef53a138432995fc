"""What is believed of a token, for how long, and what happens while nobody can be asked."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from athanor.v1 import token_service_pb2, token_service_pb2_grpc

from serving.auth import (
    BAD_AT_ONCE,
    BAD_PER_S,
    FRESH_REFUSAL_S,
    FRESH_S,
    STALE_S,
    Caller,
    Callers,
    ControlPlanes,
    CurrentControlPlanes,
)
from serving.errors import Forbidden, RateLimited, Unauthenticated, Unavailable
from serving.routes import RouteTable

ME = Caller("k3m9x2pq", "me")


class Said:
    """A directory that says what it is told to."""

    def __init__(self) -> None:
        self.answer: Caller | Exception = ME
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def caller(self, authorization):
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def aclose(self):
        pass


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def callers(said, now):
    return Callers(said, clock=lambda: now[0])


async def test_an_answer_is_believed_for_some_seconds(callers, said, now):
    assert await callers.caller("Bearer a") == ME
    now[0] += FRESH_S - 1
    assert await callers.caller("Bearer a") == ME
    assert said.asked == 1
    now[0] += 2
    said.answer = Unauthenticated("revoked")
    with pytest.raises(Unauthenticated, match="revoked"):
        await callers.caller("Bearer a")


async def test_a_bad_token_is_not_asked_about_again_at_once(callers, said, now):
    said.answer = Unauthenticated("unknown")
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await callers.caller("Bearer bad")
    assert said.asked == 1
    now[0] += FRESH_REFUSAL_S
    said.answer = ME
    assert await callers.caller("Bearer bad") == ME


async def test_while_nobody_can_be_asked_known_tokens_stay_good_for_an_hour_and_unknown_ones_wait(callers, said, now):
    await callers.caller("Bearer a")
    said.answer = Unavailable("nobody there")
    now[0] += STALE_S - 1
    assert await callers.caller("Bearer a") == ME
    with pytest.raises(Unavailable):
        await callers.caller("Bearer b")
    now[0] += 2
    with pytest.raises(Unavailable):
        await callers.caller("Bearer a")


async def test_a_token_that_was_refused_is_not_good_because_nobody_can_be_asked(callers, said, now):
    said.answer = Forbidden("no")
    with pytest.raises(Forbidden):
        await callers.caller("Bearer a")
    said.answer = Unavailable("nobody there")
    now[0] += FRESH_REFUSAL_S
    with pytest.raises(Unavailable):
        await callers.caller("Bearer a")


async def test_requests_at_once_ask_once(callers, said):
    said.gate.clear()
    asking = [asyncio.create_task(callers.caller("Bearer a")) for _ in range(10)]
    await asyncio.sleep(0)
    said.gate.set()
    assert await asyncio.gather(*asking) == [ME] * 10
    assert said.asked == 1


async def test_no_token_at_all_asks_nobody(callers, said):
    with pytest.raises(Unauthenticated, match="no token"):
        await callers.caller("")
    assert said.asked == 0


async def refused(callers, prefix: str, count: int, address: str = "10.0.0.1") -> list[str]:
    """What becomes of so many tokens that nobody knows."""
    found = []
    for number in range(count):
        with pytest.raises((Unauthenticated, RateLimited)) as caught:
            await callers.caller(f"Bearer {prefix}{number}", address)
        found.append(type(caught.value).__name__)
    return found


async def test_an_address_that_sends_bad_tokens_is_told_to_wait_and_nobody_is_asked(callers, said, now):
    said.answer = Unauthenticated("unknown")
    assert await refused(callers, "a", BAD_AT_ONCE + 5) == ["Unauthenticated"] * BAD_AT_ONCE + ["RateLimited"] * 5
    assert said.asked == BAD_AT_ONCE
    assert await refused(callers, "b", 1, "10.0.0.2") == ["Unauthenticated"]
    now[0] += 1 / BAD_PER_S
    assert await refused(callers, "c", 2) == ["Unauthenticated", "RateLimited"]


async def test_good_tokens_cost_an_address_nothing_and_a_known_one_passes_whatever_else_it_sends(callers, said, now):
    for number in range(BAD_AT_ONCE + 1):
        assert await callers.caller(f"Bearer good{number}", "10.0.0.1") == ME
    said.answer = Unauthenticated("unknown")
    assert (await refused(callers, "a", BAD_AT_ONCE + 1))[-1] == "RateLimited"
    said.answer = ME
    now[0] += FRESH_S  # must be asked about again, which the bad ones do not prevent
    assert await callers.caller("Bearer good0", "10.0.0.1") == ME


async def test_who_asks_and_goes_before_the_answer_is_charged_all_the_same(callers, said):
    said.answer = Unauthenticated("unknown")
    said.gate.clear()
    for number in range(BAD_AT_ONCE):
        asking = asyncio.create_task(callers.caller(f"Bearer {number}", "10.0.0.1"))
        await asyncio.sleep(0)
        asking.cancel()
    with pytest.raises(RateLimited):
        await callers.caller("Bearer more", "10.0.0.1")
    said.gate.set()


async def test_bad_tokens_do_not_drive_out_good_ones_nor_new_ones_those_in_use(callers, said, monkeypatch):
    monkeypatch.setattr("serving.auth._MOST_CACHED", 2)
    await callers.caller("Bearer used", "10.0.0.1")
    said.answer = Unauthenticated("unknown")
    await refused(callers, "bad", 4, "10.0.0.2")
    said.answer = ME
    for number in range(3):
        await callers.caller(f"Bearer other{number}", "10.0.0.3")
        await callers.caller("Bearer used", "10.0.0.1")
    assert said.asked == 1 + 4 + 3


class TokenService(token_service_pb2_grpc.TokenServiceServicer):
    """A control plane that knows one token."""

    async def GetCaller(self, request, context):
        sent = dict(context.invocation_metadata())["authorization"]
        if sent != "Bearer good":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this control plane does not know the token")
        return token_service_pb2.GetCallerResponse(token=token_service_pb2.Token(id=ME.token_id, name=ME.name))


async def test_any_control_plane_answers_for_the_installation():
    server = grpc.aio.server()
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(TokenService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    planes = ControlPlanes(("127.0.0.1:1", f"127.0.0.1:{port}"))  # nobody listens at the first
    try:
        assert await planes.caller("Bearer good") == ME
        with pytest.raises(Unauthenticated, match="does not know the token"):
            await planes.caller("Bearer bad")
        with pytest.raises(Unauthenticated, match="characters"):
            await planes.caller("Bearer ü")
    finally:
        await planes.aclose()
        await server.stop(None)
    alone = ControlPlanes(("127.0.0.1:1",))
    with pytest.raises(Unavailable):
        await alone.caller("Bearer good")
    await alone.aclose()


class SlowTokenService(TokenService):
    """One that answers only when it may."""

    def __init__(self):
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def GetCaller(self, request, context):
        self.asked.set()
        await self.may_answer.wait()
        return await super().GetCaller(request, context)


@pytest.fixture
async def slow_plane():
    server, service = grpc.aio.server(), SlowTokenService()
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(None)


async def test_who_is_asking_has_an_answer_when_the_control_planes_are_others_by_then(slow_plane):
    service, address = slow_plane
    directory = CurrentControlPlanes()
    await directory.tell(RouteTable(control_planes=(address,)))
    asking = asyncio.create_task(Callers(directory).caller("Bearer good"))
    await service.asked.wait()
    await directory.tell(RouteTable(control_planes=("127.0.0.1:1",)))
    service.may_answer.set()
    assert await asking == ME
    await directory.aclose()


async def test_a_channel_that_is_closed_while_it_is_asked_over_is_503(slow_plane):
    service, address = slow_plane
    planes = ControlPlanes((address,))
    asking = asyncio.create_task(planes.caller("Bearer good"))
    await service.asked.wait()
    await planes._channels[0].close(None)
    with pytest.raises(Unavailable):
        await asking
    await planes.aclose()
    service.may_answer.set()
