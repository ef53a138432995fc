"""JobService: makes jobs durable, shows them, follows them, notes the wish to end them. The reconciler moves them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from athanor.v1 import job_pb2, job_service_pb2_grpc
from athanor.v1 import job_service_pb2 as messages

from cluster.errors import Conflict
from cluster.lifecycle import State
from cluster.services import logs
from cluster.services.pages import make_token, page_size, read_token
from cluster.services.submission import check_job, check_request_id, request_sha256
from cluster.settings import Settings
from cluster.store.records import Change, JobQuery, StoredEvent, StoredJob
from cluster.store.store import Store
from cluster.wakeup import WakeUp
from cluster.wire import clean, event_to_proto, job_to_proto, states_from_proto

_WATCH_PAGE = 200
_WATCH_POLL_S = 5.0
_TRIES = 8


class JobService(job_service_pb2_grpc.JobServiceServicer):
    """Handlers only; the work is in submission.py, logs.py and the store."""

    def __init__(self, settings: Settings, store: Store, wake_up: WakeUp) -> None:
        self._settings = settings
        self._store = store
        self._wake_up = wake_up

    async def CreateJob(
        self, request: messages.CreateJobRequest, context: grpc.ServicerContext
    ) -> messages.CreateJobResponse:
        del context
        return await asyncio.to_thread(self._create, request)

    def _create(self, request: messages.CreateJobRequest) -> messages.CreateJobResponse:
        """A repeated request gets its job before anything is checked again: the world may have moved on."""
        check_request_id(request)
        if request.validate_only:
            return messages.CreateJobResponse(job=check_job(self._store, request.job).preview)
        sha256 = request_sha256(request.job)
        job = self._store.find_request(request.request_id, sha256)
        if job is None:
            job = self._store.create_job(check_job(self._store, request.job).new, request.request_id, sha256)
        return messages.CreateJobResponse(job=job_to_proto(job))

    async def GetJob(self, request: messages.GetJobRequest, context: grpc.ServicerContext) -> messages.GetJobResponse:
        del context
        return messages.GetJobResponse(job=await asyncio.to_thread(self._shown, request.uid))

    def _shown(self, uid: str) -> job_pb2.Job:
        job = self._store.get_job(uid)
        return job_to_proto(job, self._store.standings_of([job]).get(uid))

    async def ListJobs(
        self, request: messages.ListJobsRequest, context: grpc.ServicerContext
    ) -> messages.ListJobsResponse:
        del context
        states, size = states_from_proto(request.states), page_size(request.page_size)
        question = ("jobs", sorted(states), request.name)
        cursor = read_token(request.page_token, question, [int])
        before = int(cursor[0]) if cursor else None
        # One more than a page, to know whether there is another.
        found = await asyncio.to_thread(self._store.list_jobs, JobQuery(size + 1, states, request.name, before))
        more = make_token([found[size - 1].seq], question) if len(found) > size else ""
        standings = await asyncio.to_thread(self._store.standings_of, found[:size])
        shown = [job_to_proto(job, standings.get(job.uid)) for job in found[:size]]
        return messages.ListJobsResponse(jobs=shown, next_page_token=more)

    async def CancelJob(
        self, request: messages.CancelJobRequest, context: grpc.ServicerContext
    ) -> messages.CancelJobResponse:
        del context
        return messages.CancelJobResponse(job=job_to_proto(await asyncio.to_thread(self._cancel, request)))

    def _cancel(self, request: messages.CancelJobRequest) -> StoredJob:
        words = clean(request.message) or "somebody asked to cancel it"
        for _ in range(_TRIES):
            job = self._store.get_job(request.uid)
            if job.is_terminal or job.state is State.CANCELLING:
                return job
            wish = Change("CANCEL_ASKED", words, State.CANCELLING, job={"cancel_time_us": self._store.now_us()})
            try:
                return self._store.transition(job, wish)
            except Conflict:
                continue
        raise Conflict("JOB_CHANGED", f"job {request.uid} changes faster than it can be cancelled; try again")

    async def WatchJobs(
        self, request: messages.WatchJobsRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[messages.WatchJobsResponse]:
        del context
        cursor = request.after_resource_version
        if request.uid:
            await asyncio.to_thread(self._store.get_job, request.uid)
        await asyncio.to_thread(self._store.check_cursor, cursor)
        if cursor == 0:
            cursor = await asyncio.to_thread(self._store.head_version)
            async for job in self._snapshot(request.uid, cursor):
                yield messages.WatchJobsResponse(job=job_to_proto(job))
        async for job, event in self._changes(cursor, request.uid):
            yield messages.WatchJobsResponse(job=job_to_proto(job), event=event_to_proto(event) if event else None)

    async def _snapshot(self, uid: str, head: int) -> AsyncIterator[StoredJob]:
        """Jobs in the order of resource versions, so that whoever is cut off goes on behind what was seen last.

        One that changes meanwhile is past `head` and comes with its changes, which begin there.
        """
        cursor = 0
        while page := await asyncio.to_thread(self._store.snapshot_page, cursor, uid, _WATCH_PAGE):
            for job in page:
                if job.resource_version > head:
                    return
                yield job
            cursor = page[-1].resource_version

    async def _changes(self, cursor: int, uid: str) -> AsyncIterator[tuple[StoredJob, StoredEvent | None]]:
        while True:
            ticket = self._wake_up.ticket()
            found = await asyncio.to_thread(self._store.changes, cursor, uid, _WATCH_PAGE)
            for job, event in found:
                cursor = job.resource_version
                yield job, event
            if not found:
                await self._wake_up.wait(ticket, _WATCH_POLL_S)

    async def StreamJobLogs(
        self, request: messages.StreamJobLogsRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[messages.StreamJobLogsResponse]:
        del context
        async for piece in logs.stream(self._settings, self._store, self._wake_up, request):
            yield piece
