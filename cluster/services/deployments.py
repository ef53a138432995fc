"""DeploymentService: stores what shall be served. The reconciler brings it up and takes it down."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import grpc
from athanor.v1 import deployment_service_pb2 as messages
from athanor.v1 import deployment_service_pb2_grpc

from cluster.errors import InvalidInput, NotFound, Violation, in_words
from cluster.registry import NAME_RULE, is_name, resolve
from cluster.settings import Settings
from cluster.store.records import DeploymentState, StoredDeployment
from cluster.store.store import Store
from cluster.wire import deployment_to_proto

_MAX_REPLICAS = 64
_MAX_PER_REPLICA = 1024


class DeploymentService(deployment_service_pb2_grpc.DeploymentServiceServicer):
    """Handlers only."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    async def CreateDeployment(
        self, request: messages.CreateDeploymentRequest, context: grpc.ServicerContext
    ) -> messages.CreateDeploymentResponse:
        del context
        stored = await asyncio.to_thread(self._create, request.deployment)
        return messages.CreateDeploymentResponse(deployment=deployment_to_proto(stored))

    def _create(self, wish: messages.Deployment) -> StoredDeployment:
        """The reference is pinned now: an alias that moves later moves no deployment."""
        violations = list(_violations(wish))
        if violations:
            raise InvalidInput("INVALID_DEPLOYMENT", in_words(violations), violations)
        try:
            model = resolve(self._store, wish.model)
        except (NotFound, InvalidInput) as error:
            raise type(error)(error.reason, error.message, [Violation("deployment.model", error.message)]) from error
        new = StoredDeployment(
            name=wish.name,
            model=wish.model,
            resolved_model=model.reference,
            path=model.path,
            num_replicas=wish.num_replicas or 1,
            cpus_per_replica=wish.cpus_per_replica or 1.0,
            gpus_per_replica=wish.gpus_per_replica,
            state=DeploymentState.PENDING,
            message="stored; waits for Ray Serve",
            create_time_us=0,
            update_time_us=0,
            endpoint=f"{self._settings.serve_url}/{wish.name}/v1",
        )
        return self._store.create_deployment(new)

    async def GetDeployment(
        self, request: messages.GetDeploymentRequest, context: grpc.ServicerContext
    ) -> messages.GetDeploymentResponse:
        del context
        stored = await asyncio.to_thread(self._store.get_deployment, request.name)
        return messages.GetDeploymentResponse(deployment=deployment_to_proto(stored))

    async def ListDeployments(
        self, request: messages.ListDeploymentsRequest, context: grpc.ServicerContext
    ) -> messages.ListDeploymentsResponse:
        del request, context
        stored = await asyncio.to_thread(self._store.list_deployments)
        return messages.ListDeploymentsResponse(deployments=[deployment_to_proto(each) for each in stored])

    async def DeleteDeployment(
        self, request: messages.DeleteDeploymentRequest, context: grpc.ServicerContext
    ) -> messages.DeleteDeploymentResponse:
        del context
        await asyncio.to_thread(self._store.delete_deployment, request.name)
        return messages.DeleteDeploymentResponse()


def _violations(wish: messages.Deployment) -> Iterator[Violation]:
    if not is_name(wish.name):
        yield Violation("deployment.name", f"{wish.name!r} is no name; {NAME_RULE}")
    if not 0 <= wish.num_replicas <= _MAX_REPLICAS:
        yield Violation("deployment.num_replicas", f"{wish.num_replicas} is not between 1 and {_MAX_REPLICAS}")
    for field in ("cpus_per_replica", "gpus_per_replica"):
        value = getattr(wish, field)
        if not (math.isfinite(value) and 0 <= value <= _MAX_PER_REPLICA):
            yield Violation(f"deployment.{field}", f"{value} is not between 0 and {_MAX_PER_REPLICA}")
