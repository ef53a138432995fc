"""What to do next about one job: pure functions from what is stored and what is seen to a decision.

The reconciler acts on the decisions. The rule they keep (I1): not seeing Ray decides nothing. An attempt is given up
only when its lease is over and Ray, seen, says that its process ended or that it knows none; only then comes the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from cluster.ids import ray_job_id
from cluster.lifecycle import DRIVER_TERMINATED, PREEMPTED, State
from cluster.registry import publication
from cluster.settings import Settings
from cluster.store.records import Change, Outcome, StoredAttempt, StoredJob, Terminal
from trainer.spec import ScheduleSpec

UNREACHABLE = "Unreachable"
BLOCKED = "Blocked"
_US = 1_000_000
_LONGEST_PAUSE_S = 60.0


class View(StrEnum):
    """What Ray says of an attempt's job."""

    UNREACHABLE = "UNREACHABLE"
    """Ray cannot be seen: no evidence of anything."""
    UNKNOWN = "UNKNOWN"
    """Ray was seen, and knows no job of that id."""
    ALIVE = "ALIVE"
    ENDED = "ENDED"


@dataclass(frozen=True)
class Sight:
    """Everything seen of a job at one moment. Ray was asked before the terminal record was looked for."""

    now_us: int
    view: View
    words: str = ""
    """Ray's own, about its job or about why it cannot be seen."""
    terminal: Terminal | None = None
    listening_since_us: int = 0
    """From when on a driver could have been heard: leases run on while the control plane is down."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do now."""


@dataclass(frozen=True)
class Step:
    """Store a change."""

    change: Change


@dataclass(frozen=True)
class Submit:
    """Hand the last attempt to Ray."""


@dataclass(frozen=True)
class Stop:
    """Have Ray stop the last attempt's job; when it took the order, store `then`."""

    then: Change | None = None


@dataclass(frozen=True)
class Release:
    """Note that the last attempt holds nothing on the cluster any more."""


Decision = Wait | Step | Submit | Stop | Release


