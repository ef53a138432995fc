"""ModelService: shows the registry and moves aliases. Versions come from finished jobs alone."""

from __future__ import annotations

import asyncio

import grpc
from athanor.v1 import model_service_pb2 as messages
from athanor.v1 import model_service_pb2_grpc

from cluster.errors import InvalidInput, Violation
from cluster.registry import NAME_RULE, is_name, resolve
from cluster.services.pages import make_token, page_size, read_token
from cluster.settings import Settings
from cluster.store.store import Store
from cluster.wire import model_to_proto


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Handlers only."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    async def GetModelVersion(
        self, request: messages.GetModelVersionRequest, context: grpc.ServicerContext
    ) -> messages.GetModelVersionResponse:
        del context
        model = await asyncio.to_thread(resolve, self._store, request.reference)
        return messages.GetModelVersionResponse(model_version=model_to_proto(model))

    async def ListModelVersions(
        self, request: messages.ListModelVersionsRequest, context: grpc.ServicerContext
    ) -> messages.ListModelVersionsResponse:
        del context
        size, question = page_size(request.page_size), ("models", request.name)
        cursor = read_token(request.page_token, question, [str, int])
        after = (str(cursor[0]), int(cursor[1])) if cursor else None
        found = await asyncio.to_thread(self._store.list_models, request.name, after, size + 1)
        more = make_token([found[size - 1].name, found[size - 1].version], question) if len(found) > size else ""
        return messages.ListModelVersionsResponse(
            model_versions=[model_to_proto(model) for model in found[:size]], next_page_token=more
        )

    async def SetAlias(
        self, request: messages.SetAliasRequest, context: grpc.ServicerContext
    ) -> messages.SetAliasResponse:
        del context
        if not is_name(request.alias):
            message = f"{request.alias!r} is no alias; {NAME_RULE}"
            raise InvalidInput("INVALID_ALIAS", message, [Violation("alias", message)])
        expected = request.expected_version if request.HasField("expected_version") else None
        model = await asyncio.to_thread(self._store.set_alias, request.name, request.alias, request.version, expected)
        return messages.SetAliasResponse(model_version=model_to_proto(model))
