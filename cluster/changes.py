"""What may become of a job, as changes to store: begun, heard, ended, lost, paused, blocked. Pure functions.

Which of them is due is decided in policy.py. Failures have three budgets, counted apart: of the machinery, of the job
itself, and how often it made room for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cluster.ids import ray_job_id
from cluster.lifecycle import DRIVER_TERMINATED, PREEMPTED, State
from cluster.registry import publication
from cluster.store.records import Change, Outcome, StoredAttempt, StoredJob, Terminal
from trainer.spec import RetriesSpec

UNREACHABLE = "Unreachable"
BLOCKED = "Blocked"
LONGEST_PAUSE_S = 60.0
"""Before the next attempt after a failure of the machinery."""
_US = 1_000_000
_PAUSED = "PAUSED"
"""What a driver says, and what is said for it, of an attempt that ended because it was asked to pause."""


def open_attempt(job: StoredJob) -> Change:
    """The next attempt: stored before anything of it exists outside."""
    number = len(job.attempts) + 1
    attempt = StoredAttempt(job_uid=job.uid, number=number, ray_job_id=ray_job_id(job.uid, number))
    return Change("ATTEMPT_CREATED", f"attempt {number}", opens_attempt=attempt)


def started(job: StoredJob, now_us: int) -> Change:
    """Ray has the attempt."""
    number = len(job.attempts)
    return Change("SUBMITTED", f"attempt {number} is on Ray", State.STARTING, attempt={"start_time_us": now_us})


def heard(job: StoredJob, now_us: int) -> Change | None:
    """What the word of a driver proves: that it was started, that it runs. None: nothing new."""
    if job.state in (State.ADMITTED, State.RECOVERING):
        return started(job, now_us)
    if job.state is State.STARTING:
        first = {} if job.start_time_us else {"start_time_us": now_us}
        return Change("RUNNING", f"attempt {len(job.attempts)} runs", State.RUNNING, job=first)
    return None


def next_to_conclusion(job: StoredJob, terminal: Terminal, now_us: int) -> Change | None:
    """One step on the way from wherever the job is to what its driver's terminal record makes of it; None: there."""
    attempt = job.last_attempt
    if attempt is None or not attempt.is_open:
        return None
    if job.state in (State.ADMITTED, State.RECOVERING):
        return started(job, now_us)
    return conclude(job, terminal, now_us)


def conclude(job: StoredJob, terminal: Terminal, now_us: int) -> Change:
    """What a driver's terminal record makes of its job. Success counts always; then what was asked for; then blame."""
    reason = terminal.reason or terminal.outcome.value
    closed = closing(now_us, reason, terminal.message) | {"terminal": as_json(terminal)}
    if terminal.outcome is Outcome.SUCCEEDED:
        return _succeeded(job, terminal, closed)
    if job.state is State.CANCELLING or terminal.outcome is Outcome.CANCELLED:
        return replace(cancelled(job, terminal.message), attempt=closed)
    if terminal.outcome is Outcome.USER_ERROR:
        return _again_or_failed(job, "user_failures", _retries(job).user, terminal, closed)
    if job.state is State.PAUSING:
        return replace(paused(job, terminal.message or "paused"), attempt=closed)
    if terminal.outcome is Outcome.PAUSED or terminal.reason == DRIVER_TERMINATED:
        # It ended well, or Ray was told from outside to end it: no failure that could repeat itself.
        return Change(reason, terminal.message, State.RECOVERING, {"retry_at_us": now_us + _US}, closed)
    return _again_or_failed(job, "infrastructure_failures", _retries(job).infrastructure, terminal, closed)


def lost(job: StoredJob, words: str, now_us: int) -> Change:
    """The driver is gone and left no record."""
    message = f"the driver of attempt {len(job.attempts)} is gone and left no record{f': {words}' if words else ''}"
    closed = closing(now_us, "DRIVER_LOST", message) | {"released": True}
    terminal = Terminal(Outcome.INFRASTRUCTURE_ERROR, "DRIVER_LOST", message)
    return _again_or_failed(job, "infrastructure_failures", _retries(job).infrastructure, terminal, closed)


def refused(job: StoredJob, words: str, now_us: int) -> Change:
    """Ray will not have the attempt: asking again would change nothing."""
    message = f"Ray does not take the job: {words}"
    closed = closing(now_us, "SUBMIT_REFUSED", message) | {"released": True}
    return Change("SUBMIT_REFUSED", message, State.FAILED, quiet(job), closed)


def overdue(job: StoredJob, now_us: int) -> Change:
    """It was RUNNING for longer than it may."""
    limit = timedelta(microseconds=job.max_run_duration_us or 0)
    message = f"ran longer than max_run_duration ({limit}); its last checkpoint is kept"
    return Change("MAX_RUN_DURATION", message, State.FAILED, quiet(job), closing(now_us, "MAX_RUN_DURATION", message))


