"""Between the store's records and the messages of `athanor.v1`, in both directions. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from athanor.v1 import job_pb2, job_service_pb2, model_service_pb2, worker_service_pb2
from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from cluster.errors import InvalidInput, Violation
from cluster.lifecycle import State
from cluster.standings import Standing
from cluster.store.alias_rows import StoredMove
from cluster.store.records import (
    NewJob,
    Outcome,
    StoredAttempt,
    StoredEvent,
    StoredJob,
    StoredModel,
    Terminal,
)

_OUTCOMES = {worker_service_pb2.Outcome.Value(f"OUTCOME_{outcome.value}"): outcome for outcome in Outcome}
_WORKED_ON = frozenset({State.RUNNING, State.PAUSING, State.CANCELLING})
_REASON_LENGTH = 64
_MESSAGE_LENGTH = 4000
_EXACT = 2**53


def timestamp(time_us: int) -> Timestamp:
    message = Timestamp()
    message.FromMicroseconds(time_us)
    return message


def clean(text: str, length: int = _MESSAGE_LENGTH) -> str:
    """Words from outside in a form that every store takes: no NUL, not endless."""
    return text.replace("\0", "")[:length]


def from_struct(value: struct_pb2.Value | struct_pb2.Struct) -> Any:
    """Plain Python. Struct knows only doubles: whole ones become int again; what is not finite becomes None."""
    if isinstance(value, struct_pb2.Struct):
        return {key: from_struct(field) for key, field in value.fields.items()}
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [from_struct(each) for each in value.list_value.values]
    if kind == "number_value":
        return _number(value.number_value)
    return None if kind in (None, "null_value") else getattr(value, kind)


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def to_struct(document: Mapping[str, Any]) -> struct_pb2.Struct:
    message = struct_pb2.Struct()
    message.update(document)
    return message


def state_to_proto(state: State) -> job_pb2.JobState.ValueType:
    return job_pb2.JobState.Value(f"JOB_STATE_{state.value}")


def states_from_proto(values: Sequence[int]) -> tuple[State, ...]:
    """Filter states; UNSPECIFIED among them means any. InvalidInput for numbers that this server does not know."""
    if job_pb2.JOB_STATE_UNSPECIFIED in values:
        return ()
    known = {int(state_to_proto(state)): state for state in State}
    unknown = [value for value in values if value not in known]
    if unknown:
        violation = Violation("states", f"{unknown[0]} is no job state that this server knows")
        raise InvalidInput("INVALID_FILTER", violation.message, [violation])
    return tuple(known[value] for value in values)


def job_to_proto(job: StoredJob, standing: Standing | None = None) -> job_pb2.Job:
    """With its place in the queue, if it waits (`Store.standings_of`)."""
    message = job_pb2.Job(
        uid=job.uid,
        name=job.name,
        kind=job.kind,
        labels=job.labels,
        spec=to_struct(job.spec),
        state=state_to_proto(job.state),
        reason=job.reason,
        message=job.message,
        conditions=[_condition(condition) for condition in job.conditions],
        attempts=[_attempt(attempt) for attempt in job.attempts],
        resolved_models=job.resolved_models,
        published_model=job.published_model,
        report_path=job.report_path,
        create_time=timestamp(job.create_time_us),
        update_time=timestamp(job.update_time_us),
        resource_version=job.resource_version,
        etag=etag(job),
        project=job.project,
        priority=job.priority,
        creator=job.creator,
        retry_of=job.retry_of,
    )
    _set_optional(message, job)
    if standing is not None:
        position, reason, words = standing
        message.queue.CopyFrom(job_pb2.QueueStanding(position=position, reason=reason, message=words))
    return message


def etag(job: StoredJob) -> str:
    """Of this version of the job, opaque to clients."""
    return f'"{job.resource_version:x}"'


def job_to_preview(new: NewJob) -> job_pb2.Job:
    """A job as it would be stored, without what only storing gives."""
    return job_pb2.Job(
        name=new.name,
        kind=new.kind,
        labels=new.labels,
        spec=to_struct(new.spec),
        state=job_pb2.JOB_STATE_QUEUED,
        resolved_models=new.resolved_models,
        project=new.project,
        priority=new.priority,
    )


def _set_optional(message: job_pb2.Job, job: StoredJob) -> None:
    if job.progress is not None:
        message.progress.CopyFrom(progress_to_proto(_as_it_holds(job, job.progress)))
    if job.max_run_duration_us is not None:
        message.max_run_duration.FromMicroseconds(job.max_run_duration_us)
    if job.summary is not None:
        message.summary.CopyFrom(to_struct(job.summary))
    if job.start_time_us is not None:
        message.start_time.FromMicroseconds(job.start_time_us)
    if job.end_time_us is not None:
        message.end_time.FromMicroseconds(job.end_time_us)


def _condition(condition: Mapping[str, Any]) -> job_pb2.Condition:
    return job_pb2.Condition(
        type=condition["type"],
        status=condition["status"],
        reason=condition["reason"],
        message=condition["message"],
        last_transition_time=timestamp(condition["last_transition_time_us"]),
    )


def _attempt(attempt: StoredAttempt) -> job_pb2.Attempt:
    message = job_pb2.Attempt(
        number=attempt.number, ray_job_id=attempt.ray_job_id, reason=attempt.reason, message=attempt.message
    )
    if attempt.start_time_us is not None:
        message.start_time.FromMicroseconds(attempt.start_time_us)
    if attempt.end_time_us is not None:
        message.end_time.FromMicroseconds(attempt.end_time_us)
    return message


def _as_it_holds(job: StoredJob, progress: Mapping[str, Any]) -> Mapping[str, Any]:
    """How far a job is stays true while nobody works on it; how fast it was, and the time left by that, do not."""
    last = job.attempts[-1].number if job.attempts else 0
    if job.state in _WORKED_ON and progress.get("attempt", last) == last:
        return progress
    return {**progress, "tokens_per_second": 0.0, "eta_s": None}


def progress_to_proto(progress: Mapping[str, Any]) -> job_pb2.Progress:
    """Of the store's JSON, which is also what a driver keeps in progress.json."""
    message = job_pb2.Progress(
        stage=progress["stage"],
        step=progress["step"],
        total_steps=progress["total_steps"],
        tokens=progress["tokens"],
        tokens_per_second=progress["tokens_per_second"],
        loss=progress["loss"],
        update_time=timestamp(progress["update_time_us"]),
    )
    if progress["eta_s"] is not None:
        message.eta.FromMicroseconds(int(progress["eta_s"] * 1e6))
    return message


