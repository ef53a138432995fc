"""What people change of a job that is there: update, cancel, pause, resume, delete.

What a wish makes of a job is decided in wishes.py. Here it is checked who asks, and tried again when the job moved.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

import structlog
from athanor.v1 import job_service_pb2 as messages
from google.protobuf.duration_pb2 import Duration

from cluster import wishes
from cluster.errors import Conflict, InvalidInput, NotFound, Violation
from cluster.security.caller import caller
from cluster.services.submission import label_violations
from cluster.services.visible import visible_job
from cluster.settings import Settings
from cluster.store.records import StoredJob
from cluster.store.store import Store
from cluster.wire import clean, etag
from cluster.wishes import Wish

log = structlog.get_logger(__name__)

_TRIES = 8
_LONGEST_US = 366 * 24 * 3600 * 1_000_000


def update(store: Store, request: messages.UpdateJobRequest) -> StoredJob:
    """InvalidInput / INVALID_UPDATE for a mask or a value, Conflict / ETAG_MISMATCH."""
    changes = _changes(request)
    return _wish(store, request.job.uid, lambda job, _now_us: wishes.update(job, changes), request.etag)


def cancel(store: Store, request: messages.CancelJobRequest) -> StoredJob:
    words = _said(request.message, "asked to cancel it")
    has_grace = request.HasField("grace_period")
    grace_us = _microseconds(request.grace_period, "grace_period") if has_grace else None
    return _wish(store, request.uid, partial(wishes.cancel, words=words, grace_us=grace_us))


def pause(store: Store, request: messages.PauseJobRequest) -> StoredJob:
    words = _said(request.message, "asked to pause it")
    return _wish(store, request.uid, partial(wishes.pause, words=words))


def _said(message: str, otherwise: str) -> str:
    """Whoever looks at the job later wants to know who it was."""
    return f"{caller().name or 'somebody'}: {clean(message) or otherwise}"


def resume(store: Store, request: messages.ResumeJobRequest) -> StoredJob:
    return _wish(store, request.uid, wishes.resume)


def delete(settings: Settings, store: Store, request: messages.DeleteJobRequest) -> None:
    """Rows first: what is left of the directory, should this end in between, is housekeeping.py's to clear away."""
    for _ in range(_TRIES):
        try:
            job = visible_job(store, request.uid)
        except NotFound:
            gone = store.find_deletion(request.uid)
            if gone is not None and caller().reaches(gone.project):
                return  # asked for before, or at once with this, and done
            raise
        _check_etag(job, request.etag)
        wishes.check_deletable(job)
        try:
            store.delete_job(job)
        except Conflict:
            continue
        shutil.rmtree(settings.job_dir(job.uid), onerror=_not_removed)
        return
    raise Conflict("JOB_CHANGED", f"job {request.uid} changes faster than it can be deleted; try again")


def _not_removed(_call: object, path: str, failure: object) -> None:
    log.warning("job_dir.not_removed", path=path, error=repr(failure))


def _wish(store: Store, uid: str, wish: Wish, wanted_etag: str = "") -> StoredJob:
    """The job after the wish; as it is, where there is nothing to change."""
    for _ in range(_TRIES):
        job = visible_job(store, uid)
        _check_etag(job, wanted_etag)
        change = wish(job, store.now_us())
        if change is None:
            return job
        try:
            return store.transition(job, change)
        except Conflict:
            continue
    raise Conflict("JOB_CHANGED", f"job {uid} changes faster than the wish can be stored; try again")


def _check_etag(job: StoredJob, wanted: str) -> None:
    if wanted and wanted != etag(job):
        message = f"job {job.uid} has etag {etag(job)} now, not {wanted[:40]}: somebody changed it; read it again"
        raise Conflict("ETAG_MISMATCH", message)


def _changes(request: messages.UpdateJobRequest) -> dict[str, object]:
    paths = list(dict.fromkeys(request.update_mask.paths))
    unknown = [path for path in paths if path not in _READERS]
    if unknown or not paths:
        named = f"{unknown[0][:80]!r} cannot be changed" if unknown else "names no field"
        _refuse("update_mask", f"{named}; of a job {', '.join(_READERS)} can be changed")
    return dict(_READERS[path](request) for path in paths)


def _labels(request: messages.UpdateJobRequest) -> tuple[str, object]:
    labels = request.job.labels
    violations = [Violation(each.path.replace("metadata", "job", 1), each.message) for each in label_violations(labels)]
    if violations:
        raise InvalidInput("INVALID_UPDATE", violations[0].message, violations)
    return "labels", dict(labels)


def _priority(request: messages.UpdateJobRequest) -> tuple[str, object]:
    return "priority", wishes.check_priority(request.job.priority)


def _limit(request: messages.UpdateJobRequest) -> tuple[str, object]:
    """Without a value: no limit."""
    if not request.job.HasField("max_run_duration"):
        return "max_run_duration_us", None
    duration_us = _microseconds(request.job.max_run_duration, "job.max_run_duration")
    if duration_us == 0:
        _refuse("job.max_run_duration", "must be longer than 0; leave it out for no limit")
    return "max_run_duration_us", duration_us


_READERS: dict[str, Callable[[messages.UpdateJobRequest], tuple[str, object]]] = {
    "labels": _labels,
    "priority": _priority,
    "max_run_duration": _limit,
}


def _microseconds(duration: Duration, field: str) -> int:
    found = duration.seconds * 1_000_000 + duration.nanos // 1000
    if not 0 <= found <= _LONGEST_US:
        _refuse(field, f"{duration.seconds} s is not between 0 and a year")
    return found


def _refuse(field: str, message: str) -> None:
    raise InvalidInput("INVALID_UPDATE", f"{field}: {message}", [Violation(field, message)])
