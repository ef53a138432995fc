"""Tells a control plane what a judge has found: in order, each once, by whichever control plane answers.

While none does, findings wait, and beyond a bound the oldest are let go: a test that goes on later loses nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import grpc
from athanor.v1 import deployment_service_pb2 as messages
from athanor.v1 import deployment_service_pb2_grpc

from serving.channels import open_channel, read_credentials
from serving.judge import Finding

_MOST_WAITING = 5000
_BATCH = 100
_TIMEOUT_S = 5.0
_PAUSE_S = 1.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Canary:
    """Whose findings they are."""

    name: str
    revision: int
    token: str


@dataclass(frozen=True)
class ControlPlanes:
    """Where they are told, `host:port` each."""

    addresses: tuple[str, ...] = ()
    tls_ca: str | None = None
    """PEM text; None: no TLS."""
    tls_cert: str | None = None
    """Path of the certificate that is shown, where one is asked for."""
    tls_key: str | None = None


class Reporter:
    """Sends what is `add`ed, as long as its canary is judged."""

    def __init__(self, canary: Canary) -> None:
        self._canary = canary
        self._planes = ControlPlanes()
        self._waiting: deque[Finding] = deque(maxlen=_MOST_WAITING)
        self._owed: deque[Finding] = deque()
        self._task: asyncio.Task[None] | None = None
        self.is_over = False
        """The control plane judges this canary no more."""

    def tell(self, planes: ControlPlanes) -> None:
        """Where control planes are from now on."""
        self._planes = planes

    def add(self, finding: Finding) -> None:
        """From a running event loop."""
        self._waiting.append(finding)
        self._sending()

    async def told(self, findings: Sequence[Finding]) -> bool:
        """Send some that are never let go: returns when all that waited was sent; False when no more are wanted."""
        self._owed.extend(findings)
        await asyncio.shield(self._sending())
        return not self.is_over

    def _sending(self) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._send_all())
        return self._task

    def _next_batch(self) -> list[Finding]:
        from_ = self._owed or self._waiting
        return [from_.popleft() for _ in range(min(_BATCH, len(from_)))]

    async def _send_all(self) -> None:
        while (batch := self._next_batch()) and not self.is_over:
            request = messages.ReportObservationsRequest(
                name=self._canary.name,
                revision=self._canary.revision,
                token=self._canary.token,
                observations=[_observation(each) for each in batch],
                request_id=str(uuid.uuid4()),
            )
            while not self.is_over and not await self._sent(request):
                await asyncio.sleep(_PAUSE_S)

    async def _sent(self, request: messages.ReportObservationsRequest) -> bool:
        """Whether one of them has taken it, or none ever will. The same request is sent again: it is counted once."""
        try:  # each time anew: a certificate may be renewed
            credentials = read_credentials(self._planes.tls_ca, self._planes.tls_cert, self._planes.tls_key)
        except OSError as error:
            words = "%s cannot be read (%s), so no control plane is told what was found; put it on this node"
            logger.error(words, error.filename, error.strerror)
            return False
        for address in self._planes.addresses:
            try:
                async with open_channel(address, credentials) as channel:
                    stub = deployment_service_pb2_grpc.DeploymentServiceStub(channel)
                    await stub.ReportObservations(request, timeout=_TIMEOUT_S)
                return True
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    self.is_over = True
                    return True
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    num = len(request.observations)
                    logger.error("%s refused %d findings, which are let go: %s", address, num, error.details())
                    return True
                logger.warning("%s did not take a report: %s %s", address, error.code(), error.details())
        return False


def _observation(finding: Finding) -> messages.Observation:
    values = asdict(finding)
    kind = messages.ObservationKind.Value(f"OBSERVATION_KIND_{values.pop('kind')}")
    return messages.Observation(kind=kind, **values)
