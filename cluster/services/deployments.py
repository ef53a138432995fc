"""DeploymentService: stores what shall be served, and what people wish of it. The reconciler does the rest.

Everybody who reads sees all deployments, as everybody may call them; whoever changes one must reach its project.
"""

from __future__ import annotations

import asyncio

import grpc
from athanor.v1 import deployment_service_pb2 as messages
from athanor.v1 import deployment_service_pb2_grpc

from cluster import canary
from cluster.deployment_wire import decision_to_proto, deployment_to_proto, observation_from_proto
from cluster.errors import InvalidInput, Violation
from cluster.services.deployment_wishes import DeploymentWishes
from cluster.services.pages import make_token, page_size, read_token
from cluster.settings import Settings
from cluster.store.deployment_records import Json, StoredDeployment, Trial
from cluster.store.store import Store

_LAST = "last_report"


class DeploymentService(deployment_service_pb2_grpc.DeploymentServiceServicer):
    """Handlers only."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._grpc_port = settings.serve_grpc_port
        self._wishes = DeploymentWishes(settings, store)

    async def CreateDeployment(
        self, request: messages.CreateDeploymentRequest, context: grpc.ServicerContext
    ) -> messages.CreateDeploymentResponse:
        del context
        stored = await asyncio.to_thread(self._wishes.create, request)
        return messages.CreateDeploymentResponse(deployment=self._told(stored))

    async def GetDeployment(
        self, request: messages.GetDeploymentRequest, context: grpc.ServicerContext
    ) -> messages.GetDeploymentResponse:
        del context
        stored = await asyncio.to_thread(self._store.get_deployment, request.name)
        return messages.GetDeploymentResponse(deployment=self._told(stored))

    async def ListDeployments(
        self, request: messages.ListDeploymentsRequest, context: grpc.ServicerContext
    ) -> messages.ListDeploymentsResponse:
        del request, context
        stored = await asyncio.to_thread(self._store.list_deployments)
        return messages.ListDeploymentsResponse(deployments=[self._told(each) for each in stored])

    async def DeleteDeployment(
        self, request: messages.DeleteDeploymentRequest, context: grpc.ServicerContext
    ) -> messages.DeleteDeploymentResponse:
        del context
        await asyncio.to_thread(self._wishes.delete, request.name)
        return messages.DeleteDeploymentResponse()

    async def UpdateDeployment(
        self, request: messages.UpdateDeploymentRequest, context: grpc.ServicerContext
    ) -> messages.UpdateDeploymentResponse:
        del context
        stored = await asyncio.to_thread(self._wishes.update, request)
        return messages.UpdateDeploymentResponse(deployment=self._told(stored))

    async def StartCanary(
        self, request: messages.StartCanaryRequest, context: grpc.ServicerContext
    ) -> messages.StartCanaryResponse:
        del context
        stored = await asyncio.to_thread(self._wishes.start_canary, request)
        return messages.StartCanaryResponse(deployment=self._told(stored))

    async def SetTraffic(
        self, request: messages.SetTrafficRequest, context: grpc.ServicerContext
    ) -> messages.SetTrafficResponse:
        del context
        stored = await asyncio.to_thread(self._wishes.set_traffic, request)
        return messages.SetTrafficResponse(deployment=self._told(stored))

    async def Promote(
        self, request: messages.PromoteRequest, context: grpc.ServicerContext
    ) -> messages.PromoteResponse:
        del context
        stored = await asyncio.to_thread(self._wishes.promote, request.name)
        return messages.PromoteResponse(deployment=self._told(stored))

    async def Rollback(
        self, request: messages.RollbackRequest, context: grpc.ServicerContext
    ) -> messages.RollbackResponse:
        del context
        stored = await asyncio.to_thread(self._wishes.roll_back, request.name)
        return messages.RollbackResponse(deployment=self._told(stored))

    async def ListDeploymentEvents(
        self, request: messages.ListDeploymentEventsRequest, context: grpc.ServicerContext
    ) -> messages.ListDeploymentEventsResponse:
        del context
        size, question = page_size(request.page_size), ("deployment events", request.name)
        cursor = read_token(request.page_token, question, [int])
        before = int(cursor[0]) if cursor else None
        found = await asyncio.to_thread(self._store.deployment_decisions, request.name, before, size + 1)
        more = make_token([found[size - 1].number], question) if len(found) > size else ""
        events = [decision_to_proto(each) for each in found[:size]]
        return messages.ListDeploymentEventsResponse(events=events, next_page_token=more)

    async def ReportObservations(
        self, request: messages.ReportObservationsRequest, context: grpc.ServicerContext
    ) -> messages.ReportObservationsResponse:
        del context
        await asyncio.to_thread(self._observe, request)
        return messages.ReportObservationsResponse()

    def _told(self, stored: StoredDeployment) -> messages.Deployment:
        return deployment_to_proto(stored, self._grpc_port)

    def _observe(self, request: messages.ReportObservationsRequest) -> None:
        seen = [observation_from_proto(each) for each in request.observations]
        if not all(map(canary.is_sound, seen)):
            words = "a figure is negative or no number"
            raise InvalidInput("INVALID_OBSERVATION", words, [Violation("observations", words)])

        def see(trial: Trial) -> Json:
            if request.request_id and trial.evidence.get(_LAST) == request.request_id:
                return trial.evidence  # the answer was lost, not the report
            return {**canary.observe(trial.gate, trial.evidence, seen), _LAST: request.request_id}

        self._store.observe_canary(request.name, request.revision, request.token, see)
