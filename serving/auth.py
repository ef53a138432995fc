"""Who calls the endpoint: bearer tokens, which the control plane is asked about and no one else.

An answer is believed for some seconds. While no control plane answers, tokens that were good go on being good for an
hour, and unknown ones are told to come back (503): a control plane that is away must not stop what it deployed. An
address that sends bad tokens is told to wait (429) before anybody is asked; tokens known to be good are not its affair.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import grpc
from athanor.v1 import token_service_pb2, token_service_pb2_grpc

from serving.channels import open_channel, read_credentials
from serving.errors import Forbidden, RequestError, Unauthenticated, Unavailable
from serving.limits import Buckets
from serving.routes import RouteTable

FRESH_S = 15.0
FRESH_REFUSAL_S = 5.0
"""How long a bad token is not asked about again."""
STALE_S = 3600.0
BAD_PER_S = 0.5
BAD_AT_ONCE = 10
"""Bad tokens of one address: below what a control plane allows one host, which is what a gateway is to it."""
_MOST_CACHED = 10_000
_TIMEOUT_S = 3.0
_GRACE_S = 1.0
_NOBODY = "nobody can be asked about this token at the moment; try again in a moment"


@dataclass(frozen=True)
class Caller:
    """Whose token it is."""

    token_id: str
    name: str


ANYBODY = Caller("", "anybody")
"""Everyone, where the installation has no authentication."""


class Directory(Protocol):
    """Who knows tokens."""

    async def caller(self, authorization: str) -> Caller:
        """Unauthenticated or Forbidden for a bad token; Unavailable while nobody can be asked."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True)
class _Answer:
    at: float
    said: Caller | RequestError

    def holds(self, age_s: float) -> bool:
        return age_s < (FRESH_S if isinstance(self.said, Caller) else FRESH_REFUSAL_S)


class Callers:
    """What a directory said, remembered under a hash of the token: the token itself is kept nowhere."""

    def __init__(self, directory: Directory, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._good = _Remembered()
        self._bad = _Remembered()  # apart, so that no number of bad tokens drives out a good one
        self._bad_of = Buckets(BAD_PER_S, BAD_AT_ONCE, clock)
        self._asking: dict[str, asyncio.Task[_Answer]] = {}

    async def caller(self, authorization: str, address: str = "") -> Caller:
        """Unauthenticated, Forbidden, Unavailable, or RateLimited for an address that sent too many bad tokens."""
        if not authorization:
            raise Unauthenticated("no token was sent; send `Authorization: Bearer <token>`")
        key = hashlib.sha256(authorization.encode()).hexdigest()
        known = self._good.get(key) or self._bad.get(key)
        if known is None or not known.holds(self._clock() - known.at):
            known = await self._refreshed(key, authorization, address, known)
        if isinstance(known.said, RequestError):
            raise type(known.said)(known.said.message)
        return known.said

    async def aclose(self) -> None:
        for task in self._asking.values():
            task.cancel()
        await self._directory.aclose()

    async def _refreshed(self, key: str, authorization: str, address: str, known: _Answer | None) -> _Answer:
        """What the directory says now; requests that come meanwhile wait for the same answer."""
        good = known is not None and isinstance(known.said, Caller) and self._clock() - known.at < STALE_S
        if key not in self._asking:
            if not good:
                self._bad_of.take(address, "too many tokens that are not good came from this address")
            self._asking[key] = asyncio.ensure_future(self._ask(key, authorization, None if good else address))
            self._asking[key].add_done_callback(lambda _: self._asking.pop(key, None))
        try:
            return await asyncio.shield(self._asking[key])
        except Unavailable:
            if known is None or not good:
                raise
            return known

    async def _ask(self, key: str, authorization: str, charged: str | None) -> _Answer:
        """Remembered whether or not the client is still there; an address is charged for bad tokens alone."""
        bad = False
        try:
            answer = _Answer(self._clock(), await self._directory.caller(authorization))
        except (Unauthenticated, Forbidden) as refusal:
            bad, answer = True, _Answer(self._clock(), refusal)
        finally:
            if charged is not None and not bad:
                self._bad_of.give_back(charged)
        (self._good if bad else self._bad).forget(key)
        (self._bad if bad else self._good).put(key, answer)
        return answer


class _Remembered:
    """The answers that were of use last."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def get(self, key: str) -> _Answer | None:
        if key in self._answers:
            self._answers.move_to_end(key)
        return self._answers.get(key)

    def put(self, key: str, answer: _Answer) -> None:
        self._answers[key] = answer
        self._answers.move_to_end(key)
        if len(self._answers) > _MOST_CACHED:
            self._answers.popitem(last=False)

    def forget(self, key: str) -> None:
        self._answers.pop(key, None)


class ControlPlanes:
    """The directory that the control planes are together: any of them may answer."""

    def __init__(
        self,
        addresses: Sequence[str],
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
    ) -> None:
        """`tls_ca` is PEM text; the others are paths, of what is shown where a certificate is asked for."""
        credentials = read_credentials(tls_ca, tls_cert, tls_key)
        self._channels = [open_channel(address, credentials) for address in addresses]
        self._num_asking = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def caller(self, authorization: str) -> Caller:
        self._num_asking += 1
        self._idle.clear()
        try:
            return await self._caller(authorization)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise Unavailable(_NOBODY) from error  # the channel was closed, nobody meant this request
        finally:
            self._num_asking -= 1
            if not self._num_asking:
                self._idle.set()

    async def _caller(self, authorization: str) -> Caller:
        for channel in [*self._channels]:
            try:
                return await _get_caller(channel, authorization)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    raise Unauthenticated(error.details() or "the token is not known") from error
                if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    raise Forbidden(error.details() or "the token does not allow this") from error
                self._channels.remove(channel)  # the others are asked first from now on
                self._channels.append(channel)
        raise Unavailable(_NOBODY)

    async def aclose(self) -> None:
        """After those who ask have their answers: each control plane has its time for one."""
        with suppress(TimeoutError):
            async with asyncio.timeout((_TIMEOUT_S + _GRACE_S) * len(self._channels)):
                await self._idle.wait()
        for channel in self._channels:
            await channel.close(None)


class CurrentControlPlanes:
    """The control planes, wherever they are by now."""

    def __init__(self) -> None:
        self._planes = ControlPlanes(())
        self._told: tuple[object, ...] = ()
        self._closing: set[asyncio.Task[None]] = set()

    async def tell(self, table: RouteTable) -> None:
        told = (table.control_planes, table.tls_ca, table.tls_cert, table.tls_key)
        if self._told != told:
            gone, self._planes = self._planes, ControlPlanes(*told)
            self._told = told
            closing = asyncio.ensure_future(gone.aclose())  # takes as long as those who are asking over it
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def caller(self, authorization: str) -> Caller:
        return await self._planes.caller(authorization)

    async def aclose(self) -> None:
        await asyncio.gather(self._planes.aclose(), *self._closing)


async def _get_caller(channel: grpc.aio.Channel, authorization: str) -> Caller:
    if not authorization.isprintable() or not authorization.isascii():
        raise Unauthenticated("the token holds characters that no token has")
    stub = token_service_pb2_grpc.TokenServiceStub(channel)
    metadata = (("authorization", authorization),)
    request = token_service_pb2.GetCallerRequest()
    answer = await stub.GetCaller(request, metadata=metadata, timeout=_TIMEOUT_S)
    return Caller(answer.token.id, answer.token.name)
