"""`athanor job`: submit, list, get, logs, watch, cancel, schema."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.connect import AddressOption, connect
from cluster.cli.exit_codes import ExitCode, of_state
from cluster.cli.output import (
    Format,
    FormatOption,
    age,
    as_document,
    as_fields,
    emit,
    emit_json,
    print_fields,
    print_table,
    say,
    short_state,
)

if TYPE_CHECKING:
    from athanor.v1 import job_pb2

    from cluster.client import AthanorClient

app = typer.Typer(help="Jobs: submit, look at, follow, end them.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Uid of the job, or its name for the newest one.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="Stop waiting after so long (exit code 124).")
]
_COLUMNS = ("UID", "KIND", "STATE", "STAGE", "PROGRESS", "MODEL", "AGE", "MESSAGE")


@app.command()
def submit(
    file: Annotated[str, typer.Option("-f", "--file", help="Job file (YAML); - is stdin.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the file; repeatable.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Follow the job to its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
    request_id: Annotated[
        str | None, typer.Option(help="Idempotency key: the same one never makes a second job. Random by default.")
    ] = None,
    timeout_s: TimeoutOption = None,
    form: FormatOption = Format.NAME,
    address: AddressOption = "",
) -> None:
    """Submit a job. Prints its uid; with --wait ends with the job's exit code."""
    from cluster.cli.job_file import read_job_file

    manifest = read_job_file(file, assignments or ())
    with connect(address) as client:
        job = client.create_job(manifest, request_id=request_id, validate_only=dry_run)
        if dry_run:
            say("the job is fine; nothing was stored")
            emit_job(form if form is not Format.NAME else Format.YAML, job)
            return
        emit_job(form, job)
        if wait:
            raise typer.Exit(_follow(client, job, timeout_s))
        say(f"follow it with: athanor job watch {job.uid}")


