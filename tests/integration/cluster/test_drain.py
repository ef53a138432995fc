"""A control plane that ends says so: health first, then to everybody who follows something."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from athanor.v1 import job_service_pb2
from control_plane import ControlPlane, ScriptedRay, ScriptedServing, admin_channel
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_job_service import Refused

from cluster.server import running_server
from cluster.settings import Settings


class Follower:
    """Reads a stream to its end."""

    def __init__(self, name: str, stream: Any, ends: list[tuple[str, str]]) -> None:
        self.has_begun = asyncio.Event()
        self._name = name
        self._stream = stream
        self._ends = ends

    async def read(self) -> None:
        why = "NOT_SERVING"
        try:
            async for answer in self._stream:
                self.has_begun.set()
                if getattr(answer, "status", 0) == health_pb2.HealthCheckResponse.NOT_SERVING:
                    self._stream.cancel()  # by itself a watch of the health lasts as long as its server
                    break
        except grpc.aio.AioRpcError as error:
            why = Refused(error).reason
        self._ends.append((self._name, why))


async def test_who_has_not_heard_yet_that_it_ends_is_answered_for_a_while(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, listen="127.0.0.1:0", drain_s=4.0, shutdown_grace_s=1.0)
    ray, serving = ScriptedRay(), ScriptedServing()
    has_begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    may_end = asyncio.Event()

    async def serve() -> None:
        async with running_server(settings, ray, serving) as address:
            has_begun.set_result(address)
            await may_end.wait()

    async with asyncio.timeout(120):
        server = asyncio.create_task(serve())
        async with admin_channel(settings, await has_begun) as channel:
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
            may_end.set()
            assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            health.cancel()
            plane = ControlPlane("", settings, ray, serving, channel)
            assert (await plane.get(await plane.create())).name == "bot"
        await server


async def test_streams_end_after_health_and_long_before_the_grace_is_over(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, listen="127.0.0.1:0", shutdown_grace_s=300.0)
    ends: list[tuple[str, str]] = []
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        ray, serving = ScriptedRay(), ScriptedServing()
        async with running_server(settings, ray, serving) as address:
            channel = await stack.enter_async_context(admin_channel(settings, address))
            plane = ControlPlane(address, settings, ray, serving, channel)
            uid = await plane.create()
            await plane.running(uid)
            (settings.job_dir(uid) / "attempts/1/driver.log").write_text("a line\n")
            (settings.job_dir(uid) / "student").mkdir()
            (settings.job_dir(uid) / "student/metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
            streams = {
                "health": health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="")),
                "watch": plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest()),
                "log": plane.jobs.StreamJobLogs(job_service_pb2.StreamJobLogsRequest(uid=uid, follow=True)),
                "figures": plane.jobs.StreamJobMetrics(job_service_pb2.StreamJobMetricsRequest(uid=uid, follow=True)),
            }
            followers = [Follower(name, stream, ends) for name, stream in streams.items()]
            reading = [asyncio.create_task(follower.read()) for follower in followers]
            await asyncio.gather(*(follower.has_begun.wait() for follower in followers))
        await asyncio.gather(*reading)
    assert ends[0] == ("health", "NOT_SERVING")
    assert dict(ends[1:]) == dict.fromkeys(("watch", "log", "figures"), "SHUTTING_DOWN")
