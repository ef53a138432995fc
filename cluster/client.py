"""The client that the command and the quickstart use: typed, synchronous, a deadline on every call.

Repeats a call only when it is safe and the server was not there or too slow, a bounded number of times. Streams go on
where they were cut. Answers are the messages of `athanor.v1`; errors are `RequestFailed`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from athanor.v1 import (
    deployment_service_pb2,
    deployment_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from google.protobuf import json_format, struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.rpc import RPC_TIMEOUT_S, STREAM_TIMEOUT_S, Cuts, NotFinished, RequestFailed, Response, once, repeat

# We repeat calls ourselves; and a proxy for the web knows no way to a cluster, least of all to 127.0.0.1.
_CHANNEL_OPTIONS = (("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0))

_MAX_PAGE_SIZE = 1000
Page = TypeVar("Page")
Item = TypeVar("Item")

TERMINAL = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})
SETTLED = frozenset({deployment_service_pb2.DEPLOYMENT_STATE_READY, deployment_service_pb2.DEPLOYMENT_STATE_FAILED})


class AthanorClient:
    """One connection to one control plane. Use it in a `with` block."""

    def __init__(self, address: str, *, patience_s: float = 10.0) -> None:
        self.address = address
        self._patience_s = patience_s
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._jobs = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._deployments = deployment_service_pb2_grpc.DeploymentServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # Jobs

    def create_job(
        self, manifest: Mapping[str, Any], *, request_id: str | None = None, validate_only: bool = False
    ) -> job_pb2.Job:
        """Submit a job file. Safe to repeat: the same request id never makes a second job, and a failure names it."""
        request_id = request_id or str(uuid.uuid4())
        metadata = manifest.get("metadata") or {}
        job = job_pb2.Job(
            project=metadata.get("project", ""),
            name=metadata.get("name", ""),
            kind=manifest.get("kind", ""),
            labels=metadata.get("labels") or {},
            spec=json_format.ParseDict(manifest.get("spec") or {}, struct_pb2.Struct()),
        )
        request = job_service_pb2.CreateJobRequest(job=job, request_id=request_id, validate_only=validate_only)
        try:
            return self._repeat(lambda: self._jobs.CreateJob(request, timeout=RPC_TIMEOUT_S)).job
        except RequestFailed as error:
            if validate_only or not error.is_uncertain:
                raise
            raise error.with_request_id(request_id) from error

    def get_job(self, uid: str) -> job_pb2.Job:
        request = job_service_pb2.GetJobRequest(uid=uid)
        return self._repeat(lambda: self._jobs.GetJob(request, timeout=RPC_TIMEOUT_S)).job

    def find_job(self, uid_or_name: str) -> job_pb2.Job:
        """The job of this uid, else the newest one of this name."""
        try:
            return self.get_job(uid_or_name)
        except RequestFailed as error:
            if error.code != grpc.StatusCode.NOT_FOUND:
                raise
            newest = next(iter(self.list_jobs(name=uid_or_name, limit=1)), None)
            if newest is None:
                raise
            return newest

    def list_jobs(
        self, *, states: Sequence[job_pb2.JobState.ValueType] = (), name: str = "", limit: int = 100
    ) -> Iterator[job_pb2.Job]:
        """Newest first, over all pages, at most `limit`."""

        def page(size: int, token: str) -> job_service_pb2.ListJobsResponse:
            request = job_service_pb2.ListJobsRequest(page_size=size, page_token=token, states=states, name=name)
            return self._repeat(lambda: self._jobs.ListJobs(request, timeout=RPC_TIMEOUT_S))

        return _pages(page, lambda found: found.jobs, limit)

    def cancel_job(self, uid: str, message: str = "") -> job_pb2.Job:
        request = job_service_pb2.CancelJobRequest(uid=uid, message=message)
        return self._repeat(lambda: self._jobs.CancelJob(request, timeout=RPC_TIMEOUT_S)).job

    def watch_jobs(
        self, uid: str = "", *, after_resource_version: int = 0, until: float | None = None
    ) -> Iterator[job_service_pb2.WatchJobsResponse]:
        """A snapshot, then every stored change, with no gap where the connection was cut. Ends at `until`."""
        cursor = after_resource_version
        cuts = Cuts(self.address, self._patience_s)
        while until is None or time.monotonic() < until:
            request = job_service_pb2.WatchJobsRequest(uid=uid, after_resource_version=cursor)
            try:
                for change in self._jobs.WatchJobs(request, timeout=_stream_timeout_s(until)):
                    cuts.heard()
                    cursor = max(cursor, change.job.resource_version, change.event.resource_version)
                    yield change
            except grpc.RpcError as error:
                cursor = 0 if error.code() == grpc.StatusCode.OUT_OF_RANGE else cursor
                cuts.cut(error)

    def follow_job(self, uid: str, *, timeout_s: float | None = None) -> Iterator[job_service_pb2.WatchJobsResponse]:
        """`watch_jobs` of one job up to its end; NotFinished when `timeout_s` passes first."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for change in self.watch_jobs(uid, until=until):
            yield change
            if change.job.state in TERMINAL:
                return
        raise NotFinished("TIMEOUT", f"{uid} has not ended within {timeout_s:g} s; it goes on")

    def wait_job(self, uid: str, *, timeout_s: float | None = None) -> job_pb2.Job:
        """Blocks until the job has ended."""
        *_, last = self.follow_job(uid, timeout_s=timeout_s)
        return last.job

    def stream_logs(self, uid: str, *, attempt: int = 0, follow: bool = False) -> Iterator[bytes]:
        """The log of an attempt in pieces; with `follow` until the attempt has ended. Goes on where it was cut."""
        offset = 0
        cuts = Cuts(self.address, self._patience_s)
        while True:
            request = job_service_pb2.StreamJobLogsRequest(uid=uid, attempt=attempt, after_offset=offset, follow=follow)
            try:
                for piece in self._jobs.StreamJobLogs(request, timeout=STREAM_TIMEOUT_S):
                    cuts.heard()
                    offset, attempt = piece.next_offset, piece.attempt or attempt
                    yield piece.data
                return
            except grpc.RpcError as error:
                cuts.cut(error)

    # Models

    def get_model(self, reference: str) -> model_service_pb2.ModelVersion:
        request = model_service_pb2.GetModelVersionRequest(reference=reference)
        return self._repeat(lambda: self._models.GetModelVersion(request, timeout=RPC_TIMEOUT_S)).model_version

    def list_models(self, name: str = "", *, limit: int = 100) -> Iterator[model_service_pb2.ModelVersion]:
        """Over all pages, at most `limit`."""

        def page(size: int, token: str) -> model_service_pb2.ListModelVersionsResponse:
            request = model_service_pb2.ListModelVersionsRequest(name=name, page_size=size, page_token=token)
            return self._repeat(lambda: self._models.ListModelVersions(request, timeout=RPC_TIMEOUT_S))

        return _pages(page, lambda found: found.model_versions, limit)

    def set_alias(
        self, name: str, alias: str, version: int, *, expected_version: int | None = None
    ) -> model_service_pb2.ModelVersion:
        """Point an alias at a version; with `expected_version` only if it points there now (then never repeated)."""
        request = model_service_pb2.SetAliasRequest(
            name=name, alias=alias, version=version, expected_version=expected_version
        )
        ask = self._once if expected_version is not None else self._repeat
        return ask(lambda: self._models.SetAlias(request, timeout=RPC_TIMEOUT_S)).model_version

    # Deployments

    def create_deployment(self, deployment: deployment_service_pb2.Deployment) -> deployment_service_pb2.Deployment:
        """Not repeated: the second call would find the name taken."""
        request = deployment_service_pb2.CreateDeploymentRequest(deployment=deployment)
        return self._once(lambda: self._deployments.CreateDeployment(request, timeout=RPC_TIMEOUT_S)).deployment

    def get_deployment(self, name: str) -> deployment_service_pb2.Deployment:
        request = deployment_service_pb2.GetDeploymentRequest(name=name)
        return self._repeat(lambda: self._deployments.GetDeployment(request, timeout=RPC_TIMEOUT_S)).deployment

    def wait_deployment(self, name: str, *, timeout_s: float) -> deployment_service_pb2.Deployment:
        """Blocks until the deployment answers requests, or has failed; NotFinished when `timeout_s` passes first."""
        deadline = time.monotonic() + timeout_s
        while (deployment := self.get_deployment(name)).state not in SETTLED:
            if time.monotonic() > deadline:
                words = f"; {deployment.message}" if deployment.message else ""
                raise NotFinished("TIMEOUT", f"{name} does not answer after {timeout_s:g} s{words}")
            time.sleep(0.5)
        return deployment

    def list_deployments(self) -> Sequence[deployment_service_pb2.Deployment]:
        request = deployment_service_pb2.ListDeploymentsRequest()
        return self._repeat(lambda: self._deployments.ListDeployments(request, timeout=RPC_TIMEOUT_S)).deployments

    def delete_deployment(self, name: str) -> None:
        request = deployment_service_pb2.DeleteDeploymentRequest(name=name)
        self._once(lambda: self._deployments.DeleteDeployment(request, timeout=RPC_TIMEOUT_S))

    # The server itself

    def is_serving(self, *, timeout_s: float = 2.0) -> bool:
        """Whether the server answers and calls itself healthy. Asked once."""
        try:
            reply = self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def _once(self, call: Callable[[], Response]) -> Response:
        return once(call, self.address)

    def _repeat(self, call: Callable[[], Response]) -> Response:
        return repeat(call, self.address, patience_s=self._patience_s)


def _stream_timeout_s(until: float | None) -> float:
    left_s = STREAM_TIMEOUT_S if until is None else max(until - time.monotonic(), 0.001)
    return min(left_s, STREAM_TIMEOUT_S)


def _pages(ask: Callable[[int, str], Page], items: Callable[[Page], Sequence[Item]], limit: int) -> Iterator[Item]:
    """What all pages hold, at most `limit`, asked for as it is read."""
    token = ""
    while limit > 0:
        page: Any = ask(min(limit, _MAX_PAGE_SIZE), token)
        yield from items(page)
        limit -= len(items(page))
        token = page.next_page_token
        if not token:
            return
