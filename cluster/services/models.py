"""ModelService: shows the registry, moves aliases, brings models in and sends them. Files are model_content.py's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from athanor.v1 import model_service_pb2 as messages
from athanor.v1 import model_service_pb2_grpc

from cluster.errors import InvalidInput, Violation, in_words
from cluster.registry import NAME_RULE, is_name, resolve
from cluster.security.caller import caller
from cluster.services.model_content import ModelContent
from cluster.services.pages import bad_token, make_token, page_size, read_token
from cluster.settings import Settings
from cluster.store.store import Store
from cluster.wire import model_to_proto, move_to_proto

_MOST_VERSIONS = 2**31 - 1


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Handlers only."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._content = ModelContent(settings, store)

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
        _check_names(name=request.name or "any")
        cursor = read_token(request.page_token, question, [str, int])
        after = _after(cursor) if cursor else None
        found = await asyncio.to_thread(self._store.list_models, request.name, after, size + 1)
        more = make_token([found[size - 1].name, found[size - 1].version], question) if len(found) > size else ""
        return messages.ListModelVersionsResponse(
            model_versions=[model_to_proto(model) for model in found[:size]], next_page_token=more
        )

    async def SetAlias(
        self, request: messages.SetAliasRequest, context: grpc.ServicerContext
    ) -> messages.SetAliasResponse:
        del context
        _check_names(name=request.name, alias=request.alias)
        expected = request.expected_version if request.HasField("expected_version") else None
        at = (request.name, request.alias, request.version)
        model = await asyncio.to_thread(self._store.set_alias, *at, expected, caller().name)
        return messages.SetAliasResponse(model_version=model_to_proto(model))

    async def ListAliasHistory(
        self, request: messages.ListAliasHistoryRequest, context: grpc.ServicerContext
    ) -> messages.ListAliasHistoryResponse:
        del context
        _check_names(name=request.name, alias=request.alias)
        moves = await asyncio.to_thread(self._store.alias_history, request.name, request.alias)
        if not moves:
            await asyncio.to_thread(self._store.model_alias, request.name, request.alias)
        return messages.ListAliasHistoryResponse(moves=[move_to_proto(move) for move in reversed(moves)])

    async def RollbackAlias(
        self, request: messages.RollbackAliasRequest, context: grpc.ServicerContext
    ) -> messages.RollbackAliasResponse:
        del context
        _check_names(name=request.name, alias=request.alias)
        expected = request.expected_version if request.HasField("expected_version") else None
        at = (request.name, request.alias)
        model = await asyncio.to_thread(self._store.roll_back_alias, *at, expected, caller().name)
        return messages.RollbackAliasResponse(model_version=model_to_proto(model))

    async def DeleteAlias(
        self, request: messages.DeleteAliasRequest, context: grpc.ServicerContext
    ) -> messages.DeleteAliasResponse:
        del context
        _check_names(name=request.name, alias=request.alias)
        expected = request.expected_version if request.HasField("expected_version") else None
        await asyncio.to_thread(self._store.delete_alias, request.name, request.alias, expected, caller().name)
        return messages.DeleteAliasResponse()

    async def CreateModelVersion(
        self, request: messages.CreateModelVersionRequest, context: grpc.ServicerContext
    ) -> messages.CreateModelVersionResponse:
        del context
        return messages.CreateModelVersionResponse(model_version=model_to_proto(await self._content.create(request)))

    async def DeleteModelVersion(
        self, request: messages.DeleteModelVersionRequest, context: grpc.ServicerContext
    ) -> messages.DeleteModelVersionResponse:
        del context
        await self._content.delete(request.reference)
        return messages.DeleteModelVersionResponse()

    async def VerifyModelVersion(
        self, request: messages.VerifyModelVersionRequest, context: grpc.ServicerContext
    ) -> messages.VerifyModelVersionResponse:
        del context
        model, read = await self._content.verify(request.reference)
        return messages.VerifyModelVersionResponse(
            model_version=model_to_proto(model), num_files=read.num_files, num_bytes=read.num_bytes
        )

    async def DownloadModelVersion(
        self, request: messages.DownloadModelVersionRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[messages.DownloadModelVersionResponse]:
        del context
        async for piece in self._content.pieces(request):
            yield piece


def _check_names(**fields: str) -> None:
    """InvalidInput / INVALID_ALIAS for one that no model and no alias can have."""
    wrong = [Violation(field, f"{text[:64]!r} is no name; {NAME_RULE}") for field, text in fields.items()]
    wrong = [each for each in wrong if not is_name(fields[each.path])]
    if wrong:
        raise InvalidInput("INVALID_ALIAS" if "alias" in fields else "INVALID_NAME", in_words(wrong), wrong)


def _after(cursor: list[str | int]) -> tuple[str, int]:
    """Of a page token, which anybody may have written."""
    name, version = str(cursor[0]), int(cursor[1])
    if not is_name(name) or not 0 < version <= _MOST_VERSIONS:
        raise bad_token()
    return name, version
