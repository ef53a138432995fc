"""The process around the services: health, reflection, start and end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from athanor.v1 import (
    cluster_service_pb2,
    deployment_service_pb2,
    job_pb2,
    job_service_pb2,
    model_service_pb2,
    worker_service_pb2,
)
from control_plane import ControlPlane, ScriptedRay, ScriptedServing, admin_channel, served
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.errors import StartUpError
from cluster.server import configure_logging, running_server
from cluster.settings import Settings

SERVICES = {
    f"athanor.v1.{name}Service" for name in ("Job", "Model", "Deployment", "Worker", "Cluster", "Token", "Audit")
}  # fmt: skip
START = "from cluster.server import serve; from cluster.settings import Settings; serve(Settings.from_env())"


async def test_every_service_is_healthy(plane: ControlPlane) -> None:
    stub = health_pb2_grpc.HealthStub(plane.channel)
    for name in ("", *SERVICES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_every_service(plane: ControlPlane) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(plane.channel)
    login = (("authorization", f"Bearer {plane.token}"),)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([ask]), metadata=login)
    answer = await call.read()
    assert {each.name for each in answer.list_services_response.service} > SERVICES


async def test_every_step_is_a_line_of_the_log_with_its_ids(
    plane: ControlPlane, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    try:
        uid = await plane.create()
        await plane.finish(await plane.running(uid), worker_service_pb2.OUTCOME_SUCCEEDED, message="learned")
    finally:
        structlog.reset_defaults()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    steps = {line["state"]: line for line in lines if line["event"] == "job.step" and line["job"] == uid}
    assert {"ADMITTED", "STARTING", "RUNNING", "SUCCEEDED"} <= steps.keys()
    ended, begun = steps["SUCCEEDED"], steps["RUNNING"]
    assert (ended["attempt"], ended["message"], ended["level"]) == (1, "learned", "info")
    assert (begun["method"], bool(begun["request_id"])) == ("athanor.v1.WorkerService/Heartbeat", True)
    assert begun["request_id"] != ended["request_id"]
    [created] = [line for line in lines if line["event"] == "audit.entry"]
    assert (created["resource"], created["actor"], bool(created["request_id"])) == (uid, "admin", True)


async def test_server_info(plane: ControlPlane) -> None:
    info = await plane.cluster.GetServerInfo(cluster_service_pb2.GetServerInfoRequest())
    assert (info.store, info.serve_url, list(info.api_versions)) == ("sqlite", "http://127.0.0.1:8000", ["athanor.v1"])
    assert info.storage_path == str(plane.settings.storage)
    async with asyncio.timeout(10):
        while not info.ray_reachable:
            info = await plane.cluster.GetServerInfo(cluster_service_pb2.GetServerInfoRequest())
    assert info.ray_version == "2.60.0"


async def test_deployment_comes_up_and_goes_down(plane: ControlPlane) -> None:
    wish = deployment_service_pb2.Deployment(name="desk", model="bot@champion")
    request = deployment_service_pb2.CreateDeploymentRequest(deployment=wish)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plane.deployments.CreateDeployment(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    ref = await plane.running(await plane.create())
    model_dir = str(plane.settings.publish_dir("bot", ref.job_uid))
    await plane.finish(ref, 1, model_path=model_dir, model_manifest_sha256="ab" * 32)
    created = (await plane.deployments.CreateDeployment(request)).deployment
    assert (created.resolved_model, created.endpoint) == ("bot@1", "http://127.0.0.1:8000/desk/v1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plane.deployments.CreateDeployment(request)
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    get = deployment_service_pb2.GetDeploymentRequest(name="desk")
    async with asyncio.timeout(30):
        while created.state != deployment_service_pb2.DEPLOYMENT_STATE_READY:
            created = (await plane.deployments.GetDeployment(get)).deployment
        replicas = next(each for each in plane.serving.plan.applications if each["name"] == "desk--r1")
        assert replicas["args"]["manifest_sha256"] == "ab" * 32, "replicas must serve what the registry knows"
        await plane.deployments.DeleteDeployment(deployment_service_pb2.DeleteDeploymentRequest(name="desk"))
        while (await plane.deployments.ListDeployments(deployment_service_pb2.ListDeploymentsRequest())).deployments:
            await asyncio.sleep(0.01)
    assert plane.serving.names == set()


async def test_alias_needs_a_name_that_is_one(plane: ControlPlane) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plane.models.SetAlias(model_service_pb2.SetAliasRequest(name="bot", alias="7", version=1))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_restarted_server_knows_its_jobs_and_watchers_go_on(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, listen="127.0.0.1:0", shutdown_grace_s=1.0)
    ray = ScriptedRay()
    async with served(settings, ray) as plane:
        uid = await plane.create()
        ref = await plane.running(uid)
        stream = plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(uid=uid))
        cursor = (await stream.read()).job.resource_version
    async with served(settings, ray) as plane:
        stream = plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(uid=uid, after_resource_version=cursor))
        await plane.finish(ref, 1, model_path=str(plane.settings.publish_dir("bot", ref.job_uid)))
        async with asyncio.timeout(30):
            change = await stream.read()
        assert change.job.state == job_pb2.JOB_STATE_SUCCEEDED


async def test_streams_end_promptly_when_the_server_does(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, listen="127.0.0.1:0", shutdown_grace_s=60.0)
    async with asyncio.timeout(30):
        async with running_server(settings, ScriptedRay(), ScriptedServing()) as address:
            channel = admin_channel(settings, address)
            plane = ControlPlane(address, settings, ScriptedRay(), ScriptedServing(), channel)
            stream = plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest())
            uid = await plane.create()
            assert (await stream.read()).job.uid == uid
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _to_the_end(stream)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await channel.close()


async def _to_the_end(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:99999", "192.0.2.1:50051"])
async def test_address_that_cannot_be_listened_on(tmp_path: Path, listen: str) -> None:
    with pytest.raises(StartUpError, match="ATHANOR_LISTEN"):
        async with running_server(Settings(home=tmp_path, listen=listen)):
            pass


def _environment(home: Path, listen: str) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        "ATHANOR_HOME": str(home),
        "ATHANOR_LISTEN": listen,
        "ATHANOR_RAY_DASHBOARD_URL": "http://127.0.0.1:1",
    }


def test_port_in_use_is_one_clear_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", START],
            env=_environment(tmp_path, listen),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == f"error: [CANNOT_LISTEN] {listen} is in use; stop the other process or set ATHANOR_LISTEN\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_ends_gracefully_by_signal(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        env=_environment(tmp_path, "127.0.0.1:0"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if '"server.started"' in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert '"server.stopped"' in rest
    assert "Traceback" not in rest
