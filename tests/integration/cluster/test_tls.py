"""TLS for real: a server with a certificate, clients that check it or show their own, a change while it runs."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from athanor.v1 import job_pb2, token_service_pb2, token_service_pb2_grpc
from certificates import Authority, Pair
from control_plane import ControlPlane, ScriptedRay, ScriptedServing

from cluster.channel import Tls, open_async_channel
from cluster.client import AthanorClient
from cluster.deployment_reconciler import surroundings_of
from cluster.driver.attempt import Attempt
from cluster.driver.reporting import Order, Reporter
from cluster.serve_plan import route_table
from cluster.server import running_server
from cluster.settings import Settings
from serving.auth import ControlPlanes
from serving.errors import Unavailable

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@asynccontextmanager
async def secured(tmp_path: Path, server: Pair, ca: Path, *, client: Pair | None = None) -> AsyncIterator[ControlPlane]:
    """A control plane that speaks TLS, and a channel to it."""
    settings = Settings(
        home=tmp_path / "home",
        listen="127.0.0.1:0",
        shutdown_grace_s=1.0,
        reconcile_interval_s=0.2,
        tls_cert=server.certificate,
        tls_key=server.key,
        tls_ca=ca,
        tls_client_ca=ca if client else None,
        tls_driver_cert=client.certificate if client else None,
        tls_driver_key=client.key if client else None,
    )
    ray, serving = ScriptedRay(), ScriptedServing()
    tls = Tls(ca, client.certificate, client.key) if client else Tls(ca)
    async with running_server(settings, ray, serving) as address:
        token = settings.admin_token_path.read_text().strip()
        async with open_async_channel(address, token, tls) as channel:
            yield ControlPlane(address, settings, ray, serving, channel)


async def caller_over(address: str, token: str, tls: Tls | None) -> str:
    async with open_async_channel(address, token, tls) as channel:
        stub: Any = token_service_pb2_grpc.TokenServiceStub(channel)
        answer = await stub.GetCaller(token_service_pb2.GetCallerRequest(), timeout=5)
        return str(answer.token.name)


async def is_refused(address: str, token: str, tls: Tls | None) -> bool:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller_over(address, token, tls)
    return caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_clients_that_know_the_ca_get_in_and_no_others(tmp_path: Path, authority: Authority) -> None:
    ca = authority.own.certificate
    async with secured(tmp_path, authority.sign("server"), ca) as plane:
        assert await caller_over(plane.address, plane.token, Tls(ca)) == "admin"
        assert await is_refused(plane.address, plane.token, None)
        other = Authority(tmp_path / "other", "other").own.certificate
        assert await is_refused(plane.address, plane.token, Tls(other))

        def blocking() -> str:
            with AthanorClient(plane.address, token=plane.token, tls_ca=ca) as client:
                return client.get_caller().name

        assert await asyncio.to_thread(blocking) == "admin"


async def test_a_certificate_for_another_host_is_not_believed(tmp_path: Path, authority: Authority) -> None:
    ca = authority.own.certificate
    settings = Settings(home=tmp_path / "home", listen="127.0.0.1:0", shutdown_grace_s=1.0)
    pair = authority.sign("server", host="DNS:elsewhere.example")
    settings = settings.model_copy(update={"tls_cert": pair.certificate, "tls_key": pair.key})
    async with running_server(settings, ScriptedRay(), ScriptedServing()) as address:
        assert await is_refused(address, settings.admin_token_path.read_text().strip(), Tls(ca))


async def test_where_clients_must_show_a_certificate_a_token_is_not_enough(
    tmp_path: Path, authority: Authority
) -> None:
    ca, client = authority.own.certificate, authority.sign("client")
    async with secured(tmp_path, authority.sign("server"), ca, client=client) as plane:
        assert await caller_over(plane.address, plane.token, Tls(ca, client.certificate, client.key)) == "admin"
        assert await is_refused(plane.address, plane.token, Tls(ca))
        foreign = Authority(tmp_path / "other", "other").sign("client")
        assert await is_refused(plane.address, plane.token, Tls(ca, foreign.certificate, foreign.key))


async def test_an_endpoint_asks_about_tokens_with_the_certificate_of_drivers(
    tmp_path: Path, authority: Authority
) -> None:
    ca, client = authority.own.certificate, authority.sign("client")
    async with secured(tmp_path, authority.sign("server"), ca, client=client) as plane:
        around = surroundings_of(plane.settings, (plane.address,))
        table = route_table([], around)
        planes = ControlPlanes(table.control_planes, table.tls_ca, table.tls_cert, table.tls_key)
        assert (await planes.caller(f"Bearer {plane.token}")).name == "admin"
        await planes.aclose()
        strangers = ControlPlanes(table.control_planes, table.tls_ca)
        with pytest.raises(Unavailable):
            await strangers.caller(f"Bearer {plane.token}")
        await strangers.aclose()


def shown_certificate(address: str) -> bytes:
    host, _, port = address.rpartition(":")
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))


async def test_a_new_certificate_is_shown_without_a_restart_and_half_a_change_is_not(
    tmp_path: Path, authority: Authority
) -> None:
    ca, pair, new = authority.own.certificate, authority.sign("server"), authority.sign("new")
    old_der = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
    new_der = ssl.PEM_cert_to_DER_cert(new.certificate.read_text())
    async with secured(tmp_path, pair, ca) as plane:
        assert await asyncio.to_thread(shown_certificate, plane.address) == old_der
        new.certificate.replace(pair.certificate)  # the key does not belong to it yet
        assert await asyncio.to_thread(shown_certificate, plane.address) == old_der
        new.key.replace(pair.key)
        assert await asyncio.to_thread(shown_certificate, plane.address) == new_der
        assert await caller_over(plane.address, plane.token, Tls(ca)) == "admin"


@pytest.mark.parametrize("mutual", [False, True])
async def test_a_driver_reports_over_tls(tmp_path: Path, authority: Authority, mutual: bool) -> None:
    """With nothing but what attempt.json and its neighbours say."""
    ca = authority.own.certificate
    client = authority.sign("driver") if mutual else None
    async with secured(tmp_path, authority.sign("server"), ca, client=client) as plane:
        uid = await plane.create()
        await plane.started(uid)
        attempt = Attempt.load(plane.settings.job_dir(uid) / "attempts" / "1" / "attempt.json")
        document = attempt.path.read_text()
        assert json.loads(document)["tls"]["ca"] == "ca.pem"
        assert "PRIVATE KEY" not in document
        told: list[Order | Exception] = []
        reporter = Reporter(attempt, told.append)
        await asyncio.to_thread(reporter.tell)
        assert (await plane.until(uid, job_pb2.JOB_STATE_RUNNING)).uid == uid
        assert told == []
