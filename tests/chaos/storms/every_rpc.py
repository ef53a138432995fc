"""A good request for each RPC of the contract, made from what a small world holds; found from the descriptors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from athanor.v1 import (
    audit_service_pb2 as audit,
)
from athanor.v1 import (
    cluster_service_pb2 as cluster,
)
from athanor.v1 import (
    deployment_service_pb2 as deployments,
)
from athanor.v1 import (
    job_pb2,
    options_pb2,
)
from athanor.v1 import (
    job_service_pb2 as jobs,
)
from athanor.v1 import (
    model_service_pb2 as models,
)
from athanor.v1 import (
    token_service_pb2 as tokens,
)
from athanor.v1 import (
    worker_service_pb2 as workers,
)
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from storm import Crowd, until

from cluster.client import job_calls
from cluster.store.deployment_records import Gate, Phase, Trial
from cluster.store.store import Store

_JUDGES_TOKEN = "of-the-judge"
FILES = (audit, cluster, deployments, jobs, models, tokens, workers)
OK = "OK"


def methods() -> Iterator[MethodDescriptor]:
    """All of them."""
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def call(channel: grpc.Channel, method: MethodDescriptor, request: Any) -> Any:
    """The answer; of a stream its first message, if it has one."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answers = message_factory.GetMessageClass(method.output_type)
    kinds = (type(request).SerializeToString, answers.FromString)
    if method.server_streaming:
        return next(iter(channel.unary_stream(path, *kinds)(request, timeout=10)), None)
    return channel.unary_unary(path, *kinds)(request, timeout=10)


def outcome(channel: grpc.Channel, method: MethodDescriptor, request: Any) -> str:
    """OK, or the reason why not."""
    try:
        call(channel, method, request)
    except grpc.RpcError as error:
        return reason_of(error)
    return OK


