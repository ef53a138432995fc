"""Shows a running job on stderr: a bar for each stage on a terminal, plain lines elsewhere.

It is fed with the changes that WatchJobs delivers and never asks for anything itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING, Protocol

from cluster.cli.folding import Repeats, Told
from cluster.cli.job_table import eta, place, state_of
from cluster.cli.output import coloured, say, short_state, talk_console

if TYPE_CHECKING:
    from athanor.v1 import job_pb2, job_service_pb2
    from rich.progress import Progress, TaskID
    from rich.text import Text

STAGES = {
    "prepare": "reading the data",
    "label": "the teacher answers the questions",
    "train": "the student learns",
    "baseline": "the baseline learns from the labels",
    "evaluate": "asking the questions nobody trained on",
    "publish": "publishing the model",
}
_WAITING = {"QUEUED": "waits for its turn", "ADMITTED": "is handed to Ray", "STARTING": "its processes start"}
_LINE_EVERY_PERCENT = 20


class JobView(Protocol):
    """What a view is told."""

    def change(self, change: job_service_pb2.WatchJobsResponse) -> None: ...


@contextmanager
def job_view(kind: str) -> Iterator[JobView]:
    """A view that fits stderr, while the block lasts."""
    console = talk_console()
    if not console.is_terminal:
        yield LineView(kind)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("  {task.description:<42}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", style="bright_black"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        yield BarView(kind, progress)


class BarView:
    """One bar for each stage that the job has reached."""

    def __init__(self, kind: str, progress: Progress) -> None:
        self._kind = kind
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._waiting: TaskID | None = None
        self._said: set[str] = set()
        self._repeats = Repeats()

    def change(self, change: job_service_pb2.WatchJobsResponse) -> None:
        for line in _news(change, self._said, self._repeats):
            self._progress.console.print("  ", line, sep="")
        self._show_waiting(change.job)
        if change.job.progress.stage:
            self._show(change.job.progress)

    def _show_waiting(self, job: job_pb2.Job) -> None:
        """A bar without an end for as long as the job waits for its turn, or for its workers."""
        waits = waits_for(job)
        if self._waiting is not None and not waits:
            self._progress.remove_task(self._waiting)
            self._waiting = None
        elif waits and self._waiting is None:
            self._waiting = self._progress.add_task("", total=None, figures="", left="")
        if self._waiting is not None:
            self._progress.update(self._waiting, description=waits, figures=place(job))

    def _show(self, progress: job_pb2.Progress) -> None:
        if progress.stage not in self._tasks:
            for task in self._tasks.values():
                self._complete(task)
            self._tasks[progress.stage] = self._progress.add_task(
                words(self._kind, progress.stage), figures="", left=""
            )
        self._progress.update(
            self._tasks[progress.stage],
            completed=progress.step,
            total=progress.total_steps or None,
            figures=figures(progress),
            left=f"{eta(progress)} left" if eta(progress) else "",
        )

    def _complete(self, task: TaskID) -> None:
        shown = next(each for each in self._progress.tasks if each.id == task)
        total = shown.total or shown.completed
        self._progress.update(task, completed=total, total=total, left="")
        self._progress.stop_task(task)


class LineView:
    """A line for each event, each new stage, and now and then for its progress."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._said: set[str] = set()
        self._repeats = Repeats()
        self._stage = ""
        self._next_percent = 0
        self._waiting = ""

    def change(self, change: job_service_pb2.WatchJobsResponse) -> None:
        for line in _news(change, self._said, self._repeats):
            say(f"  {line}")
        self._say_waiting(change.job)
        progress = change.job.progress
        if progress.stage and progress.stage != self._stage:
            self._stage, self._next_percent = progress.stage, _LINE_EVERY_PERCENT
            say(f"  {words(self._kind, progress.stage)}")
        percent = 100 * progress.step // progress.total_steps if progress.total_steps else 0
        if progress.stage and percent >= self._next_percent:
            self._next_percent = percent - percent % _LINE_EVERY_PERCENT + _LINE_EVERY_PERCENT
            left = f"{eta(progress)} left" if eta(progress) else ""
            parts = (f"{progress.step}/{progress.total_steps}", figures(progress), left)
            say(f"    {'  '.join(part for part in parts if part)}")

    def _say_waiting(self, job: job_pb2.Job) -> None:
        """Why it waits, when that changes; not each place that it moves up."""
        reason = job.queue.reason if state_of(job) == "QUEUED" else ""
        if reason and reason != self._waiting:
            say(f"  waits, {place(job)}: {job.queue.message}")
        self._waiting = reason


def waits_for(job: job_pb2.Job) -> str:
    """In words; empty while it works, and when it rests."""
    has_begun = state_of(job) != "RUNNING" or job.progress.stage
    return _WAITING.get(state_of(job), "") if has_begun else "its workers start"


def words(kind: str, stage: str) -> str:
    """A stage in words of people."""
    if kind == "FineTune" and stage == "train":
        return "the model learns from the labels"
    return STAGES.get(stage, stage)


def figures(progress: job_pb2.Progress) -> str:
    """Loss and speed, where there are any."""
    parts = [f"loss {progress.loss:.3f}"] if progress.HasField("loss") else []
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    return "  ".join(parts)


def _news(change: job_service_pb2.WatchJobsResponse, said: set[str], repeats: Repeats) -> list[Text]:
    """Lines for what happened: the event, and conditions that hold and were not said yet."""
    from rich.text import Text

    lines = [event_text(told) for told in repeats.heard(change.event)] if change.HasField("event") else []
    for condition in change.job.conditions:
        key = f"{condition.type} {condition.status} {condition.last_transition_time.seconds}"
        if condition.status and key not in said:
            said.add(key)
            lines.append(Text(f"{condition.type}: {condition.message}", style="magenta"))
    return lines


def event_text(told: Told) -> Text:
    """`12:30:01  RUNNING  CHECKPOINT_WRITTEN  step 200`, in local time."""
    from rich.text import Text

    moment, state, reason, _ = event_parts(told.event)
    parts = [Text(moment, style="bright_black"), state, *(Text(part) for part in (reason, told.message) if part)]
    return Text("  ").join(parts)


def event_parts(event: job_service_pb2.JobEvent) -> tuple[str, Text, str, str]:
    """Moment, state in its colour, reason (where it says more than the state), message."""
    from athanor.v1 import job_pb2

    moment = event.create_time.ToDatetime(UTC).astimezone().strftime("%H:%M:%S")
    state = coloured(short_state(job_pb2.JobState.Name(event.state)))
    return moment, state, event.reason if event.reason != state.plain else "", event.message
