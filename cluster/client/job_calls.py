"""The questions to JobService that have one answer: what each method's arguments mean, as requests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from athanor.v1 import job_pb2
from athanor.v1 import job_service_pb2 as pb
from google.protobuf import field_mask_pb2, json_format, struct_pb2

from cluster.client.call import Call, Listing, Seconds, call, duration
from cluster.job_file import with_absolute_paths

SERVICE = pb.DESCRIPTOR.services_by_name["JobService"]


def create_job(
    manifest: Mapping[str, Any], *, request_id: str | None = None, validate_only: bool = False
) -> Call[job_pb2.Job]:
    """Submit a job file. Safe to repeat: the same request id never makes a second job, and a failure names it.

    Relative paths in it mean "from where this program runs".
    """
    manifest = with_absolute_paths(manifest, Path.cwd())
    metadata = manifest.get("metadata") or {}
    job = job_pb2.Job(
        project=metadata.get("project", ""),
        name=metadata.get("name", ""),
        kind=manifest.get("kind", ""),
        labels=metadata.get("labels") or {},
        spec=json_format.ParseDict(manifest.get("spec") or {}, struct_pb2.Struct()),
    )
    request = pb.CreateJobRequest(job=job, request_id=request_id or str(uuid.uuid4()), validate_only=validate_only)
    return call(SERVICE, "CreateJob", request, pb.CreateJobResponse, lambda response: response.job)


def get_job(uid: str) -> Call[job_pb2.Job]:
    """The job of this uid."""
    return call(SERVICE, "GetJob", pb.GetJobRequest(uid=uid), pb.GetJobResponse, lambda response: response.job)


def list_jobs(
    *,
    states: Sequence[job_pb2.JobState.ValueType] = (),
    name: str = "",
    filter: str = "",
    order_by: str = "",
    limit: int = 100,
) -> Listing[job_pb2.Job]:
    """Newest first unless `order_by` says otherwise, over all pages, at most `limit`. `filter` as in AIP-160."""

    def page(size: int, token: str) -> Call[tuple[Sequence[job_pb2.Job], str]]:
        request = pb.ListJobsRequest(
            page_size=size, page_token=token, states=states, name=name, filter=filter, order_by=order_by
        )
        return call(
            SERVICE, "ListJobs", request, pb.ListJobsResponse, lambda found: (found.jobs, found.next_page_token)
        )

    return Listing(page, limit)


def update_job(
    uid: str,
    *,
    labels: Mapping[str, str] | None = None,
    priority: int | None = None,
    max_run_duration: Seconds | None = None,
    etag: str = "",
) -> Call[job_pb2.Job]:
    """Change what is given and nothing else; `labels` replace all there were; a `max_run_duration` of 0 takes it away.

    With an `etag` only if the job is still that version; then it is never repeated.
    """
    wanted = {"labels": labels, "priority": priority, "max_run_duration": max_run_duration}
    mask = field_mask_pb2.FieldMask(paths=[name for name, value in wanted.items() if value is not None])
    job = job_pb2.Job(
        uid=uid, labels=labels, priority=priority or 0, max_run_duration=duration(max_run_duration or None)
    )
    request = pb.UpdateJobRequest(job=job, update_mask=mask, etag=etag)
    return call(SERVICE, "UpdateJob", request, pb.UpdateJobResponse, lambda response: response.job)


def delete_job(uid: str, *, etag: str = "") -> Call[None]:
    """Forget a job that has ended, with its logs and checkpoints; what it published stays."""
    request = pb.DeleteJobRequest(uid=uid, etag=etag)
    return call(SERVICE, "DeleteJob", request, pb.DeleteJobResponse, lambda _: None)


def cancel_job(uid: str, message: str = "", *, grace_period: Seconds | None = None) -> Call[job_pb2.Job]:
    """Ask a job to end; its driver may take `grace_period` to do it by itself."""
    request = pb.CancelJobRequest(uid=uid, message=message, grace_period=duration(grace_period))
    return call(SERVICE, "CancelJob", request, pb.CancelJobResponse, lambda response: response.job)


def pause_job(uid: str, message: str = "") -> Call[job_pb2.Job]:
    """Ask a job to write a checkpoint and let go of its resources."""
    request = pb.PauseJobRequest(uid=uid, message=message)
    return call(SERVICE, "PauseJob", request, pb.PauseJobResponse, lambda response: response.job)


def resume_job(uid: str) -> Call[job_pb2.Job]:
    """Put a paused job back into the queue; it goes on from its checkpoint."""
    return call(SERVICE, "ResumeJob", pb.ResumeJobRequest(uid=uid), pb.ResumeJobResponse, lambda response: response.job)


def retry_job(uid: str, *, from_checkpoint: bool = False, request_id: str | None = None) -> Call[job_pb2.Job]:
    """A new job like one that FAILED or was CANCELLED. Safe to repeat, as `create_job`."""
    request = pb.RetryJobRequest(uid=uid, from_checkpoint=from_checkpoint, request_id=request_id or str(uuid.uuid4()))
    return call(SERVICE, "RetryJob", request, pb.RetryJobResponse, lambda response: response.job)


def list_job_events(uid: str, *, limit: int = 1000) -> Listing[pb.JobEvent]:
    """The history of one job, oldest first, over all pages, at most `limit`."""

    def page(size: int, token: str) -> Call[tuple[Sequence[pb.JobEvent], str]]:
        request = pb.ListJobEventsRequest(uid=uid, page_size=size, page_token=token)
        return call(
            SERVICE,
            "ListJobEvents",
            request,
            pb.ListJobEventsResponse,
            lambda found: (found.events, found.next_page_token),
        )

    return Listing(page, limit)


def get_job_report(uid: str, *, form: Literal["json", "html"] = "json") -> Call[pb.GetJobReportResponse]:
    """The transfer report of a finished job: its content type and its bytes."""
    number = pb.ReportFormat.Value(f"REPORT_FORMAT_{form.upper()}")
    request = pb.GetJobReportRequest(uid=uid, format=number)
    return call(SERVICE, "GetJobReport", request, pb.GetJobReportResponse, lambda response: response)