@app.command("list")
def list_jobs(
    name: Annotated[str, typer.Option(help="Only jobs of this name.")] = "",
    state: Annotated[list[str] | None, typer.Option(help="Only this state, e.g. running; repeatable.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 100,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """List jobs, newest first."""
    states = [_state_number(each) for each in state or ()]
    with connect(address) as client:
        jobs = list(client.list_jobs(states=states, name=name, limit=limit))
    emit(
        form,
        [as_document(job) for job in jobs],
        table=lambda: print_table(_COLUMNS, [_row(job) for job in jobs]),
        names=[job.uid for job in jobs],
    )


@app.command()
def get(
    job: JobArgument,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with the exit code of the job's state.")] = False,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Show one job with its attempts and conditions."""
    with connect(address) as client:
        found = client.find_job(job)
    emit_job(form, found)
    if exit_code:
        raise typer.Exit(of_state(_state_name(found)))


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the attempt ends.")] = False,
    attempt: Annotated[int, typer.Option(min=0, help="Attempt number; 0 is the latest.")] = 0,
    address: AddressOption = "",
) -> None:
    """Print what the job's driver and workers printed. With -f ends with the job's exit code."""
    with connect(address) as client:
        uid = client.find_job(job).uid
        for data in client.stream_logs(uid, attempt=attempt, follow=follow):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        if follow:
            raise typer.Exit(of_state(_state_name(client.get_job(uid))))


@app.command()
def watch(
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="Uid or name; all jobs without it.")] = "",
    timeout_s: TimeoutOption = None,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Follow a job to its end, with bars, and end with its exit code; -o json writes each change as a line of JSON."""
    with connect(address) as client:
        if not job:
            raise typer.Exit(_watch_all(client, timeout_s, form))
        found = client.find_job(job)
        follow = _follow_lines if form is Format.JSON else _follow
        raise typer.Exit(follow(client, found, timeout_s))


@app.command()
def cancel(
    job: JobArgument,
    message: Annotated[str, typer.Option("-m", "--message", help="Why; kept with the job.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
    timeout_s: TimeoutOption = None,
    address: AddressOption = "",
) -> None:
    """End a job. Harmless when it has ended already."""
    with connect(address) as client:
        cancelled = client.cancel_job(client.find_job(job).uid, message)
        if wait:
            cancelled = client.wait_job(cancelled.uid, timeout_s=timeout_s)
    say(f"{cancelled.uid} is {short_state(_state_name(cancelled))}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the job file."""
    from trainer.spec import job_schema

    emit_json(job_schema())


def emit_job(form: Format, job: job_pb2.Job) -> None:
    """One job on stdout."""
    emit(form, as_document(job), table=lambda: _print_job(job), names=[job.uid])


def _follow(client: AthanorClient, job: job_pb2.Job, timeout_s: float | None) -> ExitCode:
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
    say(_verdict(job))
    return of_state(_state_name(job))


def _verdict(job: job_pb2.Job) -> str:
    words = [f"{job.uid} {short_state(_state_name(job))}"]
    words += [_why(job)] if _why(job) else []
    words += [f"published {job.published_model}"] if job.published_model else []
    words += [f"report {job.report_path}"] if job.report_path else []
    return "; ".join(words) + (f"\nnext: {_next(job)}" if _next(job) else "")


def _why(job: job_pb2.Job) -> str:
    """`[REASON] message`, what there is of it."""
    return " ".join(part for part in (f"[{job.reason}]" if job.reason else "", job.message) if part)


def _next(job: job_pb2.Job) -> str:
    """What to do about a job that failed."""
    if short_state(_state_name(job)) != "FAILED":
        return ""
    return f"athanor job logs {job.uid}; docs/operations.md says what each reason means; mend it and submit again"


def _follow_lines(client: AthanorClient, job: job_pb2.Job, timeout_s: float | None) -> ExitCode:
    """Each change of a job as a line of JSON until it ends; its exit code."""
    for change in client.follow_job(job.uid, timeout_s=timeout_s):
        emit_json(as_document(change), one_line=True)
        job = change.job
    return of_state(_state_name(job))


def _watch_all(client: AthanorClient, timeout_s: float | None, form: Format) -> ExitCode:
    """What happens to all jobs, a line each; ends by Ctrl-C or `timeout_s` alone."""
    from cluster.cli.job_view import event_line

    until = None if timeout_s is None else time.monotonic() + timeout_s
    for change in client.watch_jobs(until=until):
        if form is Format.JSON:
            emit_json(as_document(change), one_line=True)
        elif change.HasField("event"):
            sys.stdout.write(f"{change.job.uid}  {event_line(change.event)}\n")
            sys.stdout.flush()
    return ExitCode.TIMEOUT


def _state_number(word: str) -> job_pb2.JobState.ValueType:
    from athanor.v1 import job_pb2

    name = f"JOB_STATE_{word.upper()}"
    known_names = list(job_pb2.JobState.DESCRIPTOR.values_by_name)
    if name not in known_names:
        known = ", ".join(short_state(each).lower() for each in known_names[1:])
        raise typer.BadParameter(f"{word} is no state; there are {known}", param_hint="--state")
    return job_pb2.JobState.Value(name)


def _state_name(job: job_pb2.Job) -> str:
    from athanor.v1 import job_pb2

    return job_pb2.JobState.Name(job.state)


def _row(job: job_pb2.Job) -> tuple[str, ...]:
    progress = job.progress
    steps = f"{progress.step}/{progress.total_steps}" if progress.total_steps else ""
    state = short_state(_state_name(job))
    blind = [condition.type for condition in job.conditions if condition.status]
    state = f"{state} ({', '.join(blind)})" if blind else state
    return (
        job.uid, job.kind, state, progress.stage, steps, job.published_model, age(job.create_time), job.message
    )  # fmt: skip


def _print_job(job: job_pb2.Job) -> None:
    fields = as_fields(_COLUMNS, _row(job))
    fields |= {"Reason": job.reason, "Report": job.report_path}
    fields |= {f"Uses {asked}": resolved for asked, resolved in job.resolved_models.items()}
    for condition in job.conditions:
        holds = f"[{condition.reason}] {condition.message}" if condition.status else "no longer"
        fields[condition.type] = f"{holds} (for {age(condition.last_transition_time) or 'some time'})"
    for attempt in job.attempts:
        ended = f"{attempt.reason} {attempt.message}".strip() or "running"
        fields[f"Attempt {attempt.number}"] = f"{attempt.ray_job_id}  {ended}"
    print_fields(fields | {"Next": _next(job)})
