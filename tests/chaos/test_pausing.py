"""Jobs that learn for real are paused over gRPC and go on: the same student, bit for bit, as one left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from athanor.v1 import job_pb2, job_service_pb2
from control_plane import ControlPlane, ScriptedRay, ScriptedServing, admin_channel, settings_for
from drivers import STUDENT, TRAINING, no_actors, until
from google.protobuf import json_format, struct_pb2
from tiny_jobs import write_chats

from cluster.ray_head import RayHead
from cluster.server import running_server
from trainer.atomic import sha256_file

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_DEADLINE_S = 240.0


@asynccontextmanager
async def plane_on(head: RayHead, home: Path) -> AsyncIterator[ControlPlane]:
    settings = settings_for(head, home, lease_s=15.0)
    async with (
        running_server(settings, serving=ScriptedServing()) as address,
        admin_channel(settings, address) as channel,
    ):
        yield ControlPlane(address, settings, ScriptedRay(), ScriptedServing(), channel)
    await asyncio.to_thread(until, no_actors, "all actors ended")


def fine_tuning(home: Path, *, workers: int) -> dict[str, Any]:
    """Its only checkpoint is the one that a pause asks for."""
    return {
        "student": STUDENT,
        "data": {"train": str(write_chats(home / "train.jsonl", 48)), "max_length": 48},
        "training": TRAINING | {"max_steps": 400},
        "resources": {"student": {"workers": workers, "cpus_per_worker": 0.5}},
        "checkpoint": {"every_steps": 100_000},
    }


async def create(plane: ControlPlane, kind: str, spec: dict[str, Any]) -> str:
    job = job_pb2.Job(name="bot", kind=kind, spec=json_format.ParseDict(spec, struct_pb2.Struct()))
    return (await plane.jobs.CreateJob(job_service_pb2.CreateJobRequest(job=job))).job.uid


async def seen(plane: ControlPlane, uid: str, condition: Any, *, after: int = 0) -> job_pb2.Job:
    """The first version of the job of which the condition is true."""
    request = job_service_pb2.WatchJobsRequest(uid=uid, after_resource_version=after)
    async with asyncio.timeout(_DEADLINE_S):
        async for change in plane.jobs.WatchJobs(request):
            assert change.job.state != job_pb2.JOB_STATE_FAILED, change.job.message
            if condition(change.job):
                return change.job
    raise AssertionError("a watch does not end by itself")


async def paused(plane: ControlPlane, uid: str) -> job_pb2.Job:
    """Ask for it; the job when it rests, or has ended before it could."""
    await plane.jobs.PauseJob(job_service_pb2.PauseJobRequest(uid=uid))
    rests = (job_pb2.JOB_STATE_PAUSED, job_pb2.JOB_STATE_SUCCEEDED)
    return await seen(plane, uid, lambda job: job.state in rests)


def weights(plane: ControlPlane, uid: str) -> str:
    return sha256_file(plane.settings.job_dir(uid) / "student" / "model" / "model.safetensors")


def succeeded(job: job_pb2.Job) -> bool:
    return job.state == job_pb2.JOB_STATE_SUCCEEDED


def is_new(told: set[str], job: job_pb2.Job) -> bool:
    return succeeded(job) or job.progress.stage not in told


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_job_that_was_paused_ends_with_the_same_student(
    ray_cluster: RayHead, tmp_path: Path, workers: int
) -> None:
    async with plane_on(ray_cluster, tmp_path) as plane:
        spec = fine_tuning(tmp_path, workers=workers)
        plain = await create(plane, "FineTune", spec)
        await seen(plane, plain, succeeded)
        uid = await create(plane, "FineTune", spec)
        await seen(plane, uid, lambda job: job.progress.stage == "train" and job.progress.step >= 5)
        job = await paused(plane, uid)
        assert (job.state, [one.reason for one in job.attempts]) == (job_pb2.JOB_STATE_PAUSED, ["PAUSED"])
        directory = plane.settings.job_dir(uid)
        steps = [json.loads(line)["step"] for line in (directory / "student/metrics.jsonl").read_text().splitlines()]
        (checkpoint,) = (directory / "student/checkpoints").glob("step-*")
        assert 5 <= steps[-1] < 400
        assert checkpoint.name == f"step-{steps[-1]:08d}", "at the step that it had reached"
        resumed = (await plane.jobs.ResumeJob(job_service_pb2.ResumeJobRequest(uid=uid))).job
        job = await seen(plane, uid, succeeded, after=resumed.resource_version)
        assert [one.reason for one in job.attempts] == ["PAUSED", "SUCCEEDED"]
        assert weights(plane, uid) == weights(plane, plain)
        for rank in range(workers):
            request = job_service_pb2.StreamJobLogsRequest(uid=uid, attempt=1, role="student", rank=rank)
            words = b"".join([piece.data async for piece in plane.jobs.StreamJobLogs(request)])
            assert b"train" in words or rank
            assert b"asked to stop" in words


@pytest.mark.timeout(1800)
async def test_a_job_may_be_paused_in_each_of_its_stages(
    ray_cluster: RayHead, tmp_path: Path, chat_model_dir: Path
) -> None:
    """Two shards of a teacher that writes labels, two students, a baseline: paused at its start, and in turn."""
    train = write_chats(tmp_path / "train.jsonl", 48)
    spec = {
        "teachers": [{"model": str(chat_model_dir), "shards": 2, "dtype": "float32"}],
        "student": STUDENT,
        "data": {"train": str(train), "eval": str(write_chats(tmp_path / "eval.jsonl", 8, seed=1)), "max_length": 48},
        "objective": {"seq_kd": True},
        "training": TRAINING | {"max_steps": 40},
        "resources": {"student": {"workers": 2, "cpus_per_worker": 0.5}, "teacher": {"cpus_per_worker": 0.5}},
        "checkpoint": {"every_steps": 100_000},
        "evaluate": {"baseline": {"max_samples": 6}, "max_new_tokens": 8, "bootstrap_samples": 100},
    }
    async with plane_on(ray_cluster, tmp_path) as plane:
        plain = await create(plane, "Distill", spec)
        await seen(plane, plain, succeeded)
        uid, told = await create(plane, "Distill", spec), {"prepare", "train", "publish"}
        job = await seen(plane, uid, lambda job: job.state == job_pb2.JOB_STATE_STARTING)
        while not succeeded(job := await paused(plane, uid)):
            told.add(job.progress.stage)
            resumed = (await plane.jobs.ResumeJob(job_service_pb2.ResumeJobRequest(uid=uid))).job
            job = await seen(plane, uid, partial(is_new, told), after=resumed.resource_version)
            if succeeded(job):
                break
        assert len(told) >= 5, "it was paused before it began, and in several stages"
        assert {attempt.reason for attempt in job.attempts} <= {"PAUSED", "SUCCEEDED"}
        assert weights(plane, uid) == weights(plane, plain)
        words = json.loads(json_format.MessageToJson(job.summary))
        assert words == json.loads(json_format.MessageToJson((await plane.get(plain)).summary))
        request = job_service_pb2.StreamJobLogsRequest(uid=plain, role="teacher", rank=1)
        assert [piece async for piece in plane.jobs.StreamJobLogs(request)]
