"""What happens around every request, as plain ASGI: an id for it, and bounds on its body, in bytes and in time."""

from __future__ import annotations

import asyncio
import json
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import BodyTooLarge, RequestError, error_body

REQUEST_ID = "x-request-id"
_SAFE_ID = re.compile(r"[!-~]{1,128}")


class BodyTooLate(RequestError):
    """The body did not come in time."""

    status = 408
    kind = "timeout_error"
    default_code = "timeout"


def safe_id(given: str | None) -> str | None:
    """What a client gave as the id of its request, if that may be written into logs and headers."""
    return given if given and _SAFE_ID.fullmatch(given) else None


class RequestIds:
    """Gives a request an id, in `scope["state"]`, and the answer the same. One that has an id keeps it: then whoever
    gave it, Serve's proxy for one, also writes it on the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID)
        request_id = safe_id(given) or f"req_{uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and not given:
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class BodyLimit:
    """Refuses a body of more than `max_bytes`, before anything reads it."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await read_body(Headers(scope=scope), receive, self._max_bytes)
        except BodyTooLarge as error:
            await self._refuse(error, send)
        except ClientDisconnect:
            pass
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _refuse(self, error: BodyTooLarge, send: Send) -> None:
        document = error_body(error.message, kind=error.kind, code=error.code)
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(document).encode()})


async def read_body(headers: Headers, receive: Receive, max_bytes: int, timeout_s: float | None = None) -> bytes:
    """The whole body. BodyTooLarge, BodyTooLate, or ClientDisconnect where the client goes before its end."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(headers.get("content-length", "0"), receive, max_bytes)
    except TimeoutError as error:
        raise BodyTooLate(f"the body of a request must come within {timeout_s:g} s") from error


async def _read(declared: str, receive: Receive, max_bytes: int) -> bytes:
    too_large = BodyTooLarge(f"the body of a request may have {max_bytes} bytes at most")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then what comes after it: the client going away."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
