"""Every failure of the API in OpenAI's shape, with a request id and without a traceback."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from serving.errors import EngineFailed, InvalidRequest, Overloaded, RequestError, Unavailable, error_body
from serving.logprobs import Document

RETRY_AFTER_S = 1
_UNION_TAGS = re.compile(
    r"str|dict\[.*|list\[.*|constrained-.*|body|function-after.*|function-before.*|lax-or-strict.*|\[key\]|JsonSchema.*"
)
logger = logging.getLogger(__name__)


def add_handlers(api: FastAPI) -> None:
    """Register one handler per kind of failure."""
    api.add_exception_handler(RequestError, _refuse)
    api.add_exception_handler(RequestValidationError, _refuse_invalid)
    api.add_exception_handler(HTTPException, _refuse_http)
    api.add_exception_handler(EngineFailed, _fail)
    api.add_exception_handler(Exception, _fail)


def refusal(error: RequestError) -> Document:
    return error_body(error.message, kind=error.kind, param=error.param, code=error.code)


def server_error(request_id: str) -> Document:
    return error_body(f"the server failed on this request; its log has more under {request_id}", kind="server_error")


def reply(status: int, document: Document, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: an error may repeat what a client sent, also what UTF-8 cannot say."""
    return Response(json.dumps(document), status, headers, media_type="application/json")


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return reply(error.status, refusal(error), retry_after(error))


def retry_after(error: RequestError) -> dict[str, str]:
    """Whole seconds, for those errors that pass by themselves."""
    if not isinstance(error, Overloaded | Unavailable):
        return {}
    return {"retry-after": str(max(math.ceil(error.retry_after_s or 0), RETRY_AFTER_S))}


async def _refuse_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _refuse(request, explain(error.errors()))


async def _refuse_http(request: Request, error: Exception) -> Response:
    """A path or a method that is not there."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return reply(error.status_code, error_body(message, kind="invalid_request_error"), error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    request_id = str(request.state.request_id)
    if not isinstance(error, ClientDisconnect):
        logger.error("request %r failed", request_id, exc_info=error)
    return reply(500, server_error(request_id))


def explain(errors: Sequence[Mapping[str, object]]) -> InvalidRequest:
    """The first of pydantic's errors, and with it the others about the same field."""
    fields = [_field(error["loc"]) for error in errors]
    first = fields[0]
    reasons = dict.fromkeys(str(error["msg"]) for error, field in zip(errors, fields, strict=True) if field == first)
    what = "; or ".join(reasons)
    return InvalidRequest(f"{first}: {what}" if first else what, param=first or None)


def _field(location: object) -> str:
    """`messages.0.content` from pydantic's path, without the names of the types it tried."""
    parts = [str(part) for part in location] if isinstance(location, tuple) else []
    return ".".join(part for part in parts if not _UNION_TAGS.fullmatch(part))
