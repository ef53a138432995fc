"""The transfer report of a finished job, as its driver left it on the storage."""

from __future__ import annotations

from pathlib import Path

from athanor.v1 import job_service_pb2 as messages

from cluster.errors import InvalidInput, NotFound, ResourceExhausted, Violation
from cluster.services.job_files import open_inside
from cluster.services.visible import visible_job
from cluster.settings import Settings
from cluster.store.store import Store

_MOST_BYTES = 3 * 1024 * 1024
_FORMS = {
    messages.REPORT_FORMAT_UNSPECIFIED: (".json", "application/json"),
    messages.REPORT_FORMAT_JSON: (".json", "application/json"),
    messages.REPORT_FORMAT_HTML: (".html", "text/html; charset=utf-8"),
}


def get_report(
    settings: Settings, store: Store, request: messages.GetJobReportRequest
) -> messages.GetJobReportResponse:
    """NotFound / REPORT_NOT_FOUND; ResourceExhausted / REPORT_TOO_LARGE, with the place where it lies."""
    job = visible_job(store, request.uid)
    if request.format not in _FORMS:
        violation = Violation("format", f"{request.format} is no format that this server knows")
        raise InvalidInput("INVALID_FORMAT", violation.message, [violation])
    suffix, content_type = _FORMS[request.format]
    path = Path(job.report_path or "none").with_suffix(suffix)
    file = open_inside(settings, job.uid, path) if job.report_path else None
    if file is None:
        raise NotFound("REPORT_NOT_FOUND", f"job {job.uid} is {job.state.value} and has no report; it comes at its end")
    with file:
        content = file.read(_MOST_BYTES + 1) or b""
    if len(content) > _MOST_BYTES:
        raise ResourceExhausted("REPORT_TOO_LARGE", f"the report is larger than {_MOST_BYTES} bytes; it lies at {path}")
    return messages.GetJobReportResponse(content_type=content_type, content=content)
