"""What people may ask of a job that is there: pure functions from a wish to a `Change`, or None where it is so already.

The reconciler does what follows. Errors are the caller's: PreconditionFailed, InvalidInput.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cluster.errors import InvalidInput, PreconditionFailed, Violation
from cluster.lifecycle import PREEMPTED, State
from cluster.store.records import Change, StoredJob

Wish = Callable[[StoredJob, int], Change | None]
"""(job, now in microseconds) -> the step."""
_HIGHEST_PRIORITY = 1000


def cancel(job: StoredJob, now_us: int, words: str, grace_us: int | None) -> Change | None:
    """Asked again with a grace, it is that, unless the one that was asked for before ends earlier."""
    if job.is_terminal:
        return None
    if job.state is State.CANCELLING:
        return _hurry(job, now_us, words, grace_us)
    asked = {"cancel_time_us": now_us, "cancel_grace_us": grace_us}
    return Change("CANCEL_ASKED", words, State.CANCELLING, job=asked)


def _hurry(job: StoredJob, now_us: int, words: str, grace_us: int | None) -> Change | None:
    if grace_us is None or job.cancel_time_us is None:
        return None
    whole_us = now_us - job.cancel_time_us + grace_us
    if job.cancel_grace_us is not None and whole_us >= job.cancel_grace_us:
        return None
    return Change("CANCEL_HURRIED", words, job={"cancel_grace_us": whole_us})


def pause(job: StoredJob, now_us: int, words: str) -> Change | None:
    """A job that only makes room stays away now."""
    _check_goes_on(job)
    if job.state in (State.PAUSING, State.PAUSED):
        return Change("PAUSE_ASKED", words, job={"reason": "PAUSE_ASKED"}) if job.reason == PREEMPTED else None
    if job.state is State.QUEUED:
        return Change("PAUSED", words, State.PAUSED)
    return Change("PAUSE_ASKED", words, State.PAUSING, job={"cancel_time_us": now_us})


def resume(job: StoredJob, now_us: int) -> Change | None:
    _check_goes_on(job)
    if job.state is State.PAUSING:
        raise PreconditionFailed("JOB_PAUSING", f"job {job.uid} is on its way to PAUSED; resume it when it is there")
    if job.state is State.QUEUED and (job.hold_until_us or 0) > now_us:
        return Change("HOLD_ENDED", "is held no longer, and waits for its turn", job={"hold_until_us": None})
    if job.state is not State.PAUSED:
        return None
    values = {"cancel_time_us": None, "queue_since_us": now_us}
    return Change("RESUMED", "waits for its turn again", State.QUEUED, job=values)


def preempt(job: StoredJob, now_us: int, for_uid: str) -> Change | None:
    """The scheduler's own wish."""
    if job.state is not State.RUNNING:
        return None
    words = f"makes room for {for_uid}; a checkpoint is written, and it comes back by itself"
    return Change(PREEMPTED, words, State.PAUSING, job={"cancel_time_us": now_us})


def update(job: StoredJob, changes: Mapping[str, object]) -> Change | None:
    """`changes` of labels, priority and max_run_duration_us, checked by `check_priority` and where labels are."""
    _check_goes_on(job)
    values = {name: value for name, value in changes.items() if getattr(job, name) != value}
    if not values:
        return None
    words = ", ".join(f"{name.removesuffix('_us')} changed" for name in sorted(values))
    return Change("UPDATED", words, job=values)


def check_priority(priority: int) -> int:
    if not 0 <= priority <= _HIGHEST_PRIORITY:
        violation = Violation("job.priority", f"{priority} is not between 0 and {_HIGHEST_PRIORITY}")
        raise InvalidInput("INVALID_UPDATE", violation.message, [violation])
    return priority


def check_deletable(job: StoredJob) -> None:
    """Nothing of it may live any more, anywhere."""
    if not job.is_terminal:
        message = f"job {job.uid} is {job.state.value}; cancel it first (athanor job cancel {job.uid})"
        raise PreconditionFailed("JOB_NOT_ENDED", message)
    if any(not attempt.released for attempt in job.attempts):
        message = f"job {job.uid} has ended, but its processes are not known to be gone yet; try again in a minute"
        raise PreconditionFailed("JOB_NOT_RELEASED", message)


def check_retryable(job: StoredJob) -> None:
    if job.state not in (State.FAILED, State.CANCELLED):
        mend = "only FAILED and CANCELLED ones are repeated; submit its file again"
        raise PreconditionFailed("JOB_NOT_FAILED", f"job {job.uid} is {job.state.value}, and {mend}")


def _check_goes_on(job: StoredJob) -> None:
    if job.is_terminal:
        is_well = job.state is State.SUCCEEDED
        mend = "submit its file again" if is_well else f"`athanor job retry {job.uid}` makes a new one"
        raise PreconditionFailed("JOB_ENDED", f"job {job.uid} has ended as {job.state.value}; {mend}")
    if job.state is State.CANCELLING:
        raise PreconditionFailed("JOB_CANCELLING", f"job {job.uid} is being cancelled")
