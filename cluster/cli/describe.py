"""`athanor job describe`: the whole story of one job on one screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.awaited_models import models_of
from cluster.cli.advice import dependencies, next_steps
from cluster.cli.folding import folded, shortened
from cluster.cli.job_table import clock, eta, loss, progress_of, speed, state_of, state_text, why
from cluster.cli.job_view import event_parts, words
from cluster.cli.output import age, as_document, show, span
from trainer.job import model_form

if TYPE_CHECKING:
    from athanor.v1 import cluster_service_pb2, job_pb2, job_service_pb2

_MOST_EVENTS = 30
_BAR_WIDTH = 30


@dataclass(frozen=True)
class Story:
    """All that is told."""

    job: job_pb2.Job
    events: Sequence[job_service_pb2.JobEvent]
    info: cluster_service_pb2.GetServerInfoResponse

    def as_document(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "job": as_document(self.job),
            "events": [as_document(event) for event in self.events],
            "next": next_steps(self.job),
        }


def tell(story: Story) -> None:
    """Print it."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _sections(story):
        table.add_row(name, value)
    show(Group(*_heading(story.job), Text(), table, Text(), *_next(story.job)))


def _heading(job: job_pb2.Job) -> Iterator[RenderableType]:
    yield Text.assemble((job.uid, "bold"), "  ", state_text(job))
    made = f"made {age(job.create_time)} ago" if job.create_time.seconds else "not stored"
    by = f" by {job.creator}" if job.creator else ""
    again = f", repeats {job.retry_of}" if job.retry_of else ""
    about = f"{job.kind} in project {job.project or 'default'}, priority {job.priority}"
    yield Text(f"{about}, {made}{by}{again}", style="bright_black")
    if why(job):
        yield Text(why(job))


def _sections(story: Story) -> Iterator[tuple[str, RenderableType]]:
    job = story.job
    if state_of(job) == "QUEUED":
        yield "Queue", _queue(job.queue)
    if progress_of(job).stage:
        yield "Progress", _progress(job)
    for condition in job.conditions:
        if condition.status:
            held = age(condition.last_transition_time)
            words = f"[{condition.reason}] {condition.message}" + (f" (for {held})" if held else "")
            yield condition.type, Text(words, style="magenta")
    yield from _facts(job)
    if job.attempts:
        yield "Attempts", Group(*(_attempt(attempt) for attempt in job.attempts))
    if job.attempts and story.info.ray_dashboard_url:
        yield "Dashboard", _link(f"{story.info.ray_dashboard_url}/#/jobs/{job.attempts[-1].ray_job_id}")
    if story.events:
        yield "Events", Group(*_events(story.events))


def _facts(job: job_pb2.Job) -> Iterator[tuple[str, RenderableType]]:
    if job.labels:
        yield "Labels", ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))
    if depends_on := dependencies(job):
        yield "Depends on", ", ".join(depends_on)
    if job.start_time.seconds:
        yield "Ran", _ran(job)
    if job.HasField("max_run_duration"):
        yield "Limit", f"{span(job.max_run_duration.seconds)} of running"
    if uses := list(_uses(job)):
        yield "Uses", ", ".join(uses)
    if job.published_model:
        yield "Published", Text(job.published_model, style="green")
    if job.report_path:
        yield "Report", job.report_path


def _uses(job: job_pb2.Job) -> Iterator[str]:
    yield from (f"{asked} = {found}" for asked, found in sorted(job.resolved_models.items()))
    if state_of(job) in ("QUEUED", "PAUSED") and dependencies(job):
        named = {each for each in models_of(as_document(job)["spec"]) if model_form(each) == "registry"}
        awaited = named - set(job.resolved_models)
        yield from (f"{asked} = what a job that it depends on publishes" for asked in sorted(awaited))


def _queue(standing: job_pb2.QueueStanding) -> Text:
    place = f"#{standing.position}" if standing.position else "" if standing.reason else "not looked at yet"
    parts = [place, standing.reason and f"[{standing.reason}]", standing.message]
    return Text("  ".join(part for part in parts if part), style="yellow")


def _progress(job: job_pb2.Job) -> RenderableType:
    progress = progress_of(job)
    lines: list[RenderableType] = [Text(words(job.kind, progress.stage))]
    if progress.total_steps:
        percent = 100 * progress.step / progress.total_steps
        bar = Table.grid(padding=(0, 2, 0, 0))
        counted = f"{progress.step:,} of {progress.total_steps:,} ({percent:.0f} %)"
        bar.add_row(ProgressBar(progress.total_steps, progress.step, width=_BAR_WIDTH), counted)
        lines.append(bar)
    figures = [f"loss {loss(progress)}"] if loss(progress) else []
    figures += [f"{speed(progress)} tokens/s"] if speed(progress) else []
    figures += [f"{progress.tokens:,} tokens"] if progress.tokens else []
    figures += [f"ready in {eta(progress)}"] if eta(progress) and state_of(job) == "RUNNING" else []
    return Group(*lines, *([Text("  ".join(figures))] if figures else []))


def _ran(job: job_pb2.Job) -> str:
    """Neither waiting nor paused, over all attempts."""
    now, started = datetime.now(UTC), job.start_time.ToDatetime(UTC)
    spans = [(max(each.start_time.ToDatetime(UTC), started), each.end_time) for each in job.attempts]
    lasted = [((end.ToDatetime(UTC) if end.seconds else now) - begun).total_seconds() for begun, end in spans]
    words = f"{clock(sum(max(each, 0) for each in lasted))}{'' if job.end_time.seconds else ' so far'}"
    return f"{words}, since {started.astimezone():%Y-%m-%d %H:%M:%S}"


def _attempt(attempt: job_pb2.Attempt) -> Text:
    if not attempt.end_time.seconds:
        return Text.assemble(
            f"{attempt.number}  {attempt.ray_job_id}  ", ("lives", "cyan"), f"  {age(attempt.start_time)}"
        )
    lasted = clock(attempt.end_time.seconds - attempt.start_time.seconds)
    ended = " ".join(part for part in (attempt.reason and f"[{attempt.reason}]", attempt.message) if part)
    style = "green" if attempt.reason == "SUCCEEDED" else ""
    return Text.assemble(f"{attempt.number}  {attempt.ray_job_id}  {lasted}  ", (ended, style))


def _link(url: str) -> Text:
    return Text(url, style=f"link {url}")


def _events(events: Sequence[job_service_pb2.JobEvent]) -> Iterator[RenderableType]:
    told = list(folded(events))
    shown = shortened(told, _MOST_EVENTS)
    if len(shown) < len(told):
        left_out = len(told) - len(shown)
        yield Text(f"... {left_out} more: athanor job events {events[0].job_uid}", style="bright_black")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for each in shown:
        moment, state, reason, _ = event_parts(each.event)
        words = "  ".join(part for part in (reason, each.message) if part)
        grid.add_row(Text(moment, style="bright_black"), state, words)
    yield grid


def _next(job: job_pb2.Job) -> Iterator[Text]:
    for at, step in enumerate(next_steps(job)):
        yield Text.assemble(("Next  " if at == 0 else "      ", "bold"), step)
