"""`athanor job cancel`, `pause`, `resume`, `retry`, `update`, `delete`: what people do to a job."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.completion import complete_job
from cluster.cli.connect import AddressOption, connect
from cluster.cli.exit_codes import ExitCode
from cluster.cli.job_follow import TimeoutOption, follow
from cluster.cli.job_table import state_of
from cluster.cli.output import say

if TYPE_CHECKING:
    from athanor.v1 import job_pb2

    from cluster.client import AthanorClient

JobArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help="Uid of the job, or its name for the newest one.", autocompletion=complete_job),
]
JobsArgument = Annotated[
    list[str],
    typer.Argument(metavar="JOB", help="Uids, or names for the newest ones.", autocompletion=complete_job),
]
MessageOption = Annotated[str, typer.Option("-m", "--message", help="Why; kept with the job.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Until it is there.")]


def add_to(app: typer.Typer) -> None:
    """The commands of this module."""
    for command in (cancel, pause, resume, retry, update, delete):
        app.command()(command)


def cancel(
    jobs: JobsArgument,
    message: MessageOption = "",
    grace: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long the driver may take to end by itself; 0: none.", min=0),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until they have ended.")] = False,
    timeout_s: TimeoutOption = None,
    address: AddressOption = "",
) -> None:
    """End jobs. Harmless when they have ended already."""
    with connect(address) as client:
        asked = [client.cancel_job(client.find_job(job).uid, message, grace_period=grace) for job in jobs]
        for job in asked:
            _say_state(client.wait_job(job.uid, timeout_s=timeout_s) if wait else job)


def pause(
    jobs: JobsArgument,
    message: MessageOption = "",
    wait: WaitOption = False,
    timeout_s: TimeoutOption = None,
    address: AddressOption = "",
) -> None:
    """Let jobs write a checkpoint and give their resources back. They go on with `resume`."""
    with connect(address) as client:
        asked = [client.pause_job(client.find_job(job).uid, message) for job in jobs]
        for job in asked:
            _say_state(_until(client, job, {"PAUSED"}, timeout_s) if wait else job)


def resume(
    jobs: JobsArgument, wait: WaitOption = False, timeout_s: TimeoutOption = None, address: AddressOption = ""
) -> None:
    """Put paused jobs back into the queue; they go on from their checkpoints."""
    with connect(address) as client:
        asked = [client.resume_job(client.find_job(job).uid) for job in jobs]
        for job in asked:
            _say_state(_until(client, job, {"RUNNING"}, timeout_s) if wait else job)


def retry(
    job: JobArgument,
    from_checkpoint: Annotated[
        bool, typer.Option("--from-checkpoint", help="From its last good checkpoint, not from step 0.")
    ] = False,
    request_id: Annotated[str | None, typer.Option(help="Idempotency key, as of submit.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Follow the new job to its end.")] = False,
    timeout_s: TimeoutOption = None,
    address: AddressOption = "",
) -> None:
    """Make a new job like one that FAILED or was CANCELLED. Prints its uid."""
    with connect(address) as client:
        made = client.retry_job(client.find_job(job).uid, from_checkpoint=from_checkpoint, request_id=request_id)
        sys.stdout.write(f"{made.uid}\n")
        sys.stdout.flush()
        if wait:
            raise typer.Exit(follow(client, made, timeout_s))
    say(f"follow it with: athanor job watch {made.uid}")


def update(
    job: JobArgument,
    priority: Annotated[int | None, typer.Option(min=0, max=1000, help="Higher goes first.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Set a label; KEY= takes it away.")
    ] = None,
    max_run_duration: Annotated[
        str | None, typer.Option(metavar="DURATION", help="e.g. 90m or 10h; 0 takes the limit away.")
    ] = None,
    address: AddressOption = "",
) -> None:
    """Change labels, priority or the time limit of a job that has not ended."""
    if priority is None and not labels and max_run_duration is None:
        raise typer.BadParameter("say what to change: --priority, --label or --max-run-duration")
    limit = None if max_run_duration is None else _duration(max_run_duration)
    with connect(address) as client:
        found = client.find_job(job)
        merged = _merged(dict(found.labels), labels) if labels else None
        # Labels are merged here, so they hold only for the version of the job that they were read from.
        changed = client.update_job(
            found.uid,
            labels=merged,
            priority=priority,
            max_run_duration=limit,
            etag=found.etag if merged is not None else "",
        )
    say(f"{changed.uid} is changed")


def delete(
    jobs: JobsArgument,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    address: AddressOption = "",
) -> None:
    """Forget jobs that have ended, with their logs and checkpoints. What they published stays."""
    with connect(address) as client:
        found = [client.find_job(job) for job in jobs]
        if not yes and not _is_sure(found):
            say("nothing was deleted; --yes does not ask")
            raise typer.Exit(ExitCode.ERROR)
        for job in found:
            client.delete_job(job.uid)
            say(f"{job.uid} is deleted")


def _is_sure(jobs: list[job_pb2.Job]) -> bool:
    """Asked on a terminal; elsewhere nobody can answer, so: no."""
    names = ", ".join(job.uid for job in jobs)
    return sys.stdin.isatty() and typer.confirm(f"delete {names} with logs and checkpoints?", err=True)


def _say_state(job: job_pb2.Job) -> None:
    say(f"{job.uid} is {state_of(job)}")


def _until(client: AthanorClient, job: job_pb2.Job, wanted: set[str], timeout_s: float | None) -> job_pb2.Job:
    """Follow it until it is in a wanted state, or has ended."""
    if state_of(job) in wanted:
        return job
    for change in client.follow_job(job.uid, timeout_s=timeout_s):
        job = change.job
        if state_of(job) in wanted:
            break
    return job


def _merged(labels: dict[str, str], assignments: list[str]) -> dict[str, str]:
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{assignment!r} is no KEY=VALUE", param_hint="--label")
        labels[key] = value
    return {key: value for key, value in labels.items() if value}


def _duration(text: str) -> timedelta:
    """As in a job file: 90s, 15m, 10h, 2d; and 0."""
    from pydantic import TypeAdapter, ValidationError

    from trainer.fields import Duration

    try:
        return timedelta(0) if text == "0" else TypeAdapter(Duration).validate_python(text)
    except ValidationError as error:
        words = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise typer.BadParameter(words, param_hint="--max-run-duration") from error
