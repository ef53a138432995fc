"""WorkerService: what drivers say. Every call must show the lease of the attempt it speaks for.

What a driver's word makes of its job is decided in changes.py; here it is checked, stored and answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import structlog
from athanor.v1 import worker_service_pb2 as messages
from athanor.v1 import worker_service_pb2_grpc

from cluster import changes
from cluster.attempt_files import checked
from cluster.errors import Conflict, NotFound, PreconditionFailed
from cluster.ids import hash_token
from cluster.lifecycle import State
from cluster.replicas import Replicas
from cluster.settings import Settings
from cluster.store.records import Change, Lease, StoredJob, Terminal
from cluster.store.store import Store, lease_lost
from cluster.wire import lines_from_proto, progress_from_proto, terminal_from_proto

log = structlog.get_logger(__name__)

_TRIES = 8


def _lease(attempt: messages.AttemptRef) -> Lease:
    return Lease(attempt.job_uid, attempt.attempt, hash_token(attempt.lease_token))


_DIRECTIVES = {State.CANCELLING: messages.DIRECTIVE_CANCEL, State.PAUSING: messages.DIRECTIVE_PAUSE}


def _directive(job: StoredJob) -> messages.Directive.ValueType:
    return _DIRECTIVES.get(job.state, messages.DIRECTIVE_CONTINUE)


class WorkerService(worker_service_pb2_grpc.WorkerServiceServicer):
    """Handlers only."""

    def __init__(self, settings: Settings, store: Store, replicas: Replicas) -> None:
        self._settings = settings
        self._store = store
        self._replicas = replicas

    async def Heartbeat(
        self, request: messages.HeartbeatRequest, context: grpc.ServicerContext
    ) -> messages.HeartbeatResponse:
        del context
        job = await asyncio.to_thread(self._heard, _lease(request.attempt))
        response = messages.HeartbeatResponse(directive=_directive(job), control_planes=self._replicas.addresses)
        response.lease_duration.FromMilliseconds(int(self._settings.lease_s * 1000))
        return response

    async def ReportProgress(
        self, request: messages.ReportProgressRequest, context: grpc.ServicerContext
    ) -> messages.ReportProgressResponse:
        del context
        return messages.ReportProgressResponse(directive=_directive(await asyncio.to_thread(self._progress, request)))

    def _progress(self, request: messages.ReportProgressRequest) -> StoredJob:
        lease = _lease(request.attempt)
        has_progress = request.HasField("progress")
        progress = progress_from_proto(request.progress, lease.attempt, self._store.now_us()) if has_progress else None
        lines = lines_from_proto(request.events)
        job = self._store.record_progress(lease, self._settings.lease_s, progress, lines)
        return self._advance(job, lease, changes.heard)

    def _heard(self, lease: Lease) -> StoredJob:
        """Renew the lease; a driver that was not heard before has started, and runs."""
        job = self._store.renew_lease(lease, self._settings.lease_s)
        return self._advance(job, lease, changes.heard)

    async def ReportTerminal(
        self, request: messages.ReportTerminalRequest, context: grpc.ServicerContext
    ) -> messages.ReportTerminalResponse:
        del context
        await asyncio.to_thread(self._terminal, request)
        return messages.ReportTerminalResponse()

    def _terminal(self, request: messages.ReportTerminalRequest) -> None:
        """The record may be known already, from storage or from the same call before: then there is nothing to do."""
        terminal, lease = terminal_from_proto(request.record), _lease(request.attempt)
        if self._is_known(terminal, lease):
            return
        try:
            job = self._store.renew_lease(lease, self._settings.lease_s)
            found = checked(self._settings, job, terminal)
            self._advance(job, lease, lambda job, now_us: changes.next_to_conclusion(job, found, now_us))
        except PreconditionFailed:  # the lease is over: perhaps because the same call came at once with this one
            if not self._is_known(terminal, lease):
                raise

    def _is_known(self, terminal: Terminal, lease: Lease) -> bool:
        try:
            job = self._store.get_job(lease.job_uid)
        except NotFound:
            raise lease_lost(lease) from None
        attempt = next((each for each in job.attempts if each.number == lease.attempt), None)
        if attempt is None or attempt.lease_token_sha256 != lease.token_sha256:
            raise lease_lost(lease)
        return attempt.terminal == changes.as_json(terminal)

    def _advance(self, job: StoredJob, lease: Lease, decide: Callable[[StoredJob, int], Change | None]) -> StoredJob:
        """Make steps until there are none; when the job moved meanwhile, decide again on what it is now."""
        for _ in range(_TRIES):
            change = decide(job, self._store.now_us())
            if change is None:
                return job
            try:
                job = self._store.transition(job, change, lease)
            except Conflict:
                job = self._store.get_job(job.uid)
            else:
                ids = {"job": job.uid, "attempt": lease.attempt}
                log.info("job.step", **ids, state=job.state, reason=change.reason, message=change.message)
        raise Conflict("JOB_CHANGED", f"job {lease.job_uid} changes faster than this could be stored; say it again")
