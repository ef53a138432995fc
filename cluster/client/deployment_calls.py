"""The questions to DeploymentService that have one answer, as requests."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from athanor.v1 import deployment_service_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask

from cluster.client.call import Call, Listing, call

_SETTLED = (pb.DEPLOYMENT_STATE_READY, pb.DEPLOYMENT_STATE_FAILED)
SERVICE = pb.DESCRIPTOR.services_by_name["DeploymentService"]


def create_deployment(
    deployment: pb.Deployment, *, validate_only: bool = False, request_id: str | None = None
) -> Call[pb.Deployment]:
    """Serve a model. Safe to repeat, as `create_job`."""
    request = pb.CreateDeploymentRequest(
        deployment=deployment, validate_only=validate_only, request_id=request_id or str(uuid.uuid4())
    )
    return call(SERVICE, "CreateDeployment", request, pb.CreateDeploymentResponse, lambda made: made.deployment)


def get_deployment(name: str) -> Call[pb.Deployment]:
    """As stored, with the state last seen on Ray."""
    request = pb.GetDeploymentRequest(name=name)
    return call(SERVICE, "GetDeployment", request, pb.GetDeploymentResponse, lambda found: found.deployment)


def list_deployments() -> Call[Sequence[pb.Deployment]]:
    """All of them, by name."""
    request = pb.ListDeploymentsRequest()
    return call(SERVICE, "ListDeployments", request, pb.ListDeploymentsResponse, lambda found: found.deployments)


def delete_deployment(name: str) -> Call[None]:
    """Take it down and forget it. Not repeated."""
    request = pb.DeleteDeploymentRequest(name=name)
    return call(SERVICE, "DeleteDeployment", request, pb.DeleteDeploymentResponse, lambda _: None)


def update_deployment(deployment: pb.Deployment, fields: Sequence[str], *, etag: str = "") -> Call[pb.Deployment]:
    """Change these fields; another model or other resources begin a rolling update. Not repeated."""
    request = pb.UpdateDeploymentRequest(deployment=deployment, update_mask=FieldMask(paths=fields), etag=etag)
    return call(SERVICE, "UpdateDeployment", request, pb.UpdateDeploymentResponse, lambda made: made.deployment)


def start_canary(
    name: str, model: str, *, weight: int = 0, gate: pb.CanaryGate | None = None, mirror_share: float | None = None
) -> Call[pb.Deployment]:
    """Bring a version up beside the one that answers; `weight` in basis points. Not repeated.

    `mirror_share`, 0 to 1, is for a canary without a gate.
    """
    request = pb.StartCanaryRequest(name=name, model=model, weight=weight, gate=gate, mirror_share=mirror_share)
    return call(SERVICE, "StartCanary", request, pb.StartCanaryResponse, lambda made: made.deployment)


def set_traffic(name: str, canary_weight: int, *, mirror_share: float | None = None) -> Call[pb.Deployment]:
    """Change the canary's share of the requests, in basis points, and of those asked in the dark, 0 to 1."""
    request = pb.SetTrafficRequest(name=name, canary_weight=canary_weight, mirror_share=mirror_share)
    return call(SERVICE, "SetTraffic", request, pb.SetTrafficResponse, lambda made: made.deployment)


def promote_deployment(name: str) -> Call[pb.Deployment]:
    """Let the canary answer all requests. Not repeated."""
    return call(SERVICE, "Promote", pb.PromoteRequest(name=name), pb.PromoteResponse, lambda made: made.deployment)


def rollback_deployment(name: str) -> Call[pb.Deployment]:
    """End what is coming, or go back to the version before. Not repeated: a second one would go back further."""
    return call(SERVICE, "Rollback", pb.RollbackRequest(name=name), pb.RollbackResponse, lambda made: made.deployment)


def list_deployment_events(name: str, *, limit: int = 100) -> Listing[pb.DeploymentEvent]:
    """Every decision about a deployment, newest first, at most `limit`."""

    def page(size: int, token: str) -> Call[tuple[Sequence[pb.DeploymentEvent], str]]:
        request = pb.ListDeploymentEventsRequest(name=name, page_size=size, page_token=token)
        return call(
            SERVICE,
            "ListDeploymentEvents",
            request,
            pb.ListDeploymentEventsResponse,
            lambda found: (found.events, found.next_page_token),
        )

    return Listing(page, limit)


def is_starting(deployment: pb.Deployment, number: int) -> bool:
    """Whether this revision of it is still on its way up."""
    starting = pb.REVISION_PHASE_STARTING
    return any(each.number == number and each.phase == starting for each in deployment.revisions)


def is_settled(deployment: pb.Deployment) -> bool:
    """Whether it answers as it was last asked to, or has failed. A server that counts nothing says 0 of 0."""
    return deployment.state in _SETTLED and deployment.observed_generation >= deployment.generation


def unsettled(deployment: pb.Deployment, timeout_s: float) -> str:
    """In words, after so long."""
    is_ready = deployment.state == pb.DEPLOYMENT_STATE_READY
    what = "answers, and not yet as it was asked to," if is_ready else "does not answer"
    return f"{deployment.name} {what} after {timeout_s:g} s{'; ' * bool(deployment.message)}{deployment.message}"
