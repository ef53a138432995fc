"""One question to the control plane as a value: what is asked, what of the answer is wanted, may it be repeated.

Knows the contract's descriptors and no channel: the blocking and the asynchronous client carry the same questions out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from cluster.rpc import RPC_TIMEOUT_S

MAX_PAGE_SIZE = 1000
Seconds = float | timedelta
"""A duration, in seconds or as a timedelta."""

Response = TypeVar("Response", bound=Message)
Answer = TypeVar("Answer")
Item = TypeVar("Item")

_NO_HARM = (
    descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
    descriptor_pb2.MethodOptions.IDEMPOTENT,
)
_CONDITIONS = ("etag", "expected_version")
_WRAPPED = re.compile(r"^(?:Call|Listing)\[(.*)\]$")
_STREAMED = {
    "JobWatch": "pb.WatchJobsResponse",
    "LogReading": "bytes",
    "MetricsReading": "pb.StreamJobMetricsResponse",
}
"""What the streams deliver, by their classes."""
_OVERWRITES = frozenset({"athanor.v1.ModelService.SetAlias"})


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One unary call: `unwrap` takes what is wanted out of the response."""

    method: MethodDescriptor
    request: Message
    response: type[Message]
    unwrap: Callable[[Any], Answer]
    timeout_s: float = RPC_TIMEOUT_S

    @property
    def is_repeatable(self) -> bool:
        return is_repeatable(self.method, self.request)

    @property
    def request_id(self) -> str:
        """The idempotency key, of a call that stores something under one."""
        is_dry = getattr(self.request, "validate_only", False)
        return "" if is_dry else str(getattr(self.request, "request_id", ""))


@dataclass(frozen=True)
class Listing(Generic[Item]):
    """Pages of something: `page` asks for one by size and token and answers its items and the next token."""

    page: Callable[[int, str], Call[tuple[Sequence[Item], str]]]
    limit: int


def signature_of(build: Callable[..., Any], kind: str) -> inspect.Signature:
    """Of a client's method that carries out what `build` says: with `self`, and with the answer that it gives."""
    said = inspect.signature(build)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    whole = str(said.return_annotation)
    answer = _STREAMED.get(whole) or _WRAPPED.sub(r"\1", whole)
    return said.replace(parameters=[itself, *said.parameters.values()], return_annotation=kind.format(answer))


def call(
    service: ServiceDescriptor,
    name: str,
    request: Message,
    response: type[Response],
    unwrap: Callable[[Response], Answer],
    *,
    timeout_s: float = RPC_TIMEOUT_S,
) -> Call[Answer]:
    """A call of one method of a service."""
    return Call(service.methods_by_name[name], request, response, unwrap, timeout_s)


def path_of(method: MethodDescriptor) -> str:
    """Its path on the wire: /athanor.v1.JobService/GetJob."""
    return f"/{method.containing_service.full_name}/{method.name}"


def is_repeatable(method: MethodDescriptor, request: Message) -> bool:
    """Whether a second call after one that was perhaps carried out does no harm and answers the same.

    True of what changes nothing, of what the contract calls idempotent, and of what carries a request id; never of what
    holds only under a condition, which the first call may have changed.
    """
    if any(name in request.DESCRIPTOR.fields_by_name and _is_set(request, name) for name in _CONDITIONS):
        return False
    if method.GetOptions().idempotency_level in _NO_HARM or method.full_name in _OVERWRITES:
        return True
    return bool(getattr(request, "request_id", ""))


def _is_set(request: Message, name: str) -> bool:
    field = request.DESCRIPTOR.fields_by_name[name]
    return request.HasField(name) if field.has_presence else bool(getattr(request, name))


def duration(value: Seconds | None) -> Duration | None:
    """As the contract says it."""
    if value is None:
        return None
    result = Duration()
    result.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=value))
    return result
