"""A control plane that is asked for its metrics tells what callers were told."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx
import pytest
from athanor.v1 import job_service_pb2
from control_plane import ScriptedRay, served
from prometheus_client.parser import text_string_to_metric_families

from cluster.settings import Settings


async def scraped(address: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    async with httpx.AsyncClient(trust_env=False) as http:
        page = (await http.get(f"http://{address}/metrics")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def labels(method: str, code: str) -> tuple[tuple[str, str], ...]:
    return (("code", code), ("method", method), ("service", "JobService"))


async def test_calls_are_counted_by_what_their_callers_were_told(tmp_path: Path, unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    settings = Settings(home=tmp_path / "home", listen="127.0.0.1:0", metrics_listen=address)
    async with served(settings, ScriptedRay()) as plane:
        await plane.create()
        with pytest.raises(grpc.aio.AioRpcError):
            await plane.get("nobody")
        watch = plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest())
        await watch.read()
        figures = await scraped(address)
        watch.cancel()
    assert figures["athanor_rpc_requests_total", labels("CreateJob", "OK")] == 1
    assert figures["athanor_rpc_requests_total", labels("GetJob", "NOT_FOUND")] == 1
    assert figures["athanor_rpc_duration_seconds_count", (("method", "CreateJob"), ("service", "JobService"))] == 1
    assert figures["athanor_watch_streams", ()] == 1
    assert figures["athanor_reconciler_round_seconds_count", ()] >= 1
    assert sum(value for (name, _), value in figures.items() if name == "athanor_jobs") == 1
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://{address}/metrics")
