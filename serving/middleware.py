"""What happens around every request, as plain ASGI: an id for it, and a bound on its body."""

from __future__ import annotations

import json
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import BodyTooLarge, error_body

REQUEST_ID = "x-request-id"
_SAFE_ID = re.compile(r"[!-~]{1,128}")


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
        request_id = given if given and _SAFE_ID.fullmatch(given) else f"req_{uuid4().hex}"
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
        body = await self._read(receive, Headers(scope=scope).get("content-length", "0"))
        if body is None:
            await self._refuse(send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive, declared: str) -> bytes | None:
        """The whole body, or None when it is too large."""
        body, more = bytearray(), not (declared.isdigit() and int(declared) > self._max_bytes)
        if not more:
            return None
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_bytes:
                return None
        return bytes(body)

    async def _refuse(self, send: Send) -> None:
        error = BodyTooLarge(f"the body of a request may have {self._max_bytes} bytes at most")
        document = error_body(error.message, kind=error.kind, code=error.code)
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(document).encode()})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then what comes after it: the client going away."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