def cancelled(job: StoredJob, message: str = "") -> Change:
    """Why it was asked for says more than that it ended."""
    asked = job.message if job.state is State.CANCELLING else ""
    words = "; ".join(part for part in (asked, message) if part)
    return Change("CANCELLED", words or "cancelled", State.CANCELLED, job=quiet(job))


def paused(job: StoredJob, message: str, more: Mapping[str, object] | None = None) -> Change:
    """The reason stays what it was asked for, and says whether it comes back by itself."""
    reason = PREEMPTED if job.reason == PREEMPTED else "PAUSED"
    return Change(reason, message, State.PAUSED, job={**quiet(job), **(more or {})})


def requeued(job: StoredJob, now_us: int) -> Change:
    """It made room, and waits again: what it gained by waiting is not lost, and by running it has gained nothing."""
    since_us = job.create_time_us if job.queue_since_us is None else job.queue_since_us
    waited_us = max(_left_queue_us(job, now_us) - since_us, 0)
    again = {"preemptions": job.preemptions + 1, "cancel_time_us": None, "queue_since_us": now_us - waited_us}
    return Change("REQUEUED", "made room, and waits for its turn again", State.QUEUED, job={**quiet(job), **again})


def _left_queue_us(job: StoredJob, now_us: int) -> int:
    """When the first attempt began of those since its turn came last: a pause ends what came before."""
    earlier = job.attempts[:-1]
    paused_at = max((attempt.number for attempt in earlier if attempt.reason == _PAUSED), default=0)
    begun = (attempt.start_time_us for attempt in job.attempts[paused_at:])
    return min((start_us for start_us in begun if start_us is not None), default=now_us)


def _succeeded(job: StoredJob, terminal: Terminal, closed: Mapping[str, object]) -> Change:
    return Change(
        reason=terminal.reason or "SUCCEEDED",
        message=terminal.message or "every stage is done",
        state=State.SUCCEEDED,
        job=quiet(job) | _results(terminal),
        attempt=closed,
        publication=publication(job, terminal),
    )


def _again_or_failed(
    job: StoredJob, counter: str, budget: int, terminal: Terminal, closed: Mapping[str, object]
) -> Change:
    reason, failures = terminal.reason or terminal.outcome.value, int(getattr(job, counter)) + 1
    counted: dict[str, object] = {counter: failures}
    if failures > budget:
        return Change(reason, terminal.message, State.FAILED, quiet(job) | _results(terminal) | counted, closed)
    message = f"{terminal.message} (failure {failures} of {budget} allowed)"
    if job.state is State.PAUSING:
        return replace(paused(job, message, counted), attempt=closed)
    retry_at_us = int(str(closed["end_time_us"])) + _back_off_us(failures)
    return Change(reason, message, State.RECOVERING, {**counted, "retry_at_us": retry_at_us}, closed)


def _back_off_us(failures: int) -> int:
    """Before the next attempt: what fails at once shall not use up its attempts within seconds."""
    return int(min(LONGEST_PAUSE_S, 2.0 ** min(failures - 1, 10)) * _US)


def blocked(job: StoredJob, reason: str, message: str, now_us: int) -> Change | None:
    """The line that says what of our own keeps a job from going on; None when that is known already."""
    return None if job.is_terminal else note(job, BLOCKED, True, reason, message, now_us)


def unblocked(job: StoredJob, now_us: int) -> Change | None:
    """The line that says that the job goes on."""
    return None if job.is_terminal else note(job, BLOCKED, False, "UNBLOCKED", "goes on", now_us)


def note(job: StoredJob, kind: str, holds: bool, reason: str, message: str, now_us: int) -> Change | None:
    """A condition that begins or ends to hold; None when that is known already."""
    known = job.condition(kind)
    was = bool(known and known["status"])
    if was == holds and not (known and holds and known["reason"] != reason):
        return None
    condition = {
        "type": kind,
        "status": holds,
        "reason": reason,
        "message": message,
        "last_transition_time_us": known["last_transition_time_us"] if known and was == holds else now_us,
    }
    others = [each for each in job.conditions if each["type"] != kind]
    return Change(reason, message, job={"conditions": [*others, condition]})


def closing(now_us: int, reason: str, message: str) -> dict[str, object]:
    """Of an attempt that has ended."""
    return {"end_time_us": now_us, "reason": reason, "message": message}


def quiet(job: StoredJob) -> dict[str, object]:
    """A job that runs no more is out of nobody's sight, and nothing blocks it."""
    return {"conditions": [each for each in job.conditions if each["type"] not in (UNREACHABLE, BLOCKED)]}


def _results(terminal: Terminal) -> dict[str, object]:
    return {"report_path": terminal.report_path, "summary": dict(terminal.summary) or None}


def _retries(job: StoredJob) -> RetriesSpec:
    return RetriesSpec.model_validate((job.spec.get("schedule") or {}).get("retries") or {})


def as_json(terminal: Terminal) -> dict[str, Any]:
    """A terminal record as it is stored, and compared when it is told again."""
    document = {**vars(terminal), "outcome": terminal.outcome.value, "summary": dict(terminal.summary)}
    del document["num_parameters"]
    return document
