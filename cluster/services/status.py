"""Errors in the shape of the wire: status code, reason, wrong fields, when to ask again, and the id of the request.

A `ClusterError` becomes its status. Anything else is our mistake: the caller gets INTERNAL with the request id, the log
gets the traceback, the wire never does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from cluster.errors import DOMAIN, ClusterError, ResourceExhausted, Violation, status_of

log = structlog.get_logger(__name__)

# Errors travel in trailers, which gRPC drops whole beyond 8 KiB; each byte of a message may take three there.
_MESSAGE_BYTES = 900
_FIELD_BYTES = 400
_FIELDS_BYTES = 1600

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def _packed(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def rich_status(error: ClusterError, request_id: str) -> status_pb2.Status:
    """The error as `google.rpc.Status`, with every detail that we promise."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    details = [_packed(info), _packed(error_details_pb2.RequestInfo(request_id=request_id))]
    if error.violations:
        details.append(_packed(error_details_pb2.BadRequest(field_violations=list(_fields(error.violations)))))
    if isinstance(error, ResourceExhausted) and error.retry_after_s:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(1, int(error.retry_after_s * 1000)))
        details.append(_packed(retry))
    code = code_pb2.Code.Value(status_of(error).name)
    return status_pb2.Status(code=code, message=clipped(error.message, _MESSAGE_BYTES), details=details)


def _fields(violations: Sequence[Violation]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    """As many as fit; the last one then says how many more there are."""
    left = _FIELDS_BYTES
    for at, violation in enumerate(violations):
        path, words = clipped(violation.path, _FIELD_BYTES), clipped(violation.message, _FIELD_BYTES)
        left -= len(path.encode()) + len(words.encode())
        if left < 0:
            more = f"and {len(violations) - at} more; mend these first"
            yield error_details_pb2.BadRequest.FieldViolation(field="", description=more)
            return
        yield error_details_pb2.BadRequest.FieldViolation(field=path, description=words)


def clipped(text: str, num_bytes: int) -> str:
    """The beginning of a text that would not fit."""
    data = text.encode()
    return text if len(data) <= num_bytes else data[:num_bytes].decode(errors="ignore") + " ..."


def known(error: Exception, request_id: str) -> ClusterError:
    """The error as the caller may see it; logged here."""
    if isinstance(error, ClusterError):
        log.info("rpc.refused", reason=error.reason, message=error.message)
        return error
    log.error("rpc.failed", exc_info=error)
    return ClusterError("INTERNAL", f"internal error; the server's log has it under {request_id}")


async def abort(context: Context, error: ClusterError, request_id: str) -> NoReturn:
    """End the call with this error."""
    status = rpc_status.to_status(rich_status(error, request_id))
    await context.abort_with_status(status)  # type: ignore[attr-defined]
    raise AssertionError("abort_with_status raises")
