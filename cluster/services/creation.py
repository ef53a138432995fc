"""How jobs come to be: from a job file, or from one that ended.

An id of a request counts within its method and project. A repeated request gets its job whatever a check would say
now, for the world may have moved on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial

from athanor.v1 import job_pb2
from athanor.v1 import job_service_pb2 as messages

from cluster import wishes
from cluster.errors import ClusterError, NotFound, PreconditionFailed, StoreUnavailable
from cluster.ids import new_job_uid
from cluster.registry import pin, resolve
from cluster.security.audit import line
from cluster.security.caller import caller
from cluster.services.submission import (
    DEFAULT_PROJECT,
    awaited_models,
    check_dependencies,
    check_inputs_of,
    check_job,
    check_request_id,
    parsed,
    request_sha256,
)
from cluster.services.visible import shown, visible_job
from cluster.settings import Settings
from cluster.standings import newest_standing
from cluster.storage_copies import copy_job, has_progress, keep_copy, remove_copy, settle_copy
from cluster.store.audit_rows import Call
from cluster.store.creation_rows import Created, Creation
from cluster.store.records import NewJob, StoredJob
from cluster.store.store import Store
from cluster.together import Together
from cluster.wire import job_to_preview, job_to_proto

_RETRY = "RetryJob"


_CHECKED_AT_ONCE = 16
_CHECKING_THREADS = 4
"""Of which each may wait for a storage that does not answer."""


class Creations:
    """Makes jobs durable, those that are asked for at once in one transaction, with their lines in the audit log."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._checks: Together[_Asked, Creation | StoredJob] = Together(
            partial(_checked_each, store), at_once=_CHECKED_AT_ONCE, threads=_CHECKING_THREADS
        )
        self._creations: Together[Creation, Created] = Together(store.create_jobs)

    async def create(self, request: messages.CreateJobRequest) -> job_pb2.Job:
        """Durable when this returns."""
        said = line()
        found = await self._checks.add(_Asked(request, said.call if said else None, copy_context()))
        if isinstance(found, StoredJob):
            return await asyncio.to_thread(shown, self._store, found)
        created = await self._creations.add(found)
        if said is not None:
            said.entry = created.entry
        if not created.is_new:
            return await asyncio.to_thread(shown, self._store, created.job)
        return job_to_proto(created.job, newest_standing(created.job))


@dataclass(frozen=True)
class _Asked:
    """A request for a job; `context` has its caller."""

    request: messages.CreateJobRequest
    call: Call | None
    context: Context


def _checked_each(store: Store, asked: Sequence[_Asked]) -> list[Creation | StoredJob | Exception]:
    answers: list[Creation | StoredJob | Exception] = []
    for one in asked:
        try:
            answers.append(one.context.run(_checked, store, one.request, one.call))
        except Exception as error:  # noqa: BLE001  a process boundary within: its caller is told, the others go on
            answers.append(error)
    return answers


def _checked(store: Store, request: messages.CreateJobRequest, call: Call | None) -> Creation | StoredJob:
    """What is to be stored. Where that may not be, any more, whoever asks again gets the job of the first time."""
    check_request_id(request.request_id)
    sha256 = request_sha256(request.job)
    try:
        new = check_job(store, request.job, caller().name)
    except ClusterError:
        project = request.job.project or DEFAULT_PROJECT
        known = store.find_request(request.request_id, sha256, project) if caller().reaches(project) else None
        if known is None:
            raise
        return known
    return Creation(new, request.request_id, sha256, call=call)


def preview(store: Store, request: messages.CreateJobRequest) -> messages.CreateJobResponse:
    """All checks of `Creations.create`, and nothing stored."""
    check_request_id(request.request_id)
    return messages.CreateJobResponse(job=job_to_preview(check_job(store, request.job, caller().name)))


def retry(settings: Settings, store: Store, request: messages.RetryJobRequest) -> StoredJob:
    """A new job like the old one as it is now, with the models that it was pinned to."""
    check_request_id(request.request_id)
    old = visible_job(store, request.uid)
    sha256 = hashlib.sha256(f"{old.uid} {request.from_checkpoint}".encode()).hexdigest()
    known = store.find_request(request.request_id, sha256, old.project, _RETRY)
    if known is not None:
        return known
    new = _like(old, _checked_models(store, old))
    _check(settings, old, request.from_checkpoint)
    if request.from_checkpoint:
        _copy(settings, old, new.uid)
        _keep(settings, new.uid)
    job = store.create_job(new, request.request_id, sha256, _RETRY)
    if request.from_checkpoint:
        settle_copy(settings, new.uid)
        if job.uid != new.uid:
            remove_copy(settings, new.uid)  # the same request came twice at once
    return job


def _copy(settings: Settings, old: StoredJob, new: str) -> None:
    try:
        copy_job(settings, old.uid, new)
    except OSError as error:
        message = f"the directory of {old.uid} cannot be copied: {error.strerror or error}; it is safe to try again"
        raise StoreUnavailable("STORAGE_UNAVAILABLE", message) from error


def _keep(settings: Settings, new: str) -> None:
    try:
        keep_copy(settings, new)
    except OSError as error:
        message = "what was copied was cleared away before its job could be stored; try again"
        raise StoreUnavailable("STORAGE_UNAVAILABLE", message) from error


def _checked_models(store: Store, old: StoredJob) -> dict[str, str]:
    """The versions that it had, and those that it had only waited for; all that it names is there."""
    wishes.check_retryable(old)
    spec = parsed(old.kind, old.spec)
    awaited = awaited_models(spec, check_dependencies(store, _still_needed(old)))
    try:
        models = {text: resolve(store, pinned) for text, pinned in old.resolved_models.items() if text not in awaited}
        models |= pin(store, spec, {*models, *awaited})
    except NotFound as error:
        raise PreconditionFailed("MODEL_GONE", f"job {old.uid} cannot be repeated: {error.message}") from error
    check_inputs_of(spec, {text: model.path for text, model in models.items()}, awaited)
    return {text: model.reference for text, model in models.items()}


def _check(settings: Settings, old: StoredJob, from_checkpoint: bool) -> None:
    """Whether there is a checkpoint to go on from, where one is asked for."""
    if not from_checkpoint:
        return
    if any(not attempt.released for attempt in old.attempts):
        message = f"the processes of job {old.uid} are not known to be gone yet; try again in a minute"
        raise PreconditionFailed("JOB_NOT_RELEASED", message)
    if not has_progress(settings, old.uid):
        message = f"job {old.uid} left no checkpoint; repeat it without from_checkpoint, from step 0"
        raise PreconditionFailed("CHECKPOINT_NOT_FOUND", message)


def _still_needed(old: StoredJob) -> tuple[str, ...]:
    """What it waited for; one that has begun before waits for nothing any more."""
    return () if old.attempts else tuple(old.depends_on)


def _like(old: StoredJob, models: Mapping[str, str]) -> NewJob:
    return NewJob(
        uid=new_job_uid(old.name),
        name=old.name,
        kind=old.kind,
        labels=old.labels,
        spec=old.spec,
        priority=old.priority,
        resolved_models=models,
        project=old.project,
        creator=caller().name,
        retry_of=old.uid,
        max_run_duration_us=old.max_run_duration_us,
        hold_until_us=old.hold_until_us,
        depends_on=_still_needed(old),
    )
