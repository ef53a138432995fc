"""A job as a line of a table, and the small words about it that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.cli.output import age, coloured, short_state

if TYPE_CHECKING:
    from athanor.v1 import job_pb2
    from rich.text import Text

COLUMNS = ("UID", "KIND", "STATE", "STAGE", "PROGRESS", "MODEL", "AGE", "MESSAGE")
WIDE_COLUMNS = (
    *("UID", "PROJECT", "PRIORITY", "KIND", "STATE", "QUEUE", "STAGE", "PROGRESS", "LOSS", "TOKENS/S", "ETA"),
    *("ATTEMPTS", "MODEL", "CREATOR", "LABELS", "AGE", "MESSAGE"),
)


def row(job: job_pb2.Job) -> tuple[str | Text, ...]:
    """As in COLUMNS."""
    return (
        job.uid,
        job.kind,
        state_text(job),
        progress_of(job).stage,
        steps(progress_of(job)),
        job.published_model,
        age(job.create_time),
        words(job),
    )


def wide_row(job: job_pb2.Job) -> tuple[str | Text, ...]:
    """As in WIDE_COLUMNS."""
    progress = progress_of(job)
    return (
        *(job.uid, job.project, str(job.priority), job.kind, state_text(job), place(job), progress.stage),
        *(steps(progress), loss(progress), speed(progress), eta(progress), str(len(job.attempts) or "")),
        *(job.published_model, job.creator, _labels(job), age(job.create_time), words(job)),
    )


def state_name(job: job_pb2.Job) -> str:
    """JOB_STATE_RUNNING."""
    from athanor.v1 import job_pb2

    return job_pb2.JobState.Name(job.state)


def state_of(job: job_pb2.Job) -> str:
    """RUNNING."""
    return short_state(state_name(job))


def state_text(job: job_pb2.Job) -> Text:
    """The state in its colour, with conditions that hold: RUNNING (Unreachable)."""
    state = state_of(job)
    holding = [condition.type for condition in job.conditions if condition.status]
    return coloured(state, f"{state} ({', '.join(holding)})" if holding else state)


def words(job: job_pb2.Job) -> str:
    """Its message; of a job that waits, why."""
    return job.message or (job.queue.message if state_of(job) == "QUEUED" else "")


def place(job: job_pb2.Job) -> str:
    """`#3 RESOURCES` of a job that waits."""
    if state_of(job) != "QUEUED" or not job.queue.position:
        return ""
    return f"#{job.queue.position} {job.queue.reason}".strip()


def progress_of(job: job_pb2.Job) -> job_pb2.Progress:
    """What of it is worth showing: nobody waits for a job that has ended, and one that succeeded is at no stage."""
    from athanor.v1 import job_pb2

    if state_of(job) == "SUCCEEDED":
        return job_pb2.Progress()
    if not job.end_time.seconds:
        return job.progress
    shown = job_pb2.Progress()
    shown.CopyFrom(job.progress)
    shown.ClearField("tokens_per_second")
    shown.ClearField("eta")
    return shown


def steps(progress: job_pb2.Progress) -> str:
    return f"{progress.step}/{progress.total_steps}" if progress.total_steps else ""


def loss(progress: job_pb2.Progress) -> str:
    return f"{progress.loss:.4g}" if progress.HasField("loss") else ""


def speed(progress: job_pb2.Progress) -> str:
    return f"{progress.tokens_per_second:,.0f}" if progress.tokens_per_second else ""


def eta(progress: job_pb2.Progress) -> str:
    """1:02:03 or 4:05, as people read clocks."""
    if not progress.eta.seconds:
        return ""
    return clock(progress.eta.seconds)


def clock(seconds: float) -> str:
    """Seconds as 4:05, or 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def why(job: job_pb2.Job) -> str:
    """`[REASON] message`, what there is of it."""
    return " ".join(part for part in (f"[{job.reason}]" if job.reason else "", job.message) if part)


def _labels(job: job_pb2.Job) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(job.labels.items()))
