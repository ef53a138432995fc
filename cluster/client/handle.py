"""One job in the hands of a program: what can be asked of it and done to it, without naming it each time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from athanor.v1 import job_pb2
from athanor.v1 import job_service_pb2 as pb

from cluster.client.call import Seconds

if TYPE_CHECKING:
    from cluster.client.asynchronous import AsyncAthanorClient
    from cluster.client.blocking import AthanorClient


class JobHandle:
    """A job of an `AthanorClient`. `job` is what was last heard of it."""

    def __init__(self, client: AthanorClient, job: job_pb2.Job) -> None:
        self._client = client
        self.job = job

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uid!r}, {self.state})"

    @property
    def uid(self) -> str:
        return self.job.uid

    @property
    def state(self) -> str:
        """As last heard: `RUNNING`, `SUCCEEDED`, ..."""
        return job_pb2.JobState.Name(self.job.state).removeprefix("JOB_STATE_")

    def refresh(self) -> job_pb2.Job:
        self.job = self._client.get_job(self.uid)
        return self.job

    def wait(self, *, timeout_s: float | None = None) -> job_pb2.Job:
        """Until it has ended; NotFinished when `timeout_s` passes first. Ask `state` how."""
        for _ in self.watch(timeout_s=timeout_s):
            pass
        return self.job

    def watch(self, *, timeout_s: float | None = None) -> Iterator[pb.WatchJobsResponse]:
        """Every change up to its end."""
        for change in self._client.follow_job(self.uid, timeout_s=timeout_s):
            self.job = change.job
            yield change

    def logs(self, **which: Any) -> Iterator[bytes]:
        """As `stream_logs`: attempt, role, rank, tail_lines, follow."""
        return self._client.stream_logs(self.uid, **which)

    def metrics(self, **which: Any) -> Iterator[pb.StreamJobMetricsResponse]:
        """As `stream_metrics`: role, after_step, follow."""
        return self._client.stream_metrics(self.uid, **which)

    def events(self) -> Iterator[pb.JobEvent]:
        """Its history, oldest first."""
        return self._client.list_job_events(self.uid)

    def report(self) -> bytes:
        """The transfer report, as JSON."""
        return self._client.get_job_report(self.uid).content

    def cancel(self, message: str = "", *, grace_period: Seconds | None = None) -> job_pb2.Job:
        self.job = self._client.cancel_job(self.uid, message, grace_period=grace_period)
        return self.job

    def pause(self, message: str = "") -> job_pb2.Job:
        self.job = self._client.pause_job(self.uid, message)
        return self.job

    def resume(self) -> job_pb2.Job:
        self.job = self._client.resume_job(self.uid)
        return self.job

    def retry(self, *, from_checkpoint: bool = False) -> JobHandle:
        """A new job like this one, which has ended."""
        return JobHandle(self._client, self._client.retry_job(self.uid, from_checkpoint=from_checkpoint))


class AsyncJobHandle:
    """A job of an `AsyncAthanorClient`. `job` is what was last heard of it."""

    def __init__(self, client: AsyncAthanorClient, job: job_pb2.Job) -> None:
        self._client = client
        self.job = job

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uid!r}, {self.state})"

    @property
    def uid(self) -> str:
        return self.job.uid

    @property
    def state(self) -> str:
        """As last heard: `RUNNING`, `SUCCEEDED`, ..."""
        return job_pb2.JobState.Name(self.job.state).removeprefix("JOB_STATE_")

    async def refresh(self) -> job_pb2.Job:
        self.job = await self._client.get_job(self.uid)
        return self.job

    async def wait(self, *, timeout_s: float | None = None) -> job_pb2.Job:
        """Until it has ended; NotFinished when `timeout_s` passes first. Ask `state` how."""
        async for _ in self.watch(timeout_s=timeout_s):
            pass
        return self.job

    async def watch(self, *, timeout_s: float | None = None) -> AsyncIterator[pb.WatchJobsResponse]:
        """Every change up to its end."""
        async for change in self._client.follow_job(self.uid, timeout_s=timeout_s):
            self.job = change.job
            yield change

    def logs(self, **which: Any) -> AsyncIterator[bytes]:
        """As `stream_logs`: attempt, role, rank, tail_lines, follow."""
        return self._client.stream_logs(self.uid, **which)

    def metrics(self, **which: Any) -> AsyncIterator[pb.StreamJobMetricsResponse]:
        """As `stream_metrics`: role, after_step, follow."""
        return self._client.stream_metrics(self.uid, **which)

    def events(self) -> AsyncIterator[pb.JobEvent]:
        """Its history, oldest first."""
        return self._client.list_job_events(self.uid)

    async def report(self) -> bytes:
        """The transfer report, as JSON."""
        return (await self._client.get_job_report(self.uid)).content

    async def cancel(self, message: str = "", *, grace_period: Seconds | None = None) -> job_pb2.Job:
        self.job = await self._client.cancel_job(self.uid, message, grace_period=grace_period)
        return self.job

    async def pause(self, message: str = "") -> job_pb2.Job:
        self.job = await self._client.pause_job(self.uid, message)
        return self.job

    async def resume(self) -> job_pb2.Job:
        self.job = await self._client.resume_job(self.uid)
        return self.job

    async def retry(self, *, from_checkpoint: bool = False) -> AsyncJobHandle:
        """A new job like this one, which has ended."""
        return AsyncJobHandle(self._client, await self._client.retry_job(self.uid, from_checkpoint=from_checkpoint))
