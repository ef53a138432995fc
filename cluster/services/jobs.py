"""JobService: makes jobs durable, shows and follows them, notes what people wish of them. The reconciler moves them.

Handlers only: creation.py, listing.py, job_changes.py, watching.py, logs.py, metrics.py and reports.py do the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
from athanor.v1 import job_pb2, job_service_pb2_grpc
from athanor.v1 import job_service_pb2 as messages

from cluster.services import creation, job_changes, listing, logs, metrics, reports, watching
from cluster.services.file_work import on_files
from cluster.services.visible import shown, visible_job
from cluster.settings import Settings
from cluster.store.records import StoredJob
from cluster.store.store import Store
from cluster.wakeup import WakeUp

Request = TypeVar("Request")


class JobService(job_service_pb2_grpc.JobServiceServicer):
    """One for a process: its watchers share what is read for them."""

    def __init__(self, settings: Settings, store: Store, wake_up: WakeUp) -> None:
        self._settings = settings
        self._store = store
        self._wake_up = wake_up
        self._creations = creation.Creations(store)
        self._feed = watching.Feed(store, wake_up)

    async def CreateJob(
        self, request: messages.CreateJobRequest, context: grpc.ServicerContext
    ) -> messages.CreateJobResponse:
        del context
        if request.validate_only:
            return await asyncio.to_thread(creation.preview, self._store, request)
        return messages.CreateJobResponse(job=await self._creations.create(request))

    async def GetJob(self, request: messages.GetJobRequest, context: grpc.ServicerContext) -> messages.GetJobResponse:
        del context
        return messages.GetJobResponse(job=await self._job(visible_job, request.uid))

    async def ListJobs(
        self, request: messages.ListJobsRequest, context: grpc.ServicerContext
    ) -> messages.ListJobsResponse:
        del context
        return await asyncio.to_thread(listing.list_jobs, self._store, request)

    async def UpdateJob(
        self, request: messages.UpdateJobRequest, context: grpc.ServicerContext
    ) -> messages.UpdateJobResponse:
        del context
        return messages.UpdateJobResponse(job=await self._job(job_changes.update, request))

    async def DeleteJob(
        self, request: messages.DeleteJobRequest, context: grpc.ServicerContext
    ) -> messages.DeleteJobResponse:
        del context
        await on_files(job_changes.delete, self._settings, self._store, request)
        return messages.DeleteJobResponse()

    async def CancelJob(
        self, request: messages.CancelJobRequest, context: grpc.ServicerContext
    ) -> messages.CancelJobResponse:
        del context
        return messages.CancelJobResponse(job=await self._job(job_changes.cancel, request))

    async def PauseJob(
        self, request: messages.PauseJobRequest, context: grpc.ServicerContext
    ) -> messages.PauseJobResponse:
        del context
        return messages.PauseJobResponse(job=await self._job(job_changes.pause, request))

    async def ResumeJob(
        self, request: messages.ResumeJobRequest, context: grpc.ServicerContext
    ) -> messages.ResumeJobResponse:
        del context
        return messages.ResumeJobResponse(job=await self._job(job_changes.resume, request))

    async def RetryJob(
        self, request: messages.RetryJobRequest, context: grpc.ServicerContext
    ) -> messages.RetryJobResponse:
        del context
        job = await on_files(creation.retry, self._settings, self._store, request)
        return messages.RetryJobResponse(job=await asyncio.to_thread(shown, self._store, job))

    async def WatchJobs(
        self, request: messages.WatchJobsRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[messages.WatchJobsResponse]:
        del context
        async for message in watching.watch(self._store, self._feed, request):
            yield message

    async def StreamJobLogs(
        self, request: messages.StreamJobLogsRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[messages.StreamJobLogsResponse]:
        del context
        async for piece in logs.stream(self._settings, self._store, self._wake_up, request):
            yield piece

    async def StreamJobMetrics(
        self, request: messages.StreamJobMetricsRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[messages.StreamJobMetricsResponse]:
        del context
        async for line in metrics.stream(self._settings, self._store, self._wake_up, request):
            yield line

    async def ListJobEvents(
        self, request: messages.ListJobEventsRequest, context: grpc.ServicerContext
    ) -> messages.ListJobEventsResponse:
        del context
        return await asyncio.to_thread(listing.list_events, self._store, request)

    async def GetJobReport(
        self, request: messages.GetJobReportRequest, context: grpc.ServicerContext
    ) -> messages.GetJobReportResponse:
        del context
        return await on_files(reports.get_report, self._settings, self._store, request)

    async def _job(self, call: Callable[[Store, Request], StoredJob], request: Request) -> job_pb2.Job:
        """What the call makes of the request, as people see it."""

        def work() -> job_pb2.Job:
            return shown(self._store, call(self._store, request))

        return await asyncio.to_thread(work)
