"""Where a waiting job stands and why it waits, in words for people. Made by admission.py, kept by the store."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from cluster.capacity import Resources
from cluster.lifecycle import State
from cluster.scheduler import Held, Quota
from cluster.store.records import StoredJob

WORDS: Mapping[str, str] = {
    "RESOURCES": "it goes next, as soon as there is room for all of it at once",
    "BEHIND_OTHERS": "others wait before it; with a schedule.max_run_duration it may be let in between",
    "QUOTA": "its project holds as much as it may",
    "OVER_QUOTA": "it asks for more than its project may ever hold",
    "RUNNING_JOBS_LIMIT": "as many jobs run as this installation allows",
    "TOO_LARGE": "the cluster does not have that much, even if nothing else ran on it",
    "HELD": "it is held until schedule.hold_until",
    "DEPENDENCY": "a job that it depends on has not ended yet",
    "RELEASING": "its last attempt has not let go of everything yet",
    "RAY_UNREACHABLE": "Ray cannot be seen, so nobody knows what is free",
}


class Standing(NamedTuple):
    """A place in the queue."""

    position: int
    """1 goes next; 0: none yet."""
    reason: str
    """A key of `WORDS`."""
    message: str = ""


def standing_of(job: StoredJob, decided_us: int, known: Mapping[str, Standing], now_us: int) -> Standing | None:
    """Of a job, by the scheduler's last decision and by what the job itself waits for; None: it does not wait."""
    if job.state is not State.QUEUED:
        return None
    if job.hold_until_us is not None and job.hold_until_us > now_us:
        return Standing(0, "HELD", f"it is held until {moment(job.hold_until_us)}")
    if job.num_unmet > 0:
        return Standing(0, "DEPENDENCY", f"it waits for {job.num_unmet} of the jobs that it depends on")
    if job.uid in known:
        return known[job.uid]
    if decided_us >= (job.queue_since_us or job.create_time_us):
        return Standing(0, "BEHIND_OTHERS", "so many wait before it that it has no number yet")
    return Standing(0, "", "the scheduler has not looked at it yet")


def quota_words(quota: Quota, held: Held, asked: Resources) -> str:
    """Which limit of its project a job meets, with the figures; empty when it meets none."""
    wanted = Held(asked.cpus, asked.gpus, 1)
    names = {"cpus": "CPUs", "gpus": "GPUs", "jobs": "running jobs"}
    for field, name in names.items():
        limit, has, asks = (getattr(each, field) for each in (quota, held, wanted))
        if field != "jobs" and asks > limit:
            return (
                f"it asks for {asks:g} {name[:-1] if asks == 1 else name}, and its project may hold {limit:g} at once"
            )
        if has + asks > limit:
            more = "" if field == "jobs" else f"; it asks for {asks:g}"
            return f"its project holds {has:g} of the {limit:g} {name} that it may{more}"
    return ""


def newest_standing(job: StoredJob) -> Standing | None:
    """Of a job that was stored just now, when no decision can know it."""
    return standing_of(job, 0, {}, job.create_time_us)


def moment(time_us: int) -> str:
    """To the second, in UTC."""
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"
