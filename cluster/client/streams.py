"""Streams that go on where they were cut: each knows what to ask next, what it has seen, and when it is over.

Pure bookkeeping; the blocking and the asynchronous client open the calls and wait between them.
"""

from __future__ import annotations

import time
from typing import Generic, TypeVar

import grpc
from athanor.v1 import job_pb2
from athanor.v1 import job_service_pb2 as pb
from athanor.v1 import model_service_pb2 as models
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from cluster.client import job_calls, model_calls
from cluster.client.call import Response
from cluster.rpc import STREAM_TIMEOUT_S, NotFinished, RequestFailed

TERMINAL = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})

Item = TypeVar("Item")


class Stream(Generic[Response, Item]):
    """One long answer, over as many calls as it takes."""

    def __init__(self, service: ServiceDescriptor, name: str, response: type[Response]) -> None:
        self.method: MethodDescriptor = service.methods_by_name[name]
        self.response = response
        self._is_over = False

    def is_finished(self) -> bool:
        """Nothing more will come."""
        return self._is_over

    def timeout_s(self) -> float:
        """For how long the next call may last; after it, it is opened anew."""
        return STREAM_TIMEOUT_S

    def request(self) -> Message:
        """What to ask next: everything behind what was taken."""
        raise NotImplementedError

    def take(self, response: Response) -> Item | None:
        """Note what came; what of it is for the reader, if anything."""
        raise NotImplementedError

    def closed(self) -> None:
        """The server ended the call in good order."""
        self._is_over = True

    def failed(self, failure: RequestFailed) -> None:
        """The call was cut; it will be opened again."""


class JobWatch(Stream[pb.WatchJobsResponse, pb.WatchJobsResponse]):
    """A snapshot, then every stored change; of one job up to its end when `follows`."""

    def __init__(self, uid: str, cursor: int, project: str, *, until: float | None, follows: bool = False) -> None:
        super().__init__(job_calls.SERVICE, "WatchJobs", pb.WatchJobsResponse)
        self._uid, self._project, self._cursor = uid, project, cursor
        self._began, self._until = time.monotonic(), until
        self._follows = follows

    def timeout_s(self) -> float:
        left_s = STREAM_TIMEOUT_S if self._until is None else max(self._until - time.monotonic(), 0.001)
        return min(left_s, STREAM_TIMEOUT_S)

    def request(self) -> Message:
        self._check_time()
        return pb.WatchJobsRequest(
            uid=self._uid,
            project=self._project,
            after_resource_version=self._cursor,
            bookmarks=True,
        )

    def take(self, response: pb.WatchJobsResponse) -> pb.WatchJobsResponse | None:
        self._cursor = max(
            self._cursor, response.resource_version, response.job.resource_version, response.event.resource_version
        )
        if not response.HasField("job"):
            return None
        if self._follows and (response.deleted or response.job.state in TERMINAL):
            self._is_over = True
        return response

    def closed(self) -> None:
        """A watch ends with its reader alone."""
        self._check_time()

    def failed(self, failure: RequestFailed) -> None:
        """Of one job the newest is enough; whoever keeps a picture of all has to be told that a piece is missing."""
        if failure.code == grpc.StatusCode.OUT_OF_RANGE:
            if not self._follows:
                raise failure
            self._cursor = 0
        self._check_time()

    def _check_time(self) -> None:
        if self._until is None or time.monotonic() < self._until:
            return
        if self._follows:
            waited_s = self._until - self._began
            raise NotFinished("TIMEOUT", f"{self._uid} has not ended within {waited_s:.3g} s; it goes on")
        self._is_over = True


class LogReading(Stream[pb.StreamJobLogsResponse, bytes]):
    """The log of one process of one attempt, byte for byte."""

    def __init__(self, request: pb.StreamJobLogsRequest) -> None:
        super().__init__(job_calls.SERVICE, "StreamJobLogs", pb.StreamJobLogsResponse)
        self._next = request

    def request(self) -> Message:
        return self._next

    def take(self, response: pb.StreamJobLogsResponse) -> bytes | None:
        self._next.after_offset = response.next_offset
        self._next.attempt = response.attempt or self._next.attempt
        if response.next_offset:
            self._next.tail_lines = 0
        return response.data


class MetricsReading(Stream[pb.StreamJobMetricsResponse, pb.StreamJobMetricsResponse]):
    """The figures of one role, step by step; after a `rewound` line its step and later ones come again."""

    def __init__(self, request: pb.StreamJobMetricsRequest) -> None:
        super().__init__(job_calls.SERVICE, "StreamJobMetrics", pb.StreamJobMetricsResponse)
        self._next = request

    def request(self) -> Message:
        return self._next

    def take(self, response: pb.StreamJobMetricsResponse) -> pb.StreamJobMetricsResponse | None:
        self._next.after_step = response.step
        return response


class FileReading(Stream[models.DownloadModelVersionResponse, bytes]):
    """One file of a model version, from an offset to its end."""

    def __init__(self, reference: str, file: str, after_offset: int = 0) -> None:
        super().__init__(model_calls.SERVICE, "DownloadModelVersion", models.DownloadModelVersionResponse)
        self._next = models.DownloadModelVersionRequest(reference=reference, file=file, after_offset=after_offset)

    def request(self) -> Message:
        return self._next

    def take(self, response: models.DownloadModelVersionResponse) -> bytes | None:
        self._next.after_offset = response.next_offset
        return response.data


def watch_jobs(
    uid: str = "", *, after_resource_version: int = 0, project: str = "", until: float | None = None
) -> JobWatch:
    """A snapshot, then every stored change, with no gap where the connection was cut. Ends at `until` (monotonic).

    RequestFailed / RESOURCE_VERSION_TOO_OLD when it was cut for so long that changes are not kept any more: begin anew.
    """
    return JobWatch(uid, after_resource_version, project, until=until)


def follow_job(uid: str, *, timeout_s: float | None = None) -> JobWatch:
    """`watch_jobs` of one job up to its end; NotFinished when `timeout_s` passes first."""
    until = None if timeout_s is None else time.monotonic() + timeout_s
    return JobWatch(uid, 0, "", until=until, follows=True)


def stream_logs(
    uid: str,
    *,
    attempt: int = 0,
    role: str = "",
    rank: int = 0,
    tail_lines: int = 0,
    after_offset: int = 0,
    follow: bool = False,
) -> LogReading:
    """The log of a process in pieces, of the driver (with everybody's lines) without `role`.

    With `follow` until the attempt has ended. Goes on where it was cut.
    """
    return LogReading(
        pb.StreamJobLogsRequest(
            uid=uid,
            attempt=attempt,
            role=role,
            rank=rank,
            tail_lines=tail_lines,
            after_offset=after_offset,
            follow=follow,
        )
    )


def stream_metrics(uid: str, *, role: str = "", after_step: int = 0, follow: bool = False) -> MetricsReading:
    """The figures of `student` or `baseline` step by step; with `follow` until the job has ended."""
    request = pb.StreamJobMetricsRequest(uid=uid, role=role, after_step=after_step, follow=follow)
    return MetricsReading(request)