def progress_from_proto(message: job_pb2.Progress, attempt: int, now_us: int) -> dict[str, Any]:
    """As JSON for the store; figures that are not finite are left out."""
    measured = message.update_time.ToMicroseconds() if message.HasField("update_time") else now_us
    return {
        "stage": clean(message.stage, _REASON_LENGTH),
        "step": message.step,
        "total_steps": message.total_steps,
        "tokens": message.tokens,
        "tokens_per_second": _number(message.tokens_per_second) or 0.0,
        "loss": message.loss if message.HasField("loss") and math.isfinite(message.loss) else None,
        "eta_s": message.eta.ToMicroseconds() / 1e6 if message.HasField("eta") else None,
        "update_time_us": measured,
        "attempt": attempt,
    }


def lines_from_proto(events: Sequence[worker_service_pb2.WorkerEvent]) -> list[tuple[str, str]]:
    return [(clean(event.reason, _REASON_LENGTH), clean(event.message)) for event in events]


def terminal_from_proto(message: worker_service_pb2.TerminalRecord) -> Terminal:
    """A driver's terminal record. One without an outcome comes from something that is not our driver."""
    outcome = _OUTCOMES.get(message.outcome)
    if outcome is None:
        raise InvalidInput("INVALID_RECORD", "a terminal record needs an outcome that this server knows")
    return Terminal(
        outcome=outcome,
        reason=clean(message.reason, _REASON_LENGTH),
        message=clean(message.message),
        model_path=clean(message.model_path),
        model_manifest_sha256=clean(message.model_manifest_sha256, 64),
        report_path=clean(message.report_path),
        summary=from_struct(message.summary),
    )


def event_to_proto(event: StoredEvent) -> job_service_pb2.JobEvent:
    return job_service_pb2.JobEvent(
        resource_version=event.resource_version,
        job_uid=event.job.uid,
        state=state_to_proto(event.job.state),
        reason=event.reason,
        message=event.message,
        create_time=timestamp(event.create_time_us),
    )


def model_to_proto(model: StoredModel) -> model_service_pb2.ModelVersion:
    return model_service_pb2.ModelVersion(
        name=model.name,
        version=model.version,
        aliases=model.aliases,
        path=model.path,
        manifest_sha256=model.manifest_sha256,
        job_uid=model.job_uid or "",
        teachers=model.teachers,
        num_parameters=model.num_parameters,
        metrics=to_struct(model.metrics),
        create_time=timestamp(model.create_time_us),
        description=model.description,
    )


def move_to_proto(move: StoredMove) -> model_service_pb2.AliasMove:
    return model_service_pb2.AliasMove(
        version=move.version,
        previous_version=move.previous_version,
        cause=move.cause,
        actor=move.actor,
        create_time=timestamp(move.create_time_us),
    )