def decide(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    """The next step of a job that holds, or may still hold, something on the cluster."""
    if job.is_terminal:
        return _release(job, sight, settings)
    if job.state in (State.ADMITTED, State.RECOVERING):
        return _begin(job, sight, settings)
    if job.state is State.PAUSED:
        return _rest(job, sight, settings)
    if job.state is State.PAUSING:
        return _pause(job, sight, settings)
    if job.state is State.CANCELLING:
        return _cancel(job, sight, settings)
    return _attend(job, sight, settings)


def _begin(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    attempt = job.last_attempt
    if _is_overdue(job, sight.now_us) and not (attempt and attempt.is_open) and sight.view is not View.UNREACHABLE:
        return Step(replace(_overdue(job, sight.now_us), attempt={}))
    if attempt is None or attempt.released:
        return Wait() if sight.now_us < (job.retry_at_us or 0) else Step(open_attempt(job))
    if not attempt.is_open:
        return _release(job, sight, settings)
    was_seen = sight.view in (View.ALIVE, View.ENDED) or sight.terminal or attempt.lease_expires_us
    if was_seen:
        return Step(started(job, sight.now_us))
    return Submit() if sight.view is View.UNKNOWN else Wait()


def _attend(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    attempt = job.last_attempt
    if attempt is None or not attempt.is_open:
        return Wait()
    if sight.terminal is not None:
        return Step(conclude(job, sight.terminal, sight.now_us))
    if _is_overdue(job, sight.now_us):
        return Stop(then=_overdue(job, sight.now_us))
    if is_gone(attempt, sight, settings):
        return Step(_lost(job, sight))
    return Wait()


def _cancel(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    attempt = job.last_attempt
    if attempt is None or not attempt.is_open:
        return Step(Change("CANCELLED", "cancelled", State.CANCELLED, job=_quiet(job)))
    if sight.terminal is not None:
        return Step(conclude(job, sight.terminal, sight.now_us))
    if _has_ended(attempt, sight, settings):
        ended = _closing(sight.now_us, "CANCELLED", "ended by request") | {"released": True}
        return Step(Change("CANCELLED", "cancelled", State.CANCELLED, job=_quiet(job), attempt=ended))
    grace_us = settings.cancel_grace_s * _US if job.cancel_grace_us is None else job.cancel_grace_us
    is_late = sight.now_us > (job.cancel_time_us or 0) + grace_us
    return Stop() if sight.view is View.ALIVE and is_late else Wait()


def _pause(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    """Its driver writes a checkpoint and ends; one that dies or hangs over it costs the steps since the last one."""
    attempt = job.last_attempt
    if attempt is None or not attempt.is_open:
        return Step(_paused(job, "paused"))
    if sight.terminal is not None:
        return Step(conclude(job, sight.terminal, sight.now_us))
    if _has_ended(attempt, sight, settings):
        words = "paused; its driver ended without a word, so it goes on from its last checkpoint"
        ended = _closing(sight.now_us, "PAUSED", words) | {"released": True}
        return Step(replace(_paused(job, words), attempt=ended))
    is_late = sight.now_us > (job.cancel_time_us or 0) + settings.pause_grace_s * _US
    return Stop() if sight.view is View.ALIVE and is_late else Wait()


def _rest(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    """A paused job lets go of what it held; one that only made room then waits for its turn again."""
    attempt = job.last_attempt
    if attempt is not None and not attempt.released:
        return _release(job, sight, settings)
    if job.reason != PREEMPTED:
        return Wait()
    again = {"preemptions": job.preemptions + 1, "cancel_time_us": None}
    return Step(Change("REQUEUED", "made room, and waits for its turn again", State.QUEUED, job=again))


def _paused(job: StoredJob, message: str, more: Mapping[str, object] | None = None) -> Change:
    """The reason stays what it was asked for, and says whether it comes back by itself."""
    reason = PREEMPTED if job.reason == PREEMPTED else "PAUSED"
    return Change(reason, message, State.PAUSED, job={**_quiet(job), **(more or {})})


def _release(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    attempt = job.last_attempt
    if attempt is None or attempt.released:
        return Wait()
    if _has_ended(attempt, sight, settings):
        return Release()
    is_late = sight.now_us > (attempt.end_time_us or 0) + settings.teardown_grace_s * _US
    return Stop() if sight.view is View.ALIVE and is_late else Wait()


def _has_ended(attempt: StoredAttempt, sight: Sight, settings: Settings) -> bool:
    """Enough where no other attempt will follow at once."""
    was_never_asked_for = attempt.submit_time_us is None and sight.view is not View.ALIVE
    return was_never_asked_for or _ray_says_ended(attempt, sight, settings)


def _ray_says_ended(attempt: StoredAttempt, sight: Sight, settings: Settings) -> bool:
    if sight.view is View.UNKNOWN:
        return sight.now_us > _last_sign_us(attempt, sight, settings)
    return sight.view is View.ENDED


def is_gone(attempt: StoredAttempt, sight: Sight, settings: Settings) -> bool:
    """The evidence that an attempt's driver lives no more: its lease is over, and Ray says so too."""
    lease_is_over = sight.now_us > _lease_end_us(attempt, sight, settings)
    return lease_is_over and _ray_says_ended(attempt, sight, settings)


def _lease_end_us(attempt: StoredAttempt, sight: Sight, settings: Settings) -> float:
    """A driver that was not heard yet has a whole lease, from when it was handed to Ray and from when we listened."""
    could_be_heard_us = max(attempt.submit_time_us or 0, sight.listening_since_us)
    return max(attempt.lease_expires_us or 0, could_be_heard_us + settings.lease_s * _US)


def _last_sign_us(attempt: StoredAttempt, sight: Sight, settings: Settings) -> float:
    """Until then a driver unknown to Ray may still be there: a request in flight, or a head that lost its memory."""
    return _lease_end_us(attempt, sight, settings) + settings.unknown_grace_s * _US


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
    """What a driver's terminal record makes of its job."""
    reason = terminal.reason or terminal.outcome.value
    closed = _closing(now_us, reason, terminal.message) | {"terminal": as_json(terminal)}
    if terminal.outcome is Outcome.SUCCEEDED:
        return _succeeded(job, terminal, closed)
    if terminal.outcome is Outcome.PAUSED and job.state not in (State.PAUSING, State.CANCELLING):
        return Change(reason, terminal.message, State.RECOVERING, attempt=closed)  # resumed before it had ended
    if job.state is State.PAUSING and terminal.outcome in (Outcome.PAUSED, Outcome.INFRASTRUCTURE_ERROR):
        return replace(_paused(job, terminal.message or "paused"), attempt=closed)
    if job.state is State.CANCELLING or terminal.outcome is Outcome.CANCELLED:
        return Change("CANCELLED", terminal.message or "cancelled", State.CANCELLED, _quiet(job), closed)
    if terminal.reason == DRIVER_TERMINATED:
        # Ray was told to end it, from outside: no failure that could repeat itself.
        return Change(reason, terminal.message, State.RECOVERING, attempt=closed)
    if terminal.outcome is Outcome.USER_ERROR:
        budget = _schedule(job).retries.user
        return _again_or_failed(job, "user_failures", budget, reason, terminal, closed)
    budget = _schedule(job).retries.infrastructure
    return _again_or_failed(job, "infrastructure_failures", budget, reason, terminal, closed)


def _succeeded(job: StoredJob, terminal: Terminal, closed: Mapping[str, object]) -> Change:
    return Change(
        reason=terminal.reason or "SUCCEEDED",
        message=terminal.message or "every stage is done",
        state=State.SUCCEEDED,
        job=_quiet(job) | _results(terminal),
        attempt=closed,
        publication=publication(job, terminal),
    )


def _again_or_failed(
    job: StoredJob, counter: str, budget: int, reason: str, terminal: Terminal, closed: Mapping[str, object]
) -> Change:
    failures = int(getattr(job, counter)) + 1
    counted: dict[str, object] = {counter: failures}
    if failures > budget:
        results = _quiet(job) | _results(terminal) | counted
        return Change(reason, terminal.message, State.FAILED, results, closed)
    message = f"{terminal.message} (failure {failures} of {budget} allowed)"
    if job.state is State.PAUSING:
        return replace(_paused(job, message, counted), attempt=closed)
    now_us = int(str(closed["end_time_us"]))
    return Change(reason, message, State.RECOVERING, {**counted, "retry_at_us": now_us + _pause_us(failures)}, closed)


def _pause_us(failures: int) -> int:
    """Before the next attempt: what fails at once shall not use up its attempts within seconds."""
    return int(min(_LONGEST_PAUSE_S, 2.0 ** (failures - 1)) * _US)


def _lost(job: StoredJob, sight: Sight) -> Change:
    """The driver is gone and left no record."""
    number = len(job.attempts)
    words = f": {sight.words}" if sight.words else ""
    message = f"the driver of attempt {number} is gone and left no record{words}"
    closed = _closing(sight.now_us, "DRIVER_LOST", message) | {"released": True}
    terminal = Terminal(Outcome.INFRASTRUCTURE_ERROR, "DRIVER_LOST", message)
    budget = _schedule(job).retries.infrastructure
    return _again_or_failed(job, "infrastructure_failures", budget, "DRIVER_LOST", terminal, closed)


def _is_overdue(job: StoredJob, now_us: int) -> bool:
    limit_us = job.max_run_duration_us
    return limit_us is not None and job.start_time_us is not None and now_us > job.start_time_us + limit_us


def refused(job: StoredJob, words: str, now_us: int) -> Change:
    """Ray will not have the attempt: asking again would change nothing."""
    message = f"Ray does not take the job: {words}"
    closed = _closing(now_us, "SUBMIT_REFUSED", message) | {"released": True}
    return Change("SUBMIT_REFUSED", message, State.FAILED, _quiet(job), closed)


def _overdue(job: StoredJob, now_us: int) -> Change:
    limit = timedelta(microseconds=job.max_run_duration_us or 0)
    message = f"ran longer than max_run_duration ({limit}); its last checkpoint is kept"
    return Change("MAX_RUN_DURATION", message, State.FAILED, _quiet(job), _closing(now_us, "MAX_RUN_DURATION", message))


def condition_change(job: StoredJob, sight: Sight, settings: Settings) -> Change | None:
    """The line that says that a job went out of sight, or came back; None when that is known already."""
    reason, message = _why_unseen(job, sight, settings)
    return _note(job, UNREACHABLE, bool(reason), reason or "SEEN_AGAIN", message, sight.now_us)


def blocked(job: StoredJob, reason: str, message: str, now_us: int) -> Change | None:
    """The line that says what of our own keeps a job from going on; None when that is known already."""
    return None if job.is_terminal else _note(job, BLOCKED, True, reason, message, now_us)


def unblocked(job: StoredJob, now_us: int) -> Change | None:
    """The line that says that the job goes on."""
    return None if job.is_terminal else _note(job, BLOCKED, False, "UNBLOCKED", "goes on", now_us)


def _note(job: StoredJob, kind: str, holds: bool, reason: str, message: str, now_us: int) -> Change | None:
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


def _why_unseen(job: StoredJob, sight: Sight, settings: Settings) -> tuple[str, str]:
    if sight.view is View.UNREACHABLE:
        return "RAY_UNREACHABLE", sight.words or "Ray cannot be seen"
    attempt = job.last_attempt
    is_silent = (
        attempt is not None
        and attempt.is_open
        and sight.view is View.ALIVE
        and sight.now_us > _last_sign_us(attempt, sight, settings)
    )
    if is_silent:
        where = settings.advertise or settings.listen
        words = f"it reports to {where}: can Ray's nodes reach that? ATHANOR_ADVERTISE sets another address"
        return "DRIVER_SILENT", f"Ray says the driver runs, but it is not heard; {words}"
    return "", "seen"


def _closing(now_us: int, reason: str, message: str) -> dict[str, object]:
    return {"end_time_us": now_us, "reason": reason, "message": message}


def _quiet(job: StoredJob) -> dict[str, object]:
    """A job that has ended is out of nobody's sight, and nothing blocks it."""
    return {"conditions": [each for each in job.conditions if each["type"] not in (UNREACHABLE, BLOCKED)]}


def _results(terminal: Terminal) -> dict[str, object]:
    return {"report_path": terminal.report_path, "summary": dict(terminal.summary) or None}


def _schedule(job: StoredJob) -> ScheduleSpec:
    return ScheduleSpec.model_validate(job.spec.get("schedule", {}))


def as_json(terminal: Terminal) -> dict[str, Any]:
    """A terminal record as it is stored, and compared when it is told again."""
    document = {**vars(terminal), "outcome": terminal.outcome.value, "summary": dict(terminal.summary)}
    del document["num_parameters"]
    return document
