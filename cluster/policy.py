"""What to do next about one job: pure functions from what is stored and what is seen to a decision.

The reconciler acts on the decisions; the changes themselves are made in changes.py. The rule they keep (I1): not seeing
Ray decides nothing. An attempt is given up only when its lease is over and Ray, seen, says that its process ended or
that it knows none; only then comes the next. Stored times that lie ahead are another clock's, and are not trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from cluster import changes
from cluster.changes import UNREACHABLE
from cluster.lifecycle import PREEMPTED, State
from cluster.settings import Settings
from cluster.store.records import Change, StoredAttempt, StoredJob, Terminal

_US = 1_000_000
_CLOCKS_DIFFER_US = 60 * _US
"""By less than that the clocks of two control planes may."""


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
    if job.is_terminal or job.state is State.QUEUED:
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
    if attempt is None or not attempt.is_open:
        if _is_overdue(job, sight.now_us) and sight.view is not View.UNREACHABLE:
            return Step(replace(changes.overdue(job, sight.now_us), attempt={}))
        if attempt is not None and not attempt.released:
            return _release(job, sight, settings)
        return Wait() if _is_too_early(job, sight.now_us) else Step(changes.open_attempt(job))
    was_seen = sight.view in (View.ALIVE, View.ENDED) or sight.terminal or attempt.lease_expires_us
    if was_seen:
        return Step(changes.started(job, sight.now_us))
    return Submit() if sight.view is View.UNKNOWN else Wait()


def _is_too_early(job: StoredJob, now_us: int) -> bool:
    """After a failure the next attempt waits a while."""
    return 0 < (job.retry_at_us or 0) - now_us <= changes.LONGEST_PAUSE_S * _US


def _attend(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    attempt = job.last_attempt
    if attempt is None or not attempt.is_open:
        return Wait()
    if sight.terminal is not None:
        return Step(changes.conclude(job, sight.terminal, sight.now_us))
    if _is_overdue(job, sight.now_us):
        return Stop(then=changes.overdue(job, sight.now_us))
    if is_gone(attempt, sight, settings):
        return Step(changes.lost(job, sight.words, sight.now_us))
    return Wait()


def _cancel(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    attempt = job.last_attempt
    if attempt is None or not attempt.is_open:
        return Step(changes.cancelled(job))
    if sight.terminal is not None:
        return Step(changes.conclude(job, sight.terminal, sight.now_us))
    if _has_ended(attempt, sight, settings):
        ended = changes.closing(sight.now_us, "CANCELLED", "ended by request") | {"released": True}
        return Step(replace(changes.cancelled(job), attempt=ended))
    grace_us = settings.cancel_grace_s * _US if job.cancel_grace_us is None else job.cancel_grace_us
    return _stop_after(job.cancel_time_us, grace_us, sight)


def _pause(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    """Its driver writes a checkpoint and ends; one that dies or hangs over it costs the steps since the last one.

    Another attempt may follow soon, so a driver without a record needs as much evidence as one that is lost.
    """
    attempt = job.last_attempt
    if attempt is None or not attempt.is_open:
        return Step(changes.paused(job, "paused"))
    if sight.terminal is not None:
        return Step(changes.conclude(job, sight.terminal, sight.now_us))
    if _was_never_asked_for(attempt, sight) or is_gone(attempt, sight, settings):
        words = "paused; its driver ended without a word, so it goes on from its last checkpoint"
        ended = changes.closing(sight.now_us, "PAUSED", words) | {"released": True}
        return Step(replace(changes.paused(job, words), attempt=ended))
    return _stop_after(job.cancel_time_us, settings.pause_grace_s * _US, sight)


def _rest(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    """A paused job lets go of what it held; one that only made room then waits for its turn again."""
    attempt = job.last_attempt
    if attempt is not None and not attempt.released:
        return _release(job, sight, settings)
    return Step(changes.requeued(job, sight.now_us)) if job.reason == PREEMPTED else Wait()


def _release(job: StoredJob, sight: Sight, settings: Settings) -> Decision:
    attempt = job.last_attempt
    if attempt is None or attempt.released:
        return Wait()
    if _has_ended(attempt, sight, settings):
        return Release()
    return _stop_after(attempt.end_time_us, settings.teardown_grace_s * _US, sight)


def _stop_after(since_us: int | None, grace_us: float, sight: Sight) -> Decision:
    """Ray ends what had its time to end by itself."""
    is_late = sight.now_us > _passed(since_us, sight) + grace_us
    return Stop() if sight.view is View.ALIVE and is_late else Wait()


def _was_never_asked_for(attempt: StoredAttempt, sight: Sight) -> bool:
    """Nobody has told Ray of it."""
    return attempt.submit_time_us is None and sight.view is not View.ALIVE


def _has_ended(attempt: StoredAttempt, sight: Sight, settings: Settings) -> bool:
    """Enough where no other attempt will follow, or where its driver said itself that it ends."""
    return _was_never_asked_for(attempt, sight) or _ray_says_ended(attempt, sight, settings)


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
    lease_us = settings.lease_s * _US
    last_heard_us = (attempt.lease_expires_us or 0) - lease_us
    could_be_heard_us = max(_passed(attempt.submit_time_us, sight), sight.listening_since_us)
    return max(_passed(last_heard_us, sight), could_be_heard_us) + lease_us


def _passed(time_us: float | None, sight: Sight) -> float:
    """A stored time. One that lies a little ahead is now; one that lies far ahead was taken by a clock that was wrong,
    and counts from when this one began to listen."""
    known_us = time_us or 0
    if known_us > sight.now_us + _CLOCKS_DIFFER_US:
        return sight.listening_since_us
    return min(known_us, sight.now_us)


def _last_sign_us(attempt: StoredAttempt, sight: Sight, settings: Settings) -> float:
    """Until then a driver unknown to Ray may still be there: a request in flight, or a head that lost its memory."""
    return _lease_end_us(attempt, sight, settings) + settings.unknown_grace_s * _US


def _is_overdue(job: StoredJob, now_us: int) -> bool:
    """By the time in RUNNING alone: neither waiting nor pauses count."""
    return job.max_run_duration_us is not None and job.ran_until(now_us) > job.max_run_duration_us


def condition_change(job: StoredJob, sight: Sight, settings: Settings) -> Change | None:
    """The line that says that a job went out of sight, or came back; None when that is known already."""
    reason, message = _why_unseen(job, sight, settings)
    return changes.note(job, UNREACHABLE, bool(reason), reason or "SEEN_AGAIN", message, sight.now_us)


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
