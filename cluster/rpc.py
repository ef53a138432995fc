"""What all calls to the control plane share: what an error says, when to repeat a call, how long a cut stream is borne.

Knows gRPC and the shape of our errors, and no single RPC.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import grpc
import tenacity
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from cluster.channel import is_loopback
from cluster.errors import ClusterError, Violation

RPC_TIMEOUT_S = 20.0
STREAM_TIMEOUT_S = 300.0
_PAUSE_S = 0.2
_REPEATABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_UNCERTAIN = _REPEATABLE | {grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

RAY_IS_AWAY = frozenset({"RAY_UNREACHABLE", "RAY_UNAUTHORIZED", "RAY_TOKEN_MISSING", "SERVE_UNREACHABLE"})
"""The control plane answered, and what it said was that it cannot see Ray: asking again at once tells nothing new."""

Answer = TypeVar("Answer")


class RequestFailed(ClusterError):
    """The control plane said no, or was not there; `code` is the gRPC status."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        violations: Sequence[Violation] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(reason, message, violations)
        self.code = code
        self.retry_after_s = retry_after_s
        """Above 0 where the server refused unseen and said when to come back."""

    @property
    def is_uncertain(self) -> bool:
        """Whether the request may have been carried out all the same."""
        return self.code in _UNCERTAIN

    @property
    def is_not_found(self) -> bool:
        return self.code == grpc.StatusCode.NOT_FOUND

    def with_request_id(self, request_id: str) -> RequestFailed:
        """The same, and how to submit again without making a second job."""
        hint = f"the request may have been stored: submit again with --request-id {request_id} to be safe"
        return RequestFailed(self.code, self.reason, f"{self.message}; {hint}", self.violations)

    def __reduce__(self) -> tuple[type[RequestFailed], tuple[object, ...]]:
        return type(self), (self.code, self.reason, self.message, self.violations, self.retry_after_s)


class NotFinished(ClusterError):
    """A wait ended before what was waited for."""


def explain(error: grpc.RpcError, address: str) -> RequestFailed:
    """Our error from gRPC's: reason and wrong fields from its details, words a person can act on."""
    call = cast(grpc.Call, error)
    code, reason, violations, retry_after_s = call.code(), "", [], 0.0
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            violations += [Violation(each.field, each.description) for each in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    if code == grpc.StatusCode.UNAVAILABLE and not reason:
        return RequestFailed(code, "NO_CONTROL_PLANE", _why_unheard(address, call.details() or ""))
    if code == grpc.StatusCode.DEADLINE_EXCEEDED and not reason:
        return RequestFailed(code, "NO_ANSWER", f"no answer in time from {address}; it may be very busy")
    if code == grpc.StatusCode.UNIMPLEMENTED and not reason:
        words = f"the control plane at {address} does not know this call: it is of an older release"
        return RequestFailed(code, "OLDER_RELEASE", f"{words}; see `athanor cluster info`")
    return RequestFailed(code, reason or code.name, call.details() or code.name, violations, retry_after_s)


def _why_unheard(address: str, details: str) -> str:
    if "refused" in details.lower():
        return f"no control plane at {address}{'; start one with `athanor up`' if is_loopback(address) else ''}"
    words = details.rsplit(": ", 1)[-1] or "no answer"
    return f"no control plane answers at {address}: {words}; is ATHANOR_TLS_CA the one of its certificate?"


def once(call: Callable[[], Answer], address: str) -> Answer:
    """The answer, or RequestFailed."""
    try:
        return call()
    except grpc.RpcError as error:
        raise explain(error, address) from error


def repeat(call: Callable[[], Answer], address: str, *, patience_s: float, is_safe: bool = True) -> Answer:
    """As `once`, asked again for so long, once at least: if it was refused unseen or, with `is_safe`, got no answer."""
    return persist(lambda: once(call, address), patience_s=patience_s, is_safe=is_safe)


def persist(call: Callable[[], Answer], *, patience_s: float, is_safe: bool = True) -> Answer:
    """As `repeat`, of a call that raises RequestFailed by itself."""
    return tenacity.Retrying(**_patience(patience_s, is_safe=is_safe))(call)


async def once_async(call: Callable[[], Awaitable[Answer]], address: str) -> Answer:
    """As `once`."""
    try:
        return await call()
    except grpc.RpcError as error:
        raise explain(error, address) from error


async def repeat_async(
    call: Callable[[], Awaitable[Answer]], address: str, *, patience_s: float, is_safe: bool = True
) -> Answer:
    """As `repeat`."""
    retrying = tenacity.AsyncRetrying(**_patience(patience_s, is_safe=is_safe))
    return cast(Answer, await retrying(once_async, call, address))


def _patience(patience_s: float, *, is_safe: bool) -> dict[str, Any]:
    def may_help(error: BaseException) -> bool:
        if not isinstance(error, RequestFailed):
            return False
        return 0 < error.retry_after_s <= patience_s or (
            is_safe and error.code in _REPEATABLE and error.reason not in RAY_IS_AWAY
        )

    return {
        "retry": tenacity.retry_if_exception(may_help),
        "stop": tenacity.stop_all(tenacity.stop_after_delay(patience_s), tenacity.stop_after_attempt(2)),
        "wait": _pause_s,
        "reraise": True,
    }


def _pause_s(state: tenacity.RetryCallState) -> float:
    """Longer each time, and at least as long as the server asked us to stay away."""
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, RequestFailed) else 0.0
    return asked_s + tenacity.wait_random_exponential(multiplier=0.1, max=2.0)(state)


@contextmanager
def naming(request_id: str) -> Iterator[None]:
    """A failure inside that leaves open whether the request was stored says how to repeat it under its id."""
    try:
        yield
    except RequestFailed as error:
        if not request_id or not error.is_uncertain:
            raise
        raise error.with_request_id(request_id) from error


class Cuts:
    """How long a stream may stay cut before its reader is told."""

    def __init__(self, address: str, patience_s: float) -> None:
        self._address = address
        self._patience_s = patience_s
        self._cut_since: float | None = None
        self.pause_s = _PAUSE_S
        """Before the stream is opened again."""

    def heard(self) -> None:
        """The stream delivers."""
        self._cut_since = None

    def cut(self, error: grpc.RpcError) -> RequestFailed:
        """What cut it, when it shall be opened again; raised when not."""
        failure = explain(error, self._address)
        if failure.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OUT_OF_RANGE):
            return failure
        self.pause_s = max(_PAUSE_S, failure.retry_after_s)
        now = time.monotonic()
        self._cut_since = now if self._cut_since is None else self._cut_since
        is_passing = failure.code == grpc.StatusCode.UNAVAILABLE or failure.retry_after_s > 0
        if not is_passing or now - self._cut_since > self._patience_s:
            raise failure from error
        return failure
