"""ClusterService: what is running and where, who waits, and what projects may hold at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator

import grpc
from athanor.v1 import cluster_service_pb2 as messages
from athanor.v1 import cluster_service_pb2_grpc

from cluster import __version__
from cluster.capacity import Resources
from cluster.errors import InvalidInput, Violation, in_words
from cluster.launcher import Launcher, RayNode
from cluster.project_use import Projects, ProjectUse
from cluster.reconciler import RayStatus
from cluster.registry import NAME_RULE, is_name
from cluster.security.caller import caller
from cluster.services.pages import page_size
from cluster.settings import Settings
from cluster.standings import WORDS
from cluster.store.queue_view import Place
from cluster.store.store import Store
from cluster.wire import timestamp

NOT_SEEN_YET = "NOT_SEEN_YET"
_WAITS_FOR_ROOM = frozenset({"", "RESOURCES", "BEHIND_OTHERS"})
_MOST_JOBS = 2**31 - 1


class ClusterService(cluster_service_pb2_grpc.ClusterServiceServicer):
    """Answers from the settings, the store, and from what Ray shows now."""

    def __init__(self, settings: Settings, store: Store, launcher: Launcher, ray: RayStatus) -> None:
        self._settings = settings
        self._store = store
        self._launcher = launcher
        self._ray = ray
        self._projects = Projects(store)
        self._start_time_s = time.time()

    async def GetServerInfo(
        self, request: messages.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> messages.GetServerInfoResponse:
        del request, context
        response = messages.GetServerInfoResponse(
            version=__version__,
            api_versions=["athanor.v1"],
            ray_dashboard_url=self._settings.ray_dashboard_url,
            ray_reachable=self._ray.reachable,
            ray_version=self._ray.version,
            serve_url=self._settings.serve_url,
            storage_path=str(self._settings.storage),
            store=self._settings.store_kind,
        )
        response.start_time.FromNanoseconds(int(self._start_time_s * 1e9))
        return response

    async def ListNodes(
        self, request: messages.ListNodesRequest, context: grpc.ServicerContext
    ) -> messages.ListNodesResponse:
        del request, context
        nodes, reserved = await asyncio.gather(self._launcher.nodes(), self._launcher.reserved())
        return messages.ListNodesResponse(nodes=[_node(node, reserved.get(node.id)) for node in nodes])

    async def GetQueue(
        self, request: messages.GetQueueRequest, context: grpc.ServicerContext
    ) -> messages.GetQueueResponse:
        del context
        line = await asyncio.to_thread(self._store.queue_line, caller().scope, page_size(request.page_size))
        response = messages.GetQueueResponse(
            jobs=[self._queued(place) for place in line.places], num_waiting=line.num_waiting
        )
        if line.decision_time_us:
            response.decision_time.CopyFrom(timestamp(line.decision_time_us))
        return response

    def _queued(self, place: Place) -> messages.QueuedJob:
        job, reason, words = place.job, place.standing.reason, place.standing.message
        if not self._ray.reachable and reason in _WAITS_FOR_ROOM:
            reason = "RAY_UNREACHABLE"
            words = WORDS[reason]
        return messages.QueuedJob(
            uid=job.uid,
            project=job.project,
            priority=job.priority,
            position=place.position,
            reason=reason or NOT_SEEN_YET,
            message=words,
            since=timestamp(job.queue_since_us or job.create_time_us),
        )

    async def ListProjects(
        self, request: messages.ListProjectsRequest, context: grpc.ServicerContext
    ) -> messages.ListProjectsResponse:
        del request, context
        found = await asyncio.to_thread(self._projects.uses, caller().scope)
        return messages.ListProjectsResponse(projects=[_project(use) for use in found])

    async def SetQuota(
        self, request: messages.SetQuotaRequest, context: grpc.ServicerContext
    ) -> messages.SetQuotaResponse:
        del context
        if wrong := list(_quota_violations(request)):
            raise InvalidInput("INVALID_QUOTA", in_words(wrong), wrong)
        quota = request.quota
        limits = {
            "cpus": quota.cpus if quota.HasField("cpus") else None,
            "gpus": quota.gpus if quota.HasField("gpus") else None,
            "jobs": quota.running_jobs if quota.HasField("running_jobs") else None,
        }
        await asyncio.to_thread(self._store.set_quota, request.project, limits, quota.weight or 1.0)
        (use,) = await asyncio.to_thread(self._projects.uses, (request.project,))
        return messages.SetQuotaResponse(project=_project(use))


def _quota_violations(request: messages.SetQuotaRequest) -> Iterator[Violation]:
    """NaN is in no range. An absent limit reads as 0, which is in each."""
    if not is_name(request.project):
        yield Violation("project", f"{request.project[:64]!r} is no name; {NAME_RULE}")
    quota = request.quota
    for field, value in (("cpus", quota.cpus), ("gpus", quota.gpus), ("running_jobs", quota.running_jobs)):
        if not 0 <= value < math.inf:
            yield Violation(f"quota.{field}", f"{value} is no limit; at least 0, or left out for none")
    if not 0 <= quota.weight < math.inf:
        yield Violation("quota.weight", f"{quota.weight} is no weight; more than 0, e.g. 2 beside others' 1")


def _node(node: RayNode, reserved: Resources | None) -> messages.Node:
    taken = reserved or Resources(0.0)
    return messages.Node(
        id=node.id,
        address=node.address,
        alive=node.is_alive,
        cpus=node.total.cpus,
        gpus=node.total.gpus,
        free_cpus=max(node.total.cpus - taken.cpus, 0.0) if node.is_alive else 0.0,
        free_gpus=max(node.total.gpus - taken.gpus, 0.0) if node.is_alive else 0.0,
    )


def _project(use: ProjectUse) -> messages.Project:
    quota = messages.Quota(weight=use.quota.weight)
    if use.quota.cpus != math.inf:
        quota.cpus = use.quota.cpus
    if use.quota.gpus != math.inf:
        quota.gpus = use.quota.gpus
    if use.quota.jobs != math.inf:
        quota.running_jobs = min(int(use.quota.jobs), _MOST_JOBS)
    return messages.Project(
        name=use.name,
        quota=quota,
        cpus=use.held.cpus,
        gpus=use.held.gpus,
        running_jobs=use.running_jobs,
        waiting_jobs=use.waiting_jobs,
    )
