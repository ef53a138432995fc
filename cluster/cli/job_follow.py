"""`athanor job watch` and `wait`: follow jobs as they change, and end with their exit code."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.advice import next_steps
from cluster.cli.completion import complete_job
from cluster.cli.connect import AddressOption, connect
from cluster.cli.exit_codes import ExitCode, of_state
from cluster.cli.job_table import state_name, state_of, why
from cluster.cli.output import Format, FormatOption, as_document, emit_json, say, short_state

if TYPE_CHECKING:
    from athanor.v1 import job_pb2

    from cluster.client import AthanorClient

TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="Stop waiting after so long (exit code 124).")
]


def add_to(app: typer.Typer) -> None:
    """The commands of this module."""
    app.command()(watch)
    app.command()(wait)


def watch(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="Uid or name; all jobs without it.", autocompletion=complete_job)
    ] = "",
    project: Annotated[str, typer.Option(help="Of all jobs: only those of this project.")] = "",
    timeout_s: TimeoutOption = None,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Follow a job to its end, with bars, and end with its exit code; -o json writes each change as a line of JSON."""
    with connect(address) as client:
        if not job:
            raise typer.Exit(_watch_all(client, project, timeout_s, form))
        found = client.find_job(job)
        shown = _follow_lines if form is Format.JSON else follow
        raise typer.Exit(shown(client, found, timeout_s))


def wait(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB", help="Uids or names.", autocompletion=complete_job)],
    timeout_s: TimeoutOption = None,
    address: AddressOption = "",
) -> None:
    """Wait without a word until all these jobs have ended; exit code of the first that did not succeed."""
    until = None if timeout_s is None else time.monotonic() + timeout_s
    with connect(address) as client:
        uids = [client.find_job(job).uid for job in jobs]
        ended = [client.wait_job(uid, timeout_s=_left(until)) for uid in uids]
    for each in ended:
        say(verdict(each))
    codes = [of_state(state_name(each)) for each in ended]
    raise typer.Exit(next((code for code in codes if code), ExitCode.OK))


def follow(client: AthanorClient, job: job_pb2.Job, timeout_s: float | None) -> ExitCode:
    """Show the job until it ends; its exit code."""
    from cluster.cli.job_view import job_view

    try:
        with job_view(job.kind) as view:
            for change in client.follow_job(job.uid, timeout_s=timeout_s):
                view.change(change)
                job = change.job
    except KeyboardInterrupt:
        say(f"\n{job.uid} goes on; watch it again with: athanor job watch {job.uid}")
        return ExitCode.INTERRUPTED
    say(verdict(job))
    return of_state(state_name(job))


def verdict(job: job_pb2.Job) -> str:
    """How a job ended, and what to do now."""
    words = [f"{job.uid} {state_of(job)}"]
    words += [why(job)] if why(job) else []
    words += [f"published {job.published_model}"] if job.published_model else []
    words += [f"report {job.report_path}"] if job.report_path else []
    return "\n".join(["; ".join(words), *(f"next: {step}" for step in next_steps(job))])


def state_number(word: str) -> job_pb2.JobState.ValueType:
    """The state that somebody wrote; BadParameter names those that there are."""
    from athanor.v1 import job_pb2

    name = f"JOB_STATE_{word.upper()}"
    known_names = list(job_pb2.JobState.DESCRIPTOR.values_by_name)
    if name not in known_names:
        known = ", ".join(short_state(each).lower() for each in known_names[1:])
        raise typer.BadParameter(f"{word} is no state; there are {known}", param_hint="--state")
    return job_pb2.JobState.Value(name)


def _left(until: float | None) -> float | None:
    return None if until is None else max(until - time.monotonic(), 0.001)


def _follow_lines(client: AthanorClient, job: job_pb2.Job, timeout_s: float | None) -> ExitCode:
    """Each change of a job as a line of JSON until it ends; its exit code."""
    for change in client.follow_job(job.uid, timeout_s=timeout_s):
        emit_json(as_document(change), one_line=True)
        job = change.job
    return of_state(state_name(job))


def _watch_all(client: AthanorClient, project: str, timeout_s: float | None, form: Format) -> ExitCode:
    """What happens to all jobs, a line each; ends by Ctrl-C or `timeout_s` alone."""
    from cluster.cli.folding import Repeats
    from cluster.cli.job_view import event_text
    from cluster.cli.output import data_console

    until = None if timeout_s is None else time.monotonic() + timeout_s
    console, repeats = data_console(), defaultdict[str, Repeats](Repeats)
    for change in client.watch_jobs(project=project, until=until):
        if form is Format.JSON:
            emit_json(as_document(change), one_line=True)
            continue
        told = repeats[change.job.uid].heard(change.event) if change.HasField("event") else ()
        for line in ["deleted"] if change.deleted else [event_text(each) for each in told]:
            console.print(f"{change.job.uid}  ", end="")
            console.print(line, soft_wrap=True)
        sys.stdout.flush()
    return ExitCode.TIMEOUT
