"""A driver's connection to the control plane, of which there may be several on one store: to whichever answers.

One that does not answer is left for the next at once, and none is given up for good: the first to be back is as good
as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc
from athanor.v1 import worker_service_pb2_grpc

from cluster.channel import Tls, open_channel
from cluster.rpc import RequestFailed, explain

Response = TypeVar("Response")

CHANNEL_OPTIONS = (
    # A control plane that is back has to hear of us within a lease: gRPC by itself waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A connection whose other end is gone without a word is noticed, and made anew.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Proxies of the environment are for the world outside.
    ("grpc.enable_http_proxy", 0),
)
_ABSENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class Line:
    """One open channel at a time."""

    def __init__(self, addresses: Sequence[str], tls: Tls | None = None) -> None:
        """host:port of each control plane that lived when the attempt was made, the nearest first."""
        self._addresses = list(addresses)
        self._tls = tls
        self._open()

    @property
    def address(self) -> str:
        """Of the one that is spoken to now."""
        return self._addresses[0]

    def learn(self, addresses: Sequence[str]) -> None:
        """Who lives now, as one of them says; the one that answers stays the first."""
        if addresses:
            self._addresses = [self.address, *(each for each in addresses if each != self.address)]

    def call(self, ask: Callable[[worker_service_pb2_grpc.WorkerServiceStub], Response]) -> Response:
        """The answer of the first that gives one, each asked once; RequestFailed with the last one's words."""
        for left in reversed(range(len(self._addresses))):
            try:
                return ask(self._stub)
            except grpc.RpcError as error:
                failure = explain(error, self.address)
                if failure.code not in _ABSENT:
                    raise failure from error
                self._turn()
                if left == 0:
                    raise failure from error
        raise AssertionError("a line has at least one end")

    def close(self) -> None:
        self._channel.close()

    def _turn(self) -> None:
        """To the next one; a line with one end keeps its channel, which connects anew by itself."""
        if len(self._addresses) > 1:
            self._addresses.append(self._addresses.pop(0))
            self._channel.close()
            self._open()

    def _open(self) -> None:
        self._channel = open_channel(self.address, tls=self._tls, options=CHANNEL_OPTIONS)
        self._stub = worker_service_pb2_grpc.WorkerServiceStub(self._channel)


def is_absent(failure: RequestFailed) -> bool:
    """Whether nobody answered, so that asking again may help."""
    return failure.code in _ABSENT
