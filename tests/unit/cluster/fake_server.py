"""A control plane of a few lines behind a real gRPC socket; a test scripts what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NoReturn

import grpc
from athanor.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    deployment_service_pb2,
    deployment_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
)
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status


def refuse(
    context: grpc.ServicerContext,
    code: int,
    reason: str,
    message: str,
    violations: dict[str, str] | None = None,
    more: Sequence[Message] = (),
) -> NoReturn:
    """Abort as the real server does: status, ErrorInfo, BadRequest."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="athanor.dev"), *more]
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=path, description=words)
            for path, words in violations.items()
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed)))
    raise AssertionError("abort raises")


@dataclass
class FakeControlPlane(
    job_service_pb2_grpc.JobServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
    deployment_service_pb2_grpc.DeploymentServiceServicer,
    cluster_service_pb2_grpc.ClusterServiceServicer,
    token_service_pb2_grpc.TokenServiceServicer,
):
    """What tests set: `changes` to watch, how often to be away or too slow, after which change to cut a watch."""

    jobs: dict[str, job_pb2.Job] = field(default_factory=dict)
    changes: list[job_service_pb2.WatchJobsResponse] = field(default_factory=list)
    log: bytes = b""
    cut_after: set[int] = field(default_factory=set)
    unavailable_times: int = 0
    slow_times: int = 0
    limited_times: int = 0
    models: dict[str, model_service_pb2.ModelVersion] = field(default_factory=dict)
    deployments: dict[str, deployment_service_pb2.Deployment] = field(default_factory=dict)
    next_revision: deployment_service_pb2.Revision | None = None
    """What the next update brings."""
    meanwhile: list[Callable[[deployment_service_pb2.Deployment], object]] = field(default_factory=list)
    """What others do to a deployment before an update of it is there, the last one first."""
    looks_behind: int = 0
    """After a wish the gateway of a deployment goes by it from the look after so many on."""
    looks: int = 0
    """At deployments, since the last wish."""
    created: list[job_service_pb2.CreateJobRequest] = field(default_factory=list)
    cursors: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    refused_after: int | None = None
    reads: list[tuple[str, int]] = field(default_factory=list)
    metrics: list[job_service_pb2.StreamJobMetricsResponse] = field(default_factory=list)
    events: list[job_service_pb2.JobEvent] = field(default_factory=list)
    asked: list[Message] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)

    def _seen(self, context: grpc.ServicerContext) -> None:
        self.deadlines.append(context.time_remaining())
        if self.unavailable_times > 0:
            self.unavailable_times -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        if self.limited_times > 0:
            self.limited_times -= 1
            details = error_details_pb2.RetryInfo()
            details.retry_delay.FromMilliseconds(20)
            refuse(context, code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED", "too many calls", more=[details])
        if self.slow_times > 0:
            self.slow_times -= 1
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def CreateJob(self, request, context):
        self.created.append(request)
        self._seen(context)
        if request.job.name == "refused":
            words = {"spec.data.train": "there is no file /data/none.jsonl"}
            refuse(context, code_pb2.INVALID_ARGUMENT, "INVALID_SPEC", "\n".join(words.values()), words)
        job = job_pb2.Job()
        job.CopyFrom(request.job)
        job.uid = "" if request.validate_only else f"{request.job.name}-abcdefgh"
        job.state = job_pb2.JOB_STATE_QUEUED
        self.jobs[job.uid] = job
        return job_service_pb2.CreateJobResponse(job=job)

    def GetJob(self, request, context):
        self._seen(context)
        if request.uid not in self.jobs:
            refuse(context, code_pb2.NOT_FOUND, "JOB_NOT_FOUND", f"there is no job {request.uid!r}")
        return job_service_pb2.GetJobResponse(job=self.jobs[request.uid])

    def ListJobs(self, request, context):
        """One job to a page, so that pages are walked through."""
        self._seen(context)
        self.filters.append(request.filter)
        found = [
            job
            for job in self.jobs.values()
            if request.name in ("", job.name) and (not request.states or job.state in request.states)
        ]
        at = int(request.page_token or 0)
        more = str(at + 1) if at + 1 < len(found) else ""
        return job_service_pb2.ListJobsResponse(jobs=found[at : at + 1], next_page_token=more)

    def CancelJob(self, request, context):
        self._seen(context)
        job = self.jobs[request.uid]
        job.state = job_pb2.JOB_STATE_CANCELLED
        return job_service_pb2.CancelJobResponse(job=job)

    def _moved(self, request, context, state):
        """Note what was asked; the job, in the state that was asked for."""
        self.asked.append(request)
        self._seen(context)
        job = self.jobs[request.uid]
        job.state = state
        return job

    def PauseJob(self, request, context):
        job = self._moved(request, context, job_pb2.JOB_STATE_PAUSING)
        return job_service_pb2.PauseJobResponse(job=job)

    def ResumeJob(self, request, context):
        job = self._moved(request, context, job_pb2.JOB_STATE_QUEUED)
        return job_service_pb2.ResumeJobResponse(job=job)

    def RetryJob(self, request, context):
        self.asked.append(request)
        job = job_pb2.Job(uid="bot-again", name="bot", retry_of=request.uid, state=job_pb2.JOB_STATE_QUEUED)
        return job_service_pb2.RetryJobResponse(job=job)

    def UpdateJob(self, request, context):
        self.asked.append(request)
        return job_service_pb2.UpdateJobResponse(job=request.job)

    def DeleteJob(self, request, context):
        self.asked.append(request)
        del self.jobs[request.uid]
        return job_service_pb2.DeleteJobResponse()

    def ListJobEvents(self, request, context):
        return job_service_pb2.ListJobEventsResponse(events=self.events)

    def StreamJobMetrics(self, request, context):
        self.asked.append(request)
        yield from self.metrics

    def GetJobReport(self, request, context):
        content = b"<html></html>" if request.format == job_service_pb2.REPORT_FORMAT_HTML else b"{}"
        return job_service_pb2.GetJobReportResponse(content=content)

    def GetServerInfo(self, request, context):
        return cluster_service_pb2.GetServerInfoResponse(ray_dashboard_url="http://127.0.0.1:8265")

    def ListNodes(self, request, context):
        self._seen(context)
        refuse(context, code_pb2.UNAVAILABLE, "RAY_UNREACHABLE", "Ray cannot be seen")

    def GetCaller(self, request, context):
        return token_service_pb2.GetCallerResponse(token=token_service_pb2.Token(name="sue"))

    def WatchJobs(self, request, context) -> Iterator[job_service_pb2.WatchJobsResponse]:
        self._seen(context)
        self.cursors.append(request.after_resource_version)
        for change in self.changes:
            if change.job.resource_version > request.after_resource_version:
                yield change
            if change.job.resource_version in self.cut_after:
                self.cut_after.remove(change.job.resource_version)
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    def StreamJobLogs(self, request, context) -> Iterator[job_service_pb2.StreamJobLogsResponse]:
        """Four bytes to a piece."""
        self._seen(context)
        self.offsets.append(request.after_offset)
        for at in range(request.after_offset, len(self.log), 4):
            piece = self.log[at : at + 4]
            yield job_service_pb2.StreamJobLogsResponse(data=piece, next_offset=at + len(piece), attempt=1)
            if at in self.cut_after:
                self.cut_after.remove(at)
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    def GetModelVersion(self, request, context):
        self._seen(context)
        if request.reference not in self.models:
            refuse(context, code_pb2.NOT_FOUND, "MODEL_NOT_FOUND", f"there is no model {request.reference!r}")
        return model_service_pb2.GetModelVersionResponse(model_version=self.models[request.reference])

    def ListModelVersions(self, request, context):
        self._seen(context)
        return model_service_pb2.ListModelVersionsResponse(model_versions=self.models.values())

    def SetAlias(self, request, context):
        self._seen(context)
        version = self.models[f"{request.name}@{request.version}"]
        version.aliases.append(request.alias)
        return model_service_pb2.SetAliasResponse(model_version=version)

    def DownloadModelVersion(self, request, context) -> Iterator[model_service_pb2.DownloadModelVersionResponse]:
        """256 bytes to a piece."""
        self._seen(context)
        self.reads.append((request.file, request.after_offset))
        data = self.files[request.file]
        for at in range(request.after_offset, len(data), 256):
            piece = data[at : at + 256]
            yield model_service_pb2.DownloadModelVersionResponse(
                file=request.file, data=piece, next_offset=at + len(piece), size=len(data)
            )
            if self.refused_after is not None and at >= self.refused_after:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down")
            if at in self.cut_after:
                self.cut_after.remove(at)
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")

    def CreateDeployment(self, request, context):
        self._seen(context)
        deployment = request.deployment
        deployment.state = deployment_service_pb2.DEPLOYMENT_STATE_READY
        deployment.endpoint = f"http://127.0.0.1:8000/{deployment.name}/v1"
        self.deployments[deployment.name] = deployment
        return deployment_service_pb2.CreateDeploymentResponse(deployment=deployment)

    def GetDeployment(self, request, context):
        self._seen(context)
        deployment = self._deployment(request.name, context)
        if self.looks >= self.looks_behind:
            deployment.observed_generation = deployment.generation
        self.looks += 1
        return deployment_service_pb2.GetDeploymentResponse(deployment=deployment)

    def ListDeployments(self, request, context):
        self._seen(context)
        return deployment_service_pb2.ListDeploymentsResponse(deployments=self.deployments.values())

    def ListDeploymentEvents(self, request, context):
        self._seen(context)
        return deployment_service_pb2.ListDeploymentEventsResponse()

    def Rollback(self, request, context):
        self._seen(context)
        return deployment_service_pb2.RollbackResponse(deployment=self._wished(request.name))

    def Promote(self, request, context):
        self._seen(context)
        return deployment_service_pb2.PromoteResponse(deployment=self._wished(request.name))

    def SetTraffic(self, request, context):
        self.asked.append(request)
        return deployment_service_pb2.SetTrafficResponse(deployment=self._wished(request.name))

    def StartCanary(self, request, context):
        self.asked.append(request)
        return deployment_service_pb2.StartCanaryResponse(deployment=self._wished(request.name))

    def UpdateDeployment(self, request, context):
        self.asked.append(request)
        if self.meanwhile:
            self.meanwhile.pop()(self.deployments[request.deployment.name])
        if request.etag not in ("", self.deployments[request.deployment.name].etag):
            refuse(context, code_pb2.ABORTED, "ETAG_MISMATCH", "somebody changed it")
        return deployment_service_pb2.UpdateDeploymentResponse(deployment=self._wished(request.deployment.name))

    def DeleteDeployment(self, request, context):
        self._seen(context)
        del self.deployments[request.name]
        return deployment_service_pb2.DeleteDeploymentResponse()

    def _deployment(self, name, context):
        if name not in self.deployments:
            refuse(context, code_pb2.NOT_FOUND, "DEPLOYMENT_NOT_FOUND", f"there is no deployment {name!r}")
        return self.deployments[name]

    def _wished(self, name):
        deployment = self.deployments[name]
        deployment.generation, self.looks = deployment.generation + 1, 0
        if self.next_revision is not None:
            deployment.revisions.append(self.next_revision)
        return deployment


def serving(plane: FakeControlPlane) -> tuple[grpc.Server, str]:
    """A started server and its address."""
    server = grpc.server(ThreadPoolExecutor(4))
    job_service_pb2_grpc.add_JobServiceServicer_to_server(plane, server)
    cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(plane, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(plane, server)
    deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server(plane, server)
    token_service_pb2_grpc.add_TokenServiceServicer_to_server(plane, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def change(
    version: int, state: str, *, uid: str = "bot-abcdefgh", reason: str = "", stage: str = "", step: int = 0
) -> job_service_pb2.WatchJobsResponse:
    """A change of a job, with an event when there is a reason."""
    number = job_pb2.JobState.Value(f"JOB_STATE_{state}")
    job = job_pb2.Job(uid=uid, name="bot", kind="Distill", state=number, resource_version=version)
    if stage:
        job.progress.CopyFrom(job_pb2.Progress(stage=stage, step=step, total_steps=10, loss=0.5))
    response = job_service_pb2.WatchJobsResponse(job=job)
    if reason:
        response.event.CopyFrom(
            job_service_pb2.JobEvent(resource_version=version, job_uid=uid, state=number, reason=reason)
        )
        response.event.create_time.GetCurrentTime()
    return response
