"""What happens around every RPC of ours: a request id, a log line, and errors in their right shape.

A `ClusterError` becomes its status with ErrorInfo, BadRequest and RequestInfo. Anything else is our mistake: the caller
gets INTERNAL with the request id, the log gets the traceback, the wire never does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from cluster.errors import DOMAIN, ClusterError, status_of
from cluster.ids import new_request_id

log = structlog.get_logger(__name__)

OUR_METHODS = "/athanor.v1."


def _packed(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def rich_status(error: ClusterError, request_id: str) -> status_pb2.Status:
    """The error as `google.rpc.Status`, with every detail that we promise."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    details = [_packed(info), _packed(error_details_pb2.RequestInfo(request_id=request_id))]
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=violation.path, description=violation.message)
            for violation in error.violations
        ]
        details.append(_packed(error_details_pb2.BadRequest(field_violations=fields)))
    code = code_pb2.Code.Value(status_of(error).name)
    return status_pb2.Status(code=code, message=error.message, details=details)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ClusterError, request_id: str) -> NoReturn:
    status = rpc_status.to_status(rich_status(error, request_id))
    await context.abort_with_status(status)  # type: ignore[attr-defined]
    raise AssertionError("abort_with_status raises")


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps the handlers of `athanor.v1`; health and reflection pass."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OUR_METHODS):
            return handler
        if handler.response_streaming:
            return _stream_handler(handler, method)
        return _unary_handler(handler, method)


async def _fail(context: grpc.aio.ServicerContext[Any, Any], error: Exception, request_id: str) -> NoReturn:
    if isinstance(error, ClusterError):
        log.info("rpc.refused", reason=error.reason, message=error.message)
        await _abort(context, error, request_id)
    log.error("rpc.failed", exc_info=error)
    internal = ClusterError("INTERNAL", f"internal error; the server's log has it under {request_id}")
    await _abort(context, internal, request_id)


def _begin(method: str) -> str:
    request_id = new_request_id()
    structlog.contextvars.bind_contextvars(request_id=request_id, method=method)
    return request_id


def _unary_handler(handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        request_id = _begin(method)
        try:
            return await handler.unary_unary(request, context)
        except Exception as error:  # noqa: BLE001  the process boundary: recorded, and answered as an error
            await _fail(context, error, request_id)

    return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def _stream_handler(handler: Any, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        request_id = _begin(method)
        try:
            async for response in handler.unary_stream(request, context):
                yield response
        except Exception as error:  # noqa: BLE001  the process boundary: recorded, and answered as an error
            await _fail(context, error, request_id)

    return grpc.unary_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)
