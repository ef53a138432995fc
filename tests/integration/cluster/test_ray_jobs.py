"""The launcher and the whole control plane against a real Ray with its token authentication on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from athanor.v1 import job_pb2, job_service_pb2
from control_plane import ControlPlane, ScriptedRay, ScriptedServing, admin_channel, settings_for

from cluster.errors import RayUnreachable
from cluster.ids import new_job_uid
from cluster.launcher import RayLauncher, RayNode, Submission
from cluster.policy import View
from cluster.ray_head import RayHead
from cluster.server import running_server
from cluster.settings import Settings

pytestmark = pytest.mark.ray
LONG = f"{sys.executable} -c 'import time; time.sleep(600)'"


@asynccontextmanager
async def launcher_for(settings: Settings) -> AsyncIterator[RayLauncher]:
    launcher = RayLauncher(settings)
    yield launcher
    await launcher.close()


async def until_view(launcher: RayLauncher, ray_job_id: str, view: View) -> None:
    async with asyncio.timeout(60):
        while (await launcher.look(ray_job_id)).view is not view:
            await asyncio.sleep(0.2)


async def test_job_is_started_once_seen_and_stopped(ray_cluster: RayHead, tmp_path: Path) -> None:
    settings = settings_for(ray_cluster, tmp_path)
    ray_job_id = f"{new_job_uid('launcher')}-1"
    async with launcher_for(settings) as launcher:
        assert await launcher.version() == "2.60.0"
        assert (await launcher.look(ray_job_id)).view is View.UNKNOWN
        await launcher.stop(ray_job_id)
        for _ in range(2):
            await launcher.submit(Submission(ray_job_id, LONG, {"job": "launcher"}, {"DS_ACCELERATOR": "cpu"}))
        assert (await launcher.look(ray_job_id)).view is View.ALIVE
        await launcher.stop(ray_job_id)
        await until_view(launcher, ray_job_id, View.ENDED)
        await launcher.stop(ray_job_id)
    token = Path(ray_cluster.token_path).read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    jobs = httpx.get(f"{ray_cluster.dashboard_url}/api/jobs/", headers=headers, trust_env=False).json()
    assert [job["metadata"] for job in jobs if job["submission_id"] == ray_job_id] == [{"job": "launcher"}]


async def until_nodes(launcher: RayLauncher) -> list[RayNode]:
    """A head that has just begun knows not even itself."""
    while True:
        try:
            return await launcher.nodes()
        except RayUnreachable:
            await asyncio.sleep(0.2)


async def test_nodes_of_a_cluster_are_seen_whole(ray_cluster: RayHead, tmp_path: Path) -> None:
    async with launcher_for(settings_for(ray_cluster, tmp_path)) as launcher, asyncio.timeout(60):
        nodes = await until_nodes(launcher)
    assert [(node.is_alive, node.is_head) for node in nodes] == [(True, True)]
    assert nodes[0].total.cpus >= 1
    assert len(nodes[0].id) == 56
    assert nodes[0].address


async def test_wrong_token_is_no_evidence(ray_cluster: RayHead, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong" * 8)
    for path in (None, tmp_path / "token"):
        async with launcher_for(settings_for(ray_cluster, tmp_path, ray_token_path=path)) as launcher:
            with pytest.raises(RayUnreachable) as caught:
                await launcher.look("x-1")
            assert caught.value.reason == "RAY_UNAUTHORIZED"


@asynccontextmanager
async def plane_on(head: RayHead, home: Path) -> AsyncIterator[ControlPlane]:
    """A control plane whose drivers are stubs."""
    stub = home / "python"
    stub.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / "stub_driver.py"} "$@"\n')
    stub.chmod(0o700)
    settings = settings_for(head, home, driver_python=str(stub))
    async with (
        running_server(settings, serving=ScriptedServing()) as address,
        admin_channel(settings, address) as channel,
    ):
        yield ControlPlane(address, settings, ScriptedRay(), ScriptedServing(), channel)


def driver_pid(plane: ControlPlane, uid: str, attempt: int) -> int:
    log = (plane.settings.job_dir(uid) / "attempts" / str(attempt) / "driver.log").read_text()
    return int(log.split()[1])


def finish(plane: ControlPlane, uid: str, attempt: int) -> None:
    (plane.settings.job_dir(uid) / "attempts" / str(attempt) / "finish").touch()


@pytest.mark.slow
async def test_killed_driver_is_recovered_and_lost_call_made_good(ray_cluster: RayHead, tmp_path: Path) -> None:
    async with plane_on(ray_cluster, tmp_path) as plane:
        uid = await plane.create()
        await plane.until(uid, job_pb2.JOB_STATE_RUNNING)
        os.kill(driver_pid(plane, uid, 1), signal.SIGKILL)
        await plane.until(uid, job_pb2.JOB_STATE_RECOVERING)
        job = await plane.until(uid, job_pb2.JOB_STATE_RUNNING)
        assert [attempt.ray_job_id for attempt in job.attempts] == [f"{uid}-1", f"{uid}-2"]
        finish(plane, uid, 2)
        job = await plane.until(uid, job_pb2.JOB_STATE_SUCCEEDED)
        assert job.published_model == "bot@1"
        assert [attempt.reason for attempt in job.attempts] == ["DRIVER_LOST", "SUCCEEDED"]


@pytest.mark.slow
async def test_job_outlives_its_control_plane(ray_cluster: RayHead, tmp_path: Path) -> None:
    """It ends while nobody is there, and its result counts."""
    async with plane_on(ray_cluster, tmp_path) as plane:
        uid = await plane.create()
        await plane.until(uid, job_pb2.JOB_STATE_RUNNING)
        finish(plane, uid, 1)
    async with plane_on(ray_cluster, tmp_path) as plane:
        job = await plane.until(uid, job_pb2.JOB_STATE_SUCCEEDED)
    assert len(job.attempts) == 1


@pytest.mark.slow
async def test_cancel_reaches_the_driver(ray_cluster: RayHead, tmp_path: Path) -> None:
    async with plane_on(ray_cluster, tmp_path) as plane:
        uid = await plane.create()
        await plane.until(uid, job_pb2.JOB_STATE_RUNNING)
        await plane.jobs.CancelJob(job_service_pb2.CancelJobRequest(uid=uid))
        job = await plane.until(uid, job_pb2.JOB_STATE_CANCELLED)
        assert [attempt.reason for attempt in job.attempts] == ["CANCELLED"]
