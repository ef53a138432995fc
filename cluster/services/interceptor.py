"""What happens around every RPC of ours, in this order: a request id; who calls; how often; may it; what was asked; the
handler; the audit log; errors in their right shape.

Nothing of a stranger's message is read. Health is open to all; reflection wants a token where the rest does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from cluster.errors import ClusterError, InvalidInput, PermissionDenied, Unauthenticated, status_of
from cluster.ids import new_request_id
from cluster.security.audit import AuditLog, begin_line, resource_of
from cluster.security.caller import ANYBODY, Caller, become, caller
from cluster.security.limits import Rate, Streams
from cluster.security.policies import MethodPolicy
from cluster.security.tokens import Tokens
from cluster.services.status import Context, abort, known
from cluster.services.wellformed import check_text, check_times
from cluster.store.audit_rows import Call

_HEALTH = "/grpc.health.v1."
_REQUEST_ID = "athanor-request-id"
_NUL = r"\000"
"""As protobuf prints it."""
_BURST_S = 2.0
_FAILURES_PER_S, _FAILURES_AT_ONCE = 10.0, 100.0

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Outcome = tuple[Any, ClusterError | None]


@dataclass
class Rpc:
    """One call on its way in."""

    policy: MethodPolicy
    request_id: str
    peer: str
    caller: Caller | None = None
    request: Any = None

    @property
    def host(self) -> str:
        return self.peer.rpartition(":")[0] or self.peer

    @property
    def key(self) -> str:
        """Whose calls are counted together."""
        return (self.caller.token_id if self.caller else "") or self.host


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before all handlers. Without `tokens` everybody may do everything."""

    def __init__(
        self,
        policies: Mapping[str, MethodPolicy],
        tokens: Tokens | None,
        audit: AuditLog,
        *,
        calls_per_second: float,
        max_streams: int,
    ) -> None:
        self._policies, self._tokens, self._audit = policies, tokens, audit
        self._rate = Rate(calls_per_second, _BURST_S * calls_per_second)
        self._failures = Rate(_FAILURES_PER_S, _FAILURES_AT_ONCE)
        self._streams = Streams(max_streams)
        self._guards: dict[str, Handler] = {}
        """Of the methods that were called."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        if method in self._guards:
            return self._guards[method]
        handler: Any = await continuation(handler_call_details)
        if handler is None or method.startswith(_HEALTH):
            return cast(Handler, handler)
        policy = self._policies.get(method)
        if policy is None:
            return await self._foreign(handler, handler_call_details)
        guard = self._guarded_stream if handler.response_streaming else self._guarded
        return self._guards.setdefault(method, guard(handler, policy))

    def _guarded(self, handler: Any, policy: MethodPolicy) -> Handler:
        async def call(data: bytes, context: Context) -> Any:
            rpc = _begin(policy, context)
            handling = self._handle(rpc, handler, data, context)
            # What is audited goes on to its entry even when the caller hangs up.
            response, error = await (asyncio.shield(handling) if policy.audited else handling)
            if error is not None:
                await abort(context, error, rpc.request_id)
            return response

        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    async def _handle(self, rpc: Rpc, handler: Any, data: bytes, context: Context) -> Outcome:
        response, error, line = None, None, None
        try:
            await self._admit(rpc, context.invocation_metadata())
            rpc.request = _parsed(handler, data)
            rpc.policy.check(caller(), rpc.request)
            line = begin_line(_entry(rpc, None, None)) if rpc.policy.audited else None
            response = await handler.unary_unary(rpc.request, context)
        except Exception as failure:  # noqa: BLE001  the process boundary: recorded, and answered as an error
            error = known(failure, rpc.request_id)
        if not rpc.policy.audited:
            return response, error
        if error is None and line is not None and line.entry is not None:  # the handler's own transaction has it
            self._audit.written(line.entry)
            return response, None
        if isinstance(error, PermissionDenied) and rpc.request is None:  # known, and refused before it was read
            with contextlib.suppress(ClusterError):
                rpc.request = _parsed(handler, data)
        return await self._audited(rpc, response, error)

    async def _audited(self, rpc: Rpc, response: Any, error: ClusterError | None) -> Outcome:
        """The outcome, once it is written down; an error when it cannot be: the caller must not believe otherwise."""
        try:
            await self._audit.write(_entry(rpc, response, error))
        except Exception as failure:  # noqa: BLE001  the process boundary, as above
            return None, error or known(failure, rpc.request_id)
        return response, error

    def _guarded_stream(self, handler: Any, policy: MethodPolicy) -> Handler:
        async def call(data: bytes, context: Context) -> AsyncIterator[Any]:
            rpc = _begin(policy, context)
            try:
                await self._admit(rpc, context.invocation_metadata())
                rpc.request = _parsed(handler, data)
                with self._streams.one(rpc.key):
                    async for response in handler.unary_stream(rpc.request, context):
                        await self._check_again(rpc, context.invocation_metadata())
                        yield response
            except Exception as failure:  # noqa: BLE001  the process boundary, as above
                await abort(context, known(failure, rpc.request_id), rpc.request_id)

        return grpc.unary_stream_rpc_method_handler(call, None, handler.response_serializer)

    async def _admit(self, rpc: Rpc, metadata: Any) -> None:
        """Who it is, not too often, and allowed to; from here on handlers see the caller."""
        if self._tokens is None or rpc.policy.role is None:
            rpc.caller = ANYBODY
        else:
            rpc.caller = await self._caller(self._tokens, rpc.host, metadata)
        self._rate.check(rpc.key)
        rpc.policy.check(rpc.caller)
        become(rpc.caller)
        structlog.contextvars.bind_contextvars(actor=rpc.caller.name)

    async def _check_again(self, rpc: Rpc, metadata: Any) -> None:
        """A stream outlives many a token: one that was revoked, or is over, is told nothing more."""
        if self._tokens is not None and rpc.policy.role is not None:
            rpc.policy.check(await self._caller(self._tokens, rpc.host, metadata))

    async def _caller(self, tokens: Tokens, host: str, metadata: Any) -> Caller:
        """Whoever fails too often from one host is only told to wait, and the store is not asked."""
        sent = _authorization(metadata)
        try:
            known_caller = tokens.remembered(sent)
        except Unauthenticated:
            self._failures.check(host)
            raise
        if known_caller is not None:
            return known_caller
        self._failures.check(host)
        failed = False
        try:
            return await asyncio.to_thread(tokens.ask, sent)
        except Unauthenticated:
            failed = True
            raise
        finally:
            if not failed:
                self._failures.give_back(host)

    async def _foreign(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        """Reflection: any token will do."""
        if self._tokens is None:
            return handler
        try:
            await self._caller(self._tokens, "", details.invocation_metadata)
        except ClusterError as error:
            return _refusing(handler, error)
        return handler


def _begin(policy: MethodPolicy, context: Context) -> Rpc:
    request_id = new_request_id()
    structlog.contextvars.bind_contextvars(request_id=request_id, method=policy.method)
    context.set_trailing_metadata(((_REQUEST_ID, request_id),))
    return Rpc(policy, request_id, context.peer())


def _authorization(metadata: Sequence[tuple[str, str | bytes]] | None) -> str:
    found = next((value for key, value in metadata or () if key == "authorization"), "")
    return found if isinstance(found, str) else ""


def _parsed(handler: Any, data: bytes) -> Any:
    try:
        request = handler.request_deserializer(data)
    except DecodeError as error:
        raise InvalidInput("MALFORMED_REQUEST", "the request is no message of this method") from error
    check_times(request)
    if b"\0" in data and _NUL in str(request):  # numbers have the byte too, and are printed without it
        check_text(request)
    return request


def _entry(rpc: Rpc, response: Any, error: ClusterError | None) -> Call:
    return Call(
        actor=rpc.caller.name if rpc.caller else "",
        peer=rpc.peer,
        method=rpc.policy.method,
        resource=resource_of(rpc.request, response),
        code=status_of(error).name if error else "OK",
        reason=error.reason if error else "",
        request_id=rpc.request_id,
    )


def _refusing(handler: Any, error: ClusterError) -> Handler:
    """A handler of the form of reflection's that only says no."""

    async def refuse(requests: Any, context: Context) -> None:
        del requests
        await abort(context, error, new_request_id())

    return grpc.stream_stream_rpc_method_handler(refuse, handler.request_deserializer, handler.response_serializer)