def reason_of(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return str(error.code().name)


@dataclass
class World:
    """Makes what a request needs, each time anew: what one call has changed is no part of the next."""

    crowd: Crowd
    jobs_dir: Path
    model_dir: Path
    numbers: Iterator[int]

    def name(self, what: str) -> str:
        return f"{what}{next(self.numbers)}"

    def ended(self, kind: str = "ok") -> str:
        uid = self.crowd.send(kind)
        self.crowd.ended([uid])
        until(lambda: self.crowd.job(uid).attempts[-1].end_time.seconds > 0, "the attempt is closed")
        return uid

    def held(self) -> str:
        """A job that only waits."""
        return self.crowd.send("ok", schedule={"hold_until": "2999-01-01T00:00:00Z"})

    def cancelled(self) -> str:
        """A job that has ended and never held anything."""
        uid = self.held()
        self.crowd.client.cancel_job(uid)
        self.crowd.ended([uid])
        return uid

    def paused(self) -> str:
        uid = self.held()
        self.crowd.client.pause_job(uid)
        return uid

    def attempt(self) -> workers.AttemptRef:
        """Of a job whose driver is the test itself."""
        uid = self.crowd.send("quiet")
        path = self.jobs_dir / uid / "attempts" / "1" / "attempt.json"
        self.crowd.reaches(uid, job_pb2.JOB_STATE_STARTING)
        token = json.loads(path.read_text())["lease_token"]
        return workers.AttemptRef(job_uid=uid, attempt=1, lease_token=token)

    def model(self, versions: int = 1) -> str:
        name = self.name("model")
        for _ in range(versions):
            self.crowd.client.create_model_version(name, str(self.model_dir))
        return name

    def aliased(self) -> str:
        name = self.model(2)
        for version in (1, 2):
            self.crowd.client.set_alias(name, "best", version)
        return name

    def deployment(self) -> str:
        name = self.name("desk")
        wish = deployments.Deployment(name=name, model=f"{self.model()}@1")
        self.crowd.client.create_deployment(wish)
        return name

    def live(self) -> str:
        """A deployment whose first revision answers, as far as the store knows: there is no Serve here."""
        return self._revised(Phase.LIVE)

    def canary(self, trial: Trial | None = None) -> str:
        """One with a canary beside it."""
        return self._revised(Phase.LIVE, Phase.CANARY, trial=trial)

    def _revised(self, *phases: Phase, trial: Trial | None = None) -> str:
        store = Store.open(f"sqlite:///{self.jobs_dir.parent.parent / 'athanor.db'}")
        try:
            known = store.get_deployment(self.deployment())
            (first,) = known.revisions
            revisions = [replace(first, number=number, phase=phase) for number, phase in enumerate(phases, start=1)]
            if len(revisions) > 1:
                revisions[1] = replace(revisions[1], is_canary=True, trial=trial)
            return store.decide_deployment(known, replace(known, revisions=tuple(revisions)), ()).name
        finally:
            store.close()

    def judged(self) -> str:
        return self.canary(Trial(Gate(), "teacher@1", "/teacher", _JUDGES_TOKEN))

    def token(self) -> str:
        made = self.crowd.client.create_token(self.name("token"), options_pb2.ROLE_VIEWER)
        return str(made.token.id)


@dataclass(frozen=True)
class Case:
    """`make` a request; `again` are the words for a second call besides OK."""

    make: Callable[[World], Any]
    again: tuple[str, ...] = ()


def _record(attempt: workers.AttemptRef) -> workers.ReportTerminalRequest:
    record = workers.TerminalRecord(outcome=workers.OUTCOME_USER_ERROR, reason="DATA_EMPTY", message="no data")
    return workers.ReportTerminalRequest(attempt=attempt, record=record)


def _update(world: World) -> jobs.UpdateJobRequest:
    job = job_pb2.Job(uid=world.held(), priority=700)
    return jobs.UpdateJobRequest(job=job, update_mask=FieldMask(paths=["priority"]))


def _create(world: World) -> jobs.CreateJobRequest:
    name = world.name("ok-rpc")
    request = job_calls.create_job(world.crowd.manifest(name), request_id=name).request
    assert isinstance(request, jobs.CreateJobRequest)
    return request


def _import(world: World) -> models.CreateModelVersionRequest:
    name = world.name("model")
    return models.CreateModelVersionRequest(name=name, path=str(world.model_dir), request_id=name)


def _retry(world: World) -> jobs.RetryJobRequest:
    return jobs.RetryJobRequest(uid=world.ended("user"), request_id=world.name("retry"))


CASES: dict[str, Case] = {
    "AuditService.ListAuditEntries": Case(lambda world: audit.ListAuditEntriesRequest()),
    "AuditService.VerifyAuditLog": Case(lambda world: audit.VerifyAuditLogRequest()),
    "ClusterService.GetServerInfo": Case(lambda world: cluster.GetServerInfoRequest()),
    "ClusterService.ListNodes": Case(lambda world: cluster.ListNodesRequest()),
    "ClusterService.GetQueue": Case(lambda world: cluster.GetQueueRequest()),
    "ClusterService.ListProjects": Case(lambda world: cluster.ListProjectsRequest()),
    "ClusterService.SetQuota": Case(
        lambda world: cluster.SetQuotaRequest(project=world.name("team"), quota=cluster.Quota(cpus=4))
    ),
    "DeploymentService.CreateDeployment": Case(
        lambda world: deployments.CreateDeploymentRequest(
            deployment=deployments.Deployment(name=world.name("desk"), model=f"{world.model()}@1")
        ),
        again=("DEPLOYMENT_EXISTS",),
    ),
    "DeploymentService.GetDeployment": Case(lambda world: deployments.GetDeploymentRequest(name=world.deployment())),
    "DeploymentService.ListDeployments": Case(lambda world: deployments.ListDeploymentsRequest()),
    "DeploymentService.DeleteDeployment": Case(
        lambda world: deployments.DeleteDeploymentRequest(name=world.deployment()), again=("DEPLOYMENT_NOT_FOUND",)
    ),
    "DeploymentService.UpdateDeployment": Case(
        lambda world: deployments.UpdateDeploymentRequest(
            deployment=deployments.Deployment(name=world.deployment(), num_replicas=2),
            update_mask=FieldMask(paths=["num_replicas"]),
        )
    ),
    "DeploymentService.StartCanary": Case(
        lambda world: deployments.StartCanaryRequest(name=world.live(), model=world.model(), weight=100),
        again=("CANARY_EXISTS",),
    ),
    "DeploymentService.SetTraffic": Case(
        lambda world: deployments.SetTrafficRequest(name=world.canary(), canary_weight=500)
    ),
    "DeploymentService.Promote": Case(
        lambda world: deployments.PromoteRequest(name=world.canary()), again=("NO_CANARY",)
    ),
    "DeploymentService.Rollback": Case(
        lambda world: deployments.RollbackRequest(name=world.canary()), again=("NO_EARLIER_REVISION",)
    ),
    "DeploymentService.ListDeploymentEvents": Case(
        lambda world: deployments.ListDeploymentEventsRequest(name=world.deployment())
    ),
    "DeploymentService.ReportObservations": Case(
        lambda world: deployments.ReportObservationsRequest(
            name=world.judged(),
            revision=2,
            token=_JUDGES_TOKEN,
            observations=[deployments.Observation(canary_failed=True)],
            request_id=world.name("report"),
        )
    ),
    "JobService.CreateJob": Case(_create),
    "JobService.GetJob": Case(lambda world: jobs.GetJobRequest(uid=world.held())),
    "JobService.ListJobs": Case(lambda world: jobs.ListJobsRequest(filter="priority >= 1")),
    "JobService.UpdateJob": Case(_update),
    "JobService.DeleteJob": Case(lambda world: jobs.DeleteJobRequest(uid=world.cancelled()), again=("JOB_NOT_FOUND",)),
    "JobService.CancelJob": Case(lambda world: jobs.CancelJobRequest(uid=world.held())),
    "JobService.PauseJob": Case(lambda world: jobs.PauseJobRequest(uid=world.held())),
    "JobService.ResumeJob": Case(lambda world: jobs.ResumeJobRequest(uid=world.paused())),
    "JobService.RetryJob": Case(_retry),
    "JobService.WatchJobs": Case(lambda world: jobs.WatchJobsRequest(uid=world.held())),
    "JobService.StreamJobLogs": Case(lambda world: jobs.StreamJobLogsRequest(uid=world.ended())),
    "JobService.StreamJobMetrics": Case(lambda world: jobs.StreamJobMetricsRequest(uid=world.ended())),
    "JobService.ListJobEvents": Case(lambda world: jobs.ListJobEventsRequest(uid=world.held())),
    "JobService.GetJobReport": Case(
        lambda world: jobs.GetJobReportRequest(uid=world.held()), again=("REPORT_NOT_FOUND",)
    ),
    "ModelService.GetModelVersion": Case(lambda world: models.GetModelVersionRequest(reference=world.model())),
    "ModelService.ListModelVersions": Case(lambda world: models.ListModelVersionsRequest()),
    "ModelService.SetAlias": Case(
        lambda world: models.SetAliasRequest(name=world.model(), alias="best", version=1, expected_version=0),
        again=("ALIAS_MOVED",),
    ),
    "ModelService.CreateModelVersion": Case(_import),
    "ModelService.DeleteModelVersion": Case(
        lambda world: models.DeleteModelVersionRequest(reference=f"{world.model()}@1"), again=("MODEL_NOT_FOUND",)
    ),
    "ModelService.ListAliasHistory": Case(
        lambda world: models.ListAliasHistoryRequest(name=world.aliased(), alias="best")
    ),
    "ModelService.RollbackAlias": Case(
        lambda world: models.RollbackAliasRequest(name=world.aliased(), alias="best", expected_version=2),
        again=("ALIAS_MOVED",),
    ),
    "ModelService.VerifyModelVersion": Case(lambda world: models.VerifyModelVersionRequest(reference=world.model())),
    "ModelService.DownloadModelVersion": Case(
        lambda world: models.DownloadModelVersionRequest(reference=world.model())
    ),
    "TokenService.CreateToken": Case(
        lambda world: tokens.CreateTokenRequest(
            token=tokens.Token(name=world.name("token"), role=options_pb2.ROLE_VIEWER)
        ),
        again=("TOKEN_NAME_TAKEN",),
    ),
    "TokenService.ListTokens": Case(lambda world: tokens.ListTokensRequest()),
    "TokenService.RevokeToken": Case(lambda world: tokens.RevokeTokenRequest(id=world.token())),
    "TokenService.GetCaller": Case(lambda world: tokens.GetCallerRequest()),
    "WorkerService.Heartbeat": Case(lambda world: workers.HeartbeatRequest(attempt=world.attempt())),
    "WorkerService.ReportProgress": Case(
        lambda world: workers.ReportProgressRequest(
            attempt=world.attempt(), progress=job_pb2.Progress(stage="train", step=1, total_steps=2)
        )
    ),
    "WorkerService.ReportTerminal": Case(lambda world: _record(world.attempt())),
}


def new_world(crowd: Crowd, jobs_dir: Path, model_dir: Path) -> World:
    return World(crowd, jobs_dir, model_dir, itertools.count())
