"""Whoever has no good token, or no lease, costs the store next to nothing and is told nothing."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from athanor.v1 import worker_service_pb2
from fakes import World

from cluster.errors import PreconditionFailed, ResourceExhausted, Unauthenticated
from cluster.security.audit import AuditLog
from cluster.security.caller import Caller, Role
from cluster.security.tokens import Tokens
from cluster.services.interceptor import Gate

SENT = (("authorization", "Bearer ath_abcdefgh_x"),)


class ScriptedTokens:
    """Remembers nobody, and knows whom the test says."""

    def __init__(self, known: bool) -> None:
        self.known = known
        self.asked = 0

    def remembered(self, authorization: str) -> Caller | None:
        return None

    def ask(self, authorization: str) -> Caller:
        self.asked += 1
        if not self.known:
            raise Unauthenticated("TOKEN_UNKNOWN", "no")
        return Caller("ann", Role.VIEWER)


def gate(world: World, tokens: ScriptedTokens) -> Gate:
    return Gate({}, cast(Tokens, tokens), AuditLog(world.store), calls_per_second=1e6, max_streams=1)


async def outcomes(world: World, tokens: ScriptedTokens, count: int) -> list[Any]:
    asks, at = gate(world, tokens), cast(Tokens, tokens)
    return await asyncio.gather(*(asks._caller(at, "10.0.0.1", SENT) for _ in range(count)), return_exceptions=True)


async def test_who_fails_too_often_is_told_to_wait_before_the_store_is_asked(world: World) -> None:
    tokens = ScriptedTokens(known=False)
    refused = [each for each in await outcomes(world, tokens, 1000) if isinstance(each, ResourceExhausted)]
    assert len(refused) == 1000 - tokens.asked
    assert tokens.asked < 300


async def test_who_is_known_has_not_failed(world: World) -> None:
    tokens = ScriptedTokens(known=True)
    for _ in range(10):
        assert {type(each) for each in await outcomes(world, tokens, 50)} == {Caller}


@pytest.mark.parametrize("call", ["Heartbeat", "ReportProgress", "ReportTerminal"])
async def test_a_wrong_lease_waits_for_no_lock_and_learns_nothing(world: World, call: str) -> None:
    uid = world.create()
    driver = await world.running(uid)
    writes = list[float]()
    world.store.database.on_write = writes.append
    refs = {
        "token": worker_service_pb2.AttemptRef(job_uid=uid, attempt=1, lease_token="wrong"),
        "number": worker_service_pb2.AttemptRef(job_uid=uid, attempt=7, lease_token=driver.ref.lease_token),
        "uid": worker_service_pb2.AttemptRef(job_uid="job-aaaaaaaa", attempt=1, lease_token=driver.ref.lease_token),
    }
    said = {}
    for name, ref in refs.items():
        request = getattr(worker_service_pb2, f"{call}Request")(attempt=ref)
        if call == "ReportTerminal":
            request.record.CopyFrom(driver.record("SUCCEEDED"))
        with pytest.raises(PreconditionFailed) as caught:
            await getattr(world.worker_service, call)(request, None)
        said[name] = (caught.value.reason, caught.value.message.replace(ref.job_uid, "it"))
    assert set(said.values()) == {("LEASE_LOST", "this attempt of it does not hold the lease; end at once")}
    assert not writes
