"""A real gRPC server, a Ray and a Serve that do what the test says, and the calls that tests make again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from athanor.v1 import (
    audit_service_pb2_grpc,
    cluster_service_pb2_grpc,
    deployment_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    model_service_pb2_grpc,
    token_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from google.protobuf import json_format, struct_pb2

from cluster.capacity import Resources
from cluster.channel import open_async_channel
from cluster.deployer import Endpoint, ServeView
from cluster.errors import RayUnreachable
from cluster.launcher import RayJob, RayNode, Submission
from cluster.policy import View
from cluster.ray_head import RayHead
from cluster.ray_state import ListedJob
from cluster.rollout import Seen, Shown
from cluster.serve_plan import Plan
from cluster.server import running_server
from cluster.settings import Settings


class ScriptedRay:
    """Ray's job API in memory, so that a test decides what becomes of a driver."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}
        self.entrypoints: dict[str, str] = {}
        self.metadata: dict[str, Mapping[str, str]] = {}
        self.is_reachable = True

    async def version(self) -> str:
        return "2.60.0"

    async def nodes(self) -> list[RayNode]:
        if not self.is_reachable:
            raise RayUnreachable("RAY_UNREACHABLE", "Ray cannot be reached: the test says so")
        gone = RayNode("gone", "127.0.0.2", Resources(8.0, 1.0), is_alive=False)
        return [RayNode("head", "127.0.0.1", Resources(16.0, 0.0), is_head=True), gone]

    async def reserved(self) -> Mapping[str, Resources]:
        return {"head": Resources(1.5, 0.0)}

    async def jobs(self) -> list[ListedJob]:
        return [ListedJob(uid, view, self.metadata.get(uid, {})) for uid, view in self.views.items()]

    async def look(self, ray_job_id: str) -> RayJob:
        return RayJob(self.views.get(ray_job_id, View.UNKNOWN))

    async def submit(self, submission: Submission) -> None:
        self.views.setdefault(submission.ray_job_id, View.ALIVE)
        self.entrypoints[submission.ray_job_id] = submission.entrypoint
        self.metadata[submission.ray_job_id] = submission.metadata

    async def stop(self, ray_job_id: str) -> None:
        self.views[ray_job_id] = View.ENDED


class ScriptedServing:
    """Ray Serve in memory: everything is ready at once."""

    def __init__(self) -> None:
        self.plan = Plan()

    @property
    def names(self) -> set[str]:
        """Of the deployments."""
        return set(self.plan.prefixes)

    async def ours(self) -> set[str]:
        return {each["name"] for each in self.plan.applications}

    async def apply(self, plan: Plan, before_write: Callable[[], Awaitable[None]] | None = None) -> ServeView:
        if before_write is not None and plan != self.plan:
            await before_write()
        self.plan = plan
        ready = Seen(Shown.READY, num_running=1)
        applications = {each["name"]: ready for each in plan.applications}
        return ServeView(Endpoint("127.0.0.1", 8000), applications, is_routed=True)


@dataclass
class ControlPlane:
    """A running server, a channel to it, and what it takes for Ray."""

    address: str
    settings: Settings
    ray: ScriptedRay
    serving: ScriptedServing
    channel: grpc.aio.Channel

    @property
    def token(self) -> str:
        """The first admin token."""
        return self.settings.admin_token_path.read_text().strip()

    @property
    def tokens(self) -> Any:
        return token_service_pb2_grpc.TokenServiceStub(self.channel)

    @property
    def audit(self) -> Any:
        return audit_service_pb2_grpc.AuditServiceStub(self.channel)

    @property
    def jobs(self) -> Any:
        return job_service_pb2_grpc.JobServiceStub(self.channel)

    @property
    def workers(self) -> Any:
        return worker_service_pb2_grpc.WorkerServiceStub(self.channel)

    @property
    def models(self) -> Any:
        return model_service_pb2_grpc.ModelServiceStub(self.channel)

    @property
    def deployments(self) -> Any:
        return deployment_service_pb2_grpc.DeploymentServiceStub(self.channel)

    @property
    def cluster(self) -> Any:
        return cluster_service_pb2_grpc.ClusterServiceStub(self.channel)

    def job_message(self, name: str = "bot", **changes: Any) -> job_pb2.Job:
        """A small job that is right."""
        train = self.settings.home / "train.jsonl"
        train.write_text('{"prompt": "hello", "completion": "world"}\n')
        spec = {
            "student": {"config": {"model_type": "llama", "hidden_size": 64}},
            "data": {"train": str(train), "format": "prompt_completion"},
            "training": {"max_steps": 5},
            "publish": {"model": "bot", "alias": "champion"},
            **changes,
        }
        return job_pb2.Job(name=name, kind="FineTune", spec=json_format.ParseDict(spec, struct_pb2.Struct()))

    async def create(self, name: str = "bot", **changes: Any) -> str:
        request = job_service_pb2.CreateJobRequest(job=self.job_message(name, **changes))
        return (await self.jobs.CreateJob(request)).job.uid

    async def get(self, uid: str) -> job_pb2.Job:
        return (await self.jobs.GetJob(job_service_pb2.GetJobRequest(uid=uid))).job

    async def until(self, uid: str, state: int) -> job_pb2.Job:
        """Watch until the job is in a state."""
        async with asyncio.timeout(30):
            async for change in self.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(uid=uid)):
                if change.job.state == state:
                    return change.job
        raise AssertionError("a watch does not end by itself")

    async def started(self, uid: str) -> worker_service_pb2.AttemptRef:
        """Wait for the attempt, and be its driver."""
        job = await self.until(uid, job_pb2.JOB_STATE_STARTING)
        path = self.settings.job_dir(uid) / "attempts" / str(len(job.attempts)) / "attempt.json"
        token = json.loads(path.read_text())["lease_token"]
        return worker_service_pb2.AttemptRef(job_uid=uid, attempt=len(job.attempts), lease_token=token)

    async def running(self, uid: str) -> worker_service_pb2.AttemptRef:
        ref = await self.started(uid)
        await self.workers.Heartbeat(worker_service_pb2.HeartbeatRequest(attempt=ref))
        return ref

    async def finish(self, ref: worker_service_pb2.AttemptRef, outcome: int, **fields: Any) -> None:
        record = worker_service_pb2.TerminalRecord(outcome=outcome, **fields)
        await self.workers.ReportTerminal(worker_service_pb2.ReportTerminalRequest(attempt=ref, record=record))
        self.ray.views[f"{ref.job_uid}-{ref.attempt}"] = View.ENDED


@asynccontextmanager
async def served(settings: Settings, ray: ScriptedRay) -> AsyncIterator[ControlPlane]:
    """A control plane while the block lasts."""
    serving = ScriptedServing()
    async with (
        running_server(settings, ray, serving) as address,
        admin_channel(settings, address) as channel,
    ):
        yield ControlPlane(address, settings, ray, serving, channel)


def admin_channel(settings: Settings, address: str) -> grpc.aio.Channel:
    """A channel with the first admin token of a control plane that runs."""
    return open_async_channel(address, settings.admin_token_path.read_text().strip())


def settings_for(head: RayHead, home: Path, **changes: object) -> Settings:
    """Of a control plane in front of a real Ray."""
    known = {
        "home": home,
        "listen": "127.0.0.1:0",
        "ray_dashboard_url": head.dashboard_url,
        "ray_token_path": Path(head.token_path),
        "lease_s": 3.0,
        "cancel_grace_s": 5.0,
        "shutdown_grace_s": 1.0,
    }
    return Settings.model_validate({**known, **changes})
