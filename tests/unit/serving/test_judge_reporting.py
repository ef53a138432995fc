"""What a judge has found reaches a control plane, and what none will ever take does not hold up the rest."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from athanor.v1 import deployment_service_pb2 as messages
from athanor.v1 import deployment_service_pb2_grpc
from certificates import Authority

from serving.judge import Finding
from serving.reporting import Canary, ControlPlanes, Reporter


class Plane(deployment_service_pb2_grpc.DeploymentServiceServicer):
    """Answers each report as it is told to, then takes all."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self.codes = list(codes)
        self.told: asyncio.Queue[messages.ReportObservationsRequest] = asyncio.Queue()

    async def ReportObservations(self, request, context):
        await self.told.put(request)
        if self.codes:
            await context.abort(self.codes.pop(0), "no")
        return messages.ReportObservationsResponse()


@asynccontextmanager
async def told(plane: Plane):
    """A reporter of this plane, which has its first finding already."""
    server = grpc.aio.server()
    deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server(plane, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reporter = Reporter(Canary("bot", 2, "secret"))
    reporter.tell(ControlPlanes((f"127.0.0.1:{port}",)))
    try:
        async with asyncio.timeout(30):
            reporter.add(Finding(canary_failed=True))
            yield reporter
    finally:
        await server.stop(grace=10)


async def test_findings_that_a_control_plane_refuses_are_let_go():
    plane = Plane(grpc.StatusCode.INVALID_ARGUMENT)
    async with told(plane) as reporter:
        first = await plane.told.get()
        reporter.add(Finding(stable_latency_s=1.5))
        second = await plane.told.get()
    assert (first.name, first.revision, first.token) == ("bot", 2, "secret")
    assert first.observations[0].canary_failed
    assert second.request_id != first.request_id
    assert second.observations[0].stable_latency_s == 1.5


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_findings_that_cannot_be_taken_now_are_told_again_under_the_same_id(monkeypatch, code):
    monkeypatch.setattr("serving.reporting._PAUSE_S", 0)
    plane = Plane(code, code)
    async with told(plane):
        first, again, third = [await plane.told.get() for _ in range(3)]
    assert first == again == third


async def test_a_canary_that_is_judged_no_more_ends_its_reports():
    async with told(Plane(grpc.StatusCode.FAILED_PRECONDITION)) as reporter:
        while not reporter.is_over:
            await asyncio.sleep(0.01)


async def test_a_finding_that_is_owed_is_told_when_a_control_plane_has_it(monkeypatch):
    monkeypatch.setattr("serving.reporting._PAUSE_S", 0)
    monkeypatch.setattr("serving.reporting._MOST_WAITING", 1)
    plane = Plane(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)
    async with told(plane) as reporter:
        owed = Finding(kind="TASK", stable_right=True, task_index=3, task_size=9)
        assert await reporter.told([owed]) is True
        got = [plane.told.get_nowait() for _ in range(plane.told.qsize())]
    kept = {each.request_id: each.observations for each in got}.values()
    (task,) = [each for some in kept for each in some if each.kind == messages.OBSERVATION_KIND_TASK]
    assert (task.stable_right, task.canary_right, task.task_index, task.task_size) == (True, False, 3, 9)


async def test_what_is_owed_for_a_canary_that_is_over_is_wanted_no_more():
    async with told(Plane(*[grpc.StatusCode.FAILED_PRECONDITION] * 2)) as reporter:
        assert await reporter.told([Finding(kind="TASK")]) is False


async def test_what_was_found_waits_until_the_certificate_is_there(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("serving.reporting._PAUSE_S", 0)
    authority = Authority(tmp_path)
    server_side, shown = authority.sign("plane"), authority.sign("judge")
    kept = shown.certificate.rename(tmp_path / "elsewhere.pem")
    plane, server = Plane(), grpc.aio.server()
    deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server(plane, server)
    pair = server_side.key.read_bytes(), server_side.certificate.read_bytes()
    ca = authority.own.certificate.read_bytes()
    asks = grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", asks)
    await server.start()
    reporter = Reporter(Canary("bot", 2, "secret"))
    reporter.tell(ControlPlanes((f"127.0.0.1:{port}",), ca.decode(), str(shown.certificate), str(shown.key)))
    async with asyncio.timeout(30):
        reporter.add(Finding(stable_latency_s=1.5))
        while "cannot be read" not in caplog.text:
            await asyncio.sleep(0)
        kept.rename(shown.certificate)
        told = await plane.told.get()
    await server.stop(grace=10)
    assert told.observations[0].stable_latency_s == 1.5
    assert f"{shown.certificate} cannot be read (No such file or directory)" in caplog.text


async def test_each_kind_of_finding_has_its_name_on_the_wire():
    plane = Plane()
    async with told(plane) as reporter:
        await reporter.told([Finding(kind="LIVE", canary_failed=True)])
        kinds = [each.kind for _ in range(plane.told.qsize()) for each in plane.told.get_nowait().observations]
    assert sorted(kinds) == [messages.OBSERVATION_KIND_MIRRORED, messages.OBSERVATION_KIND_LIVE]
