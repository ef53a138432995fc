"""The questions about the installation itself: cluster, queue, projects, tokens, audit log, as requests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from athanor.v1 import audit_service_pb2 as audit
from athanor.v1 import cluster_service_pb2 as cluster
from athanor.v1 import options_pb2
from athanor.v1 import token_service_pb2 as tokens
from google.protobuf import timestamp_pb2

from cluster.client.call import Call, Listing, Seconds, call, duration

CLUSTER = cluster.DESCRIPTOR.services_by_name["ClusterService"]
TOKENS = tokens.DESCRIPTOR.services_by_name["TokenService"]
AUDIT = audit.DESCRIPTOR.services_by_name["AuditService"]


def server_info() -> Call[cluster.GetServerInfoResponse]:
    """Versions and addresses."""
    request = cluster.GetServerInfoRequest()
    return call(CLUSTER, "GetServerInfo", request, cluster.GetServerInfoResponse, lambda response: response)


def list_nodes() -> Call[Sequence[cluster.Node]]:
    """Ray's nodes, the head first."""
    return call(CLUSTER, "ListNodes", cluster.ListNodesRequest(), cluster.ListNodesResponse, lambda found: found.nodes)


def get_queue(*, limit: int = 100) -> Call[cluster.GetQueueResponse]:
    """The queue in the order of the scheduler's last decision: `jobs`, `num_waiting`, `decision_time`."""
    request = cluster.GetQueueRequest(page_size=limit)
    return call(CLUSTER, "GetQueue", request, cluster.GetQueueResponse, lambda response: response)


def list_projects() -> Call[Sequence[cluster.Project]]:
    """Quotas and use of every project that the token reaches."""
    request = cluster.ListProjectsRequest()
    return call(CLUSTER, "ListProjects", request, cluster.ListProjectsResponse, lambda found: found.projects)


def set_quota(project: str, quota: cluster.Quota) -> Call[cluster.Project]:
    """What a project may hold at once; all of it: what is absent is without limit."""
    request = cluster.SetQuotaRequest(project=project, quota=quota)
    return call(CLUSTER, "SetQuota", request, cluster.SetQuotaResponse, lambda response: response.project)


def create_token(
    name: str, role: options_pb2.Role.ValueType, projects: Sequence[str] = (), ttl: Seconds | None = None
) -> Call[tokens.CreateTokenResponse]:
    """A new token, and its `secret`, which is in this answer and nowhere else. Not repeated."""
    token = tokens.Token(name=name, role=role, projects=projects)
    request = tokens.CreateTokenRequest(token=token, ttl=duration(ttl))
    return call(TOKENS, "CreateToken", request, tokens.CreateTokenResponse, lambda response: response)


def list_tokens() -> Call[Sequence[tokens.Token]]:
    """All tokens, newest first, without secrets."""
    return call(TOKENS, "ListTokens", tokens.ListTokensRequest(), tokens.ListTokensResponse, lambda found: found.tokens)


def revoke_token(id: str) -> Call[tokens.Token]:
    """Take a token out of use at once."""
    request = tokens.RevokeTokenRequest(id=id)
    return call(TOKENS, "RevokeToken", request, tokens.RevokeTokenResponse, lambda response: response.token)


def get_caller() -> Call[tokens.Token]:
    """The token that we call with."""
    return call(TOKENS, "GetCaller", tokens.GetCallerRequest(), tokens.GetCallerResponse, lambda found: found.token)


def list_audit_entries(
    *, actor: str = "", resource: str = "", since: datetime | None = None, limit: int = 100
) -> Listing[audit.AuditEntry]:
    """Newest first, over all pages, at most `limit`: of `actor`, about what begins with `resource`, from `since` on."""

    def page(size: int, token: str) -> Call[tuple[Sequence[audit.AuditEntry], str]]:
        request = audit.ListAuditEntriesRequest(
            page_size=size, page_token=token, actor=actor, resource=resource, since=_timestamp(since)
        )
        return call(
            AUDIT,
            "ListAuditEntries",
            request,
            audit.ListAuditEntriesResponse,
            lambda found: (found.entries, found.next_page_token),
        )

    return Listing(page, limit)


def _timestamp(moment: datetime | None) -> timestamp_pb2.Timestamp | None:
    if moment is None:
        return None
    result = timestamp_pb2.Timestamp()
    result.FromDatetime(moment)
    return result


def verify_audit_log() -> Call[audit.VerifyAuditLogResponse]:
    """Compute the chain anew: how many entries fit together, and the hash of the last."""
    request = audit.VerifyAuditLogRequest()
    return call(AUDIT, "VerifyAuditLog", request, audit.VerifyAuditLogResponse, lambda response: response)
