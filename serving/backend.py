"""What a gateway and a replica say to each other, and a replica's side of it: one request, then a head and chunks.

Chunks carry the ids of the tokens behind them, so that a gateway whose replica died can have another one go on exactly
there (`Resume`). Knows nothing of Ray: `Backends` is what carries requests to replicas.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from serving.errors import BackendFailed

if TYPE_CHECKING:
    from prometheus_client import Metric
    from starlette.types import ASGIApp, Message, Scope

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Resume:
    """How far a stream has come that another replica began."""

    token_ids: Mapping[int, tuple[int, ...]]
    """Of each choice by its index: all tokens that the client has the text of."""
    finished: frozenset[int] = frozenset()
    """Choices that the client has all of."""


@dataclass(frozen=True, slots=True)
class BackendRequest:
    """One HTTP request, as a replica shall answer it."""

    method: str
    path: str
    """From `/v1/` on: a replica does not know under which name it is served."""
    headers: Headers
    """Names in lower case; without the caller's token."""
    body: bytes
    request_id: str
    resume: Resume | None = None
    deadline_s: float | None = None
    """From arrival at the replica."""
    seed: int | None = None
    """For a request that brings none: whoever answers it again then draws the same."""
    created: int | None = None
    """When it came in, Unix time: the same in every chunk, whichever replica wrote it."""
    can_resume: bool = True
    """Whoever asks has another replica go on where this one breaks off."""


@dataclass(frozen=True, slots=True)
class Head:
    """Comes first, and once."""

    status: int
    headers: Headers

    @property
    def is_stream(self) -> bool:
        """Server-sent events follow; whole is what ends with its last one."""
        return any(name == "content-type" and value.startswith("text/event-stream") for name, value in self.headers)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the body."""

    data: bytes
    token_ids: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """What this chunk added to each choice."""
    finished: tuple[int, ...] = ()
    """Choices that ended with it."""


class Backends(Protocol):
    """The way to the replicas of each revision."""

    def call(self, app: str, request: BackendRequest) -> AsyncGenerator[Head | Chunk]:
        """Any replica of `app`: a Head, then Chunks; BackendFailed at any point. Closing it ends the work there."""

    async def figures(self, app: str) -> Sequence[Sequence[Metric]]:
        """What each living replica of `app` has counted; empty where there is none. Starts none."""


class _Ended:
    """The application returned, or raised."""


async def respond(app: ASGIApp, request: BackendRequest) -> AsyncGenerator[Head | Chunk]:
    """Answer a request with an ASGI application in this process; BackendFailed when that breaks off."""
    sent: asyncio.Queue[Message | _Ended] = asyncio.Queue()
    waiting = [{"type": "http.request", "body": request.body, "more_body": False}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await asyncio.Event().wait()  # whoever asked goes by cancelling
        raise AssertionError("never set")

    task = asyncio.ensure_future(app(_scope(request), receive, sent.put))
    task.add_done_callback(lambda _: sent.put_nowait(_Ended()))
    complete = False
    try:
        while not isinstance(message := await sent.get(), _Ended):
            if message["type"] == "http.response.start":
                headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"])
                yield Head(message["status"], headers)
                continue
            complete = not message.get("more_body", False)
            if message.get("body"):
                yield Chunk(message["body"], message.get("token_ids", {}), message.get("finished", ()))
        if not complete:
            error = None if task.cancelled() else task.exception()
            raise BackendFailed("the replica broke off in its answer") from error
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):  # a failure after a whole answer is in the log already
            await task


def _scope(request: BackendRequest) -> Scope:
    path, _, query = request.path.partition("?")
    headers = [
        *((name, value) for name, value in request.headers if name != "x-request-id"),
        ("x-request-id", request.request_id),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "state": {"exchange": request},
    }
