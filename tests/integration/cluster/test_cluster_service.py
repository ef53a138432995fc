"""ClusterService over a real channel: nodes, the queue, projects and their quotas."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from athanor.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    options_pb2,
    token_service_pb2,
)
from control_plane import ControlPlane, ScriptedRay, served
from model_dirs import write_model
from test_job_service import refused

from cluster.channel import open_async_channel
from cluster.settings import Settings


def nodes(plane: ControlPlane) -> Any:
    return plane.cluster.ListNodes(cluster_service_pb2.ListNodesRequest())


async def queue(plane: ControlPlane, page_size: int = 0) -> cluster_service_pb2.GetQueueResponse:
    return await plane.cluster.GetQueue(cluster_service_pb2.GetQueueRequest(page_size=page_size))


async def projects(plane: ControlPlane) -> dict[str, cluster_service_pb2.Project]:
    found = await plane.cluster.ListProjects(cluster_service_pb2.ListProjectsRequest())
    return {project.name: project for project in found.projects}


def set_quota(plane: ControlPlane, project: str = "care", **quota: Any) -> Any:
    request = cluster_service_pb2.SetQuotaRequest(project=project, quota=cluster_service_pb2.Quota(**quota))
    return plane.cluster.SetQuota(request)


async def create(plane: ControlPlane, project: str) -> str:
    job = plane.job_message()
    job.project = project
    return (await plane.jobs.CreateJob(job_service_pb2.CreateJobRequest(job=job))).job.uid


async def test_nodes_tell_what_nobody_has_reserved(plane: ControlPlane) -> None:
    head, gone = (await nodes(plane)).nodes
    assert (head.id, head.alive, head.cpus, head.free_cpus, head.free_gpus) == ("head", True, 16.0, 14.5, 0.0)
    assert (gone.alive, gone.cpus, gone.free_cpus, gone.free_gpus) == (False, 8.0, 0.0, 0.0)
    plane.ray.is_reachable = False
    error = await refused(nodes(plane))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "RAY_UNREACHABLE")


async def told(plane: ControlPlane, reason: str) -> Any:
    """The queue, once a decision has given all jobs in it this reason."""
    async with asyncio.timeout(60):
        seen = await queue(plane)
        while {job.reason for job in seen.jobs} != {reason}:
            await asyncio.sleep(0.02)
            seen = await queue(plane)
    return seen


async def test_queue_tells_who_waits_and_why(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, listen="127.0.0.1:0", shutdown_grace_s=1.0, reconcile_interval_s=0.1, max_running_jobs=1
    )
    async with served(settings, ScriptedRay()) as plane:
        running = await create(plane, "care")
        await plane.started(running)
        waiting = [await create(plane, project) for project in ("care", "desk")]
        seen = await told(plane, "RUNNING_JOBS_LIMIT")
        assert sorted(job.uid for job in seen.jobs) == sorted(waiting)
        assert [job.position for job in seen.jobs] == [1, 2]
        assert all(job.message and job.since.seconds for job in seen.jobs)
        assert (seen.num_waiting, seen.decision_time.seconds > 0) == (2, True)
        assert len((await queue(plane, 1)).jobs) == 1
        assert (await refused(queue(plane, -1))).reason == "INVALID_PAGE_SIZE"
        use = await projects(plane)
        assert (use["care"].running_jobs, use["care"].waiting_jobs, use["care"].cpus) == (1, 1, 1.0)
        assert (use["desk"].running_jobs, use["desk"].waiting_jobs, use["desk"].cpus) == (0, 1, 0.0)


async def test_queue_of_a_ray_that_cannot_be_seen(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path, listen="127.0.0.1:0", shutdown_grace_s=1.0, ray_dashboard_url="http://127.0.0.1:9"
    )

    class Away(ScriptedRay):
        async def version(self) -> str:
            self.is_reachable = False
            await self.nodes()
            raise AssertionError("nodes raises")

    async with served(settings, Away()) as plane:
        uid = await create(plane, "care")
        (job,) = (await told(plane, "RAY_UNREACHABLE")).jobs
        assert (job.uid, job.position) == (uid, 1)


async def test_quota_is_set_whole_and_holds_jobs_back(plane: ControlPlane) -> None:
    made = (await set_quota(plane, cpus=2.5, running_jobs=0)).project
    assert (made.name, made.quota.cpus, made.quota.running_jobs, made.quota.weight) == ("care", 2.5, 0, 1.0)
    assert not made.quota.HasField("gpus")
    uid = await create(plane, "care")
    async with asyncio.timeout(30):
        while (await queue(plane)).jobs[0].reason != "QUOTA":
            await asyncio.sleep(0.01)
    made = (await set_quota(plane, gpus=1, weight=3)).project
    assert not made.quota.HasField("cpus")
    assert not made.quota.HasField("running_jobs")
    assert (made.quota.gpus, made.quota.weight) == (1, 3)
    await plane.until(uid, job_pb2.JOB_STATE_STARTING)
    assert (await projects(plane))["care"].quota == made.quota


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"cpus": -1}, "quota.cpus"),
        ({"cpus": math.nan}, "quota.cpus"),
        ({"gpus": math.inf}, "quota.gpus"),
        ({"running_jobs": -1}, "quota.running_jobs"),
        ({"weight": -0.5}, "quota.weight"),
        ({"weight": math.nan}, "quota.weight"),
        ({"project": "Care"}, "project"),
        ({"project": ""}, "project"),
    ],
)
async def test_wrong_quotas_are_refused(plane: ControlPlane, fields: dict[str, Any], wrong: str) -> None:
    error = await refused(set_quota(plane, **fields))
    assert (error.code, error.reason, list(error.fields)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_QUOTA",
        [wrong],
    )
    assert await projects(plane) == {}


async def channel_for(plane: ControlPlane, project: str, role: int) -> grpc.aio.Channel:
    """As somebody whose token reaches one project alone."""
    token = token_service_pb2.Token(name=f"of-{project}", role=role, projects=[project])
    secret = (await plane.tokens.CreateToken(token_service_pb2.CreateTokenRequest(token=token))).secret
    return open_async_channel(plane.address, secret)


async def test_whoever_reaches_one_project_sees_its_jobs_at_their_true_places(plane: ControlPlane) -> None:
    for project in ("care", "desk"):
        await set_quota(plane, project, running_jobs=0)
    theirs = await create(plane, "desk")
    ours = await create(plane, "care")
    async with await channel_for(plane, "care", options_pb2.ROLE_VIEWER) as channel:
        stub = cluster_service_pb2_grpc.ClusterServiceStub(channel)
        seen = await stub.GetQueue(cluster_service_pb2.GetQueueRequest())
        assert [(job.uid, job.position) for job in seen.jobs] == [(ours, 2)]
        assert seen.num_waiting == 2
        found = await stub.ListProjects(cluster_service_pb2.ListProjectsRequest())
        assert [project.name for project in found.projects] == ["care"]
        assert len((await stub.ListNodes(cluster_service_pb2.ListNodesRequest())).nodes) == 2
        request = cluster_service_pb2.SetQuotaRequest(project="care", quota=cluster_service_pb2.Quota())
        assert (await refused(stub.SetQuota(request))).code == grpc.StatusCode.PERMISSION_DENIED
    assert theirs not in {job.uid for job in seen.jobs}


async def test_directory_of_others_jobs_is_no_source_of_models(plane: ControlPlane) -> None:
    uid = await create(plane, "desk")
    inside = write_model(plane.settings.job_dir(uid) / "student" / "model")
    request = model_service_pb2.CreateModelVersionRequest(name="bot", path=str(inside))
    async with await channel_for(plane, "care", options_pb2.ROLE_SUBMITTER) as channel:
        error = await refused(model_service_pb2_grpc.ModelServiceStub(channel).CreateModelVersion(request))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
    async with await channel_for(plane, "desk", options_pb2.ROLE_SUBMITTER) as channel:
        made = await model_service_pb2_grpc.ModelServiceStub(channel).CreateModelVersion(request)
        assert made.model_version.version == 1
