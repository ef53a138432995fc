"""Counts and times every RPC of ours, around everything else that happens to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from cluster.metrics import Metrics

_OURS = "/athanor.v1."


class Meter(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """The outermost interceptor: what it counts is what the caller was told."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._measured: dict[str, Any] = {}
        """Handlers of the methods that were called."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        path = handler_call_details.method
        if path in self._measured:
            return self._measured[path]
        handler = await continuation(handler_call_details)
        if handler is None or not path.startswith(_OURS):
            return handler
        service, method = path.removeprefix(_OURS).split("/", 1)
        wrap = self._stream if handler.response_streaming else self._unary
        return self._measured.setdefault(path, wrap(handler, service, method))

    def _unary(self, handler: Any, service: str, method: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            began, code = time.perf_counter(), "CANCELLED"
            with self._metrics.call(service, method):
                try:
                    response = await handler.unary_unary(request, context)
                    code = "OK"
                    return response
                except asyncio.CancelledError:
                    raise
                except BaseException:
                    code = code_of(context)
                    raise
                finally:
                    self._metrics.called(service, method, code, time.perf_counter() - began)

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    def _stream(self, handler: Any, service: str, method: str) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            code = "CANCELLED"
            with self._metrics.call(service, method):
                try:
                    async for response in handler.unary_stream(request, context):
                        yield response
                    code = "OK"
                except (asyncio.CancelledError, GeneratorExit):
                    raise
                except BaseException:
                    code = code_of(context)
                    raise
                finally:
                    self._metrics.called(service, method, code, None)

        return grpc.unary_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def code_of(context: Any) -> str:
    """The status that a call was aborted with. UNKNOWN when the handler just failed."""
    code = context.code()
    if isinstance(code, int):
        code = next((each for each in grpc.StatusCode if each.value[0] == code), None)
    return code.name if code not in (None, grpc.StatusCode.OK) else "UNKNOWN"
