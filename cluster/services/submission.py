"""Checks a job before it is stored: everything that can be known now is said now, with the field that is wrong.

Reads the spec by trainer.spec (its only definition), pins registry references, looks at the named files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from athanor.v1 import job_pb2

from cluster.awaited_models import from_dependency
from cluster.errors import InvalidInput, NotFound, Violation, in_words
from cluster.ids import new_job_uid
from cluster.lifecycle import State
from cluster.registry import NAME_RULE, is_name, pin
from cluster.security.caller import caller
from cluster.security.limits import MAX_SPEC_BYTES
from cluster.store.records import NewJob, StoredJob
from cluster.store.store import Store
from cluster.wire import from_struct
from trainer.errors import SpecError
from trainer.preflight import check_inputs
from trainer.spec import DistillSpec, FineTuneSpec, parse_spec

_READ_FIELDS = frozenset({"project", "name", "kind", "labels", "spec"})
DEFAULT_PROJECT = "default"
_LABEL_KEY = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?$")
_REQUEST_ID = re.compile(r"^[!-~]{1,64}$")
_MAX_LABELS = 64
_MAX_LABEL_LENGTH = 256


def request_sha256(job: job_pb2.Job) -> str:
    """What "the same job" means for a repeated request."""
    return hashlib.sha256(job.SerializeToString(deterministic=True)).hexdigest()


def check_request_id(request_id: str) -> None:
    """InvalidInput for an id that no client of ours makes."""
    if request_id and not _REQUEST_ID.fullmatch(request_id):
        message = "1 to 64 visible ASCII characters, for example a UUID"
        raise InvalidInput("INVALID_REQUEST_ID", f"request_id: {message}", [Violation("request_id", message)])


def check_job(store: Store, job: job_pb2.Job, creator: str = "") -> NewJob:
    """A job that may be stored.

    InvalidInput / INVALID_SPEC, NotFound / MODEL_NOT_FOUND, each with the fields that are wrong.
    """
    _check_envelope(job)
    caller().check_writes_to(job.project or DEFAULT_PROJECT)
    _check_size(job)
    spec = parsed(job.kind, from_struct(job.spec))
    awaited = awaited_models(spec, check_dependencies(store, spec.schedule.depends_on))
    pinned = pin(store, spec, awaited)
    check_inputs_of(spec, {text: model.path for text, model in pinned.items()}, awaited)
    hold_until = spec.schedule.hold_until
    return NewJob(
        uid=new_job_uid(job.name),
        name=job.name,
        kind=job.kind,
        labels=dict(job.labels),
        spec=spec.model_dump(mode="json"),
        priority=spec.schedule.priority,
        resolved_models={text: model.reference for text, model in pinned.items()},
        project=job.project or DEFAULT_PROJECT,
        creator=creator,
        max_run_duration_us=_microseconds(spec.schedule.max_run_duration),
        hold_until_us=None if hold_until is None else int(hold_until.timestamp() * 1e6),
        depends_on=spec.schedule.depends_on,
    )


def _microseconds(duration: timedelta | None) -> int | None:
    return None if duration is None else int(duration.total_seconds() * 1e6)


def _refuse(violations: list[Violation]) -> None:
    if violations:
        raise InvalidInput("INVALID_SPEC", in_words(violations), violations)


def _check_envelope(job: job_pb2.Job) -> None:
    found = [
        Violation(f"job.{field.name}", "is set by the server; leave it out")
        for field, _ in job.ListFields()
        if field.name not in _READ_FIELDS
    ]
    for field, value in (("name", job.name), ("project", job.project or DEFAULT_PROJECT)):
        if not is_name(value):
            found.append(Violation(f"metadata.{field}", f"{value!r} is no name; {NAME_RULE}"))
    _refuse([*found, *label_violations(job.labels)])


def label_violations(labels: Mapping[str, str]) -> Iterator[Violation]:
    """What is wrong with the labels of a job."""
    if len(labels) > _MAX_LABELS:
        yield Violation("metadata.labels", f"has {len(labels)} entries; at most {_MAX_LABELS} allowed")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            yield Violation(f"metadata.labels[{key[:64]!r}]", "a key is 1 to 63 of letters, digits and '_./-'")
        if "${secret:" in value:
            yield Violation(f"metadata.labels[{key[:64]!r}]", "is seen by everybody and filled in by nobody; no secret")
        if len(value) > _MAX_LABEL_LENGTH or "\0" in value:
            yield Violation(f"metadata.labels[{key[:64]!r}]", f"a value has at most {_MAX_LABEL_LENGTH} characters")


def _check_size(job: job_pb2.Job) -> None:
    if (size := job.spec.ByteSize()) > MAX_SPEC_BYTES:
        message = f"takes {size} bytes; at most {MAX_SPEC_BYTES} allowed: data belongs in files"
        raise InvalidInput("SPEC_TOO_LARGE", f"spec {message}", [Violation("spec", message)])


def parsed(kind: str, spec: Mapping[str, Any]) -> FineTuneSpec | DistillSpec:
    """The spec as this release reads it; InvalidInput / INVALID_SPEC."""
    try:
        return parse_spec(kind, spec)
    except SpecError as error:
        raise _as_input_error(error) from error


def awaited_models(spec: FineTuneSpec | DistillSpec, depends_on: Sequence[StoredJob]) -> frozenset[str]:
    """References that mean what a job on its way will publish: there is no version yet, or it is not that one."""
    on_their_way = [job for job in depends_on if job.state is not State.SUCCEEDED]
    document = spec.model_dump(mode="json") if on_their_way else {}
    return frozenset(text for job in on_their_way for text in from_dependency(document, job.spec))


def check_dependencies(store: Store, uids: Sequence[str]) -> list[StoredJob]:
    """Those jobs; InvalidInput / INVALID_SPEC for one that is not there for the caller, or that will never succeed."""
    found, violations = [], []
    for at, uid in enumerate(uids):
        try:
            found.append(job := store.get_job(uid))
            caller().check_sees_job(uid, job.project)
        except NotFound as error:
            violations.append(Violation(f"spec.schedule.depends_on[{at}]", error.message))
        else:
            if job.state in (State.FAILED, State.CANCELLED):
                message = f"job {uid} has ended as {job.state.value}, so this one would never begin"
                violations.append(Violation(f"spec.schedule.depends_on[{at}]", message))
    _refuse(violations)
    return found


def check_inputs_of(spec: FineTuneSpec | DistillSpec, models: Mapping[str, str], awaited: Collection[str] = ()) -> None:
    """Is what the spec names there? InvalidInput / INVALID_SPEC. `models`: registry reference -> directory.

    Those that are `awaited` are taken on trust.
    """
    try:
        check_inputs(spec, models, awaited)
    except SpecError as error:
        raise _as_input_error(error) from error


def _as_input_error(error: SpecError) -> InvalidInput:
    violations = [Violation(each.path, each.message) for each in error.violations]
    return InvalidInput("INVALID_SPEC", error.message, violations)
