"""`athanor job`: make jobs and look at them. Following, reading and changing them are modules beside this one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import job_change, job_follow, job_read
from cluster.cli.advice import next_steps
from cluster.cli.completion import complete_job, complete_state
from cluster.cli.connect import AddressOption, connect
from cluster.cli.exit_codes import of_state
from cluster.cli.job_table import COLUMNS, WIDE_COLUMNS, row, state_name, wide_row
from cluster.cli.lists import Columns, Line, WatchOption, at_most, show_list
from cluster.cli.output import Format, FormatOption, age, as_document, as_fields, emit, emit_json, print_fields, say

if TYPE_CHECKING:
    from athanor.v1 import job_pb2
    from rich.text import Text

app = typer.Typer(help="Jobs: submit, look at, follow, change, end them.", no_args_is_help=True)

_MANIFEST = "manifest"
JobArgument = Annotated[
    str,
    typer.Argument(metavar="JOB", help="Uid of the job, or its name for the newest one.", autocompletion=complete_job),
]
FileOption = Annotated[str, typer.Option("-f", "--file", help="Job file (YAML); - is stdin.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the file; repeatable.")
]


@app.command()
def submit(
    file: FileOption,
    assignments: SetOption = None,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Follow the job to its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
    request_id: Annotated[
        str | None, typer.Option(help="Idempotency key: the same one never makes a second job. Random by default.")
    ] = None,
    timeout_s: job_follow.TimeoutOption = None,
    form: FormatOption = Format.NAME,
    address: AddressOption = "",
) -> None:
    """Submit a job. Prints its uid; with --wait ends with the job's exit code."""
    from cluster.job_file import read_job_file

    manifest = read_job_file(file, assignments or ())
    with connect(address) as client:
        job = client.create_job(manifest, request_id=request_id, validate_only=dry_run)
        if dry_run:
            say("the job is fine; nothing was stored")
            emit_job(form if form is not Format.NAME else Format.YAML, job)
            return
        emit_job(form, job)
        if wait:
            raise typer.Exit(job_follow.follow(client, job, timeout_s))
        say(f"follow it with: athanor job watch {job.uid}")


@app.command()
def validate(
    file: FileOption,
    assignments: SetOption = None,
    offline: Annotated[bool, typer.Option("--offline", help="The file alone; ask no control plane.")] = False,
    address: AddressOption = "",
) -> None:
    """Check a job file: its fields, and (unless --offline) whether data and models it names are there."""
    from cluster.job_file import read_job_file

    manifest = read_job_file(file, assignments or ())
    if not offline:
        with connect(address) as client:
            client.create_job(manifest, validate_only=True)
    say("the job file is fine" if offline else "the job is fine; nothing was stored")


@app.command("list")
def list_jobs(
    name: Annotated[str, typer.Option(help="Only jobs of this name.")] = "",
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only this state, e.g. running; repeatable.", autocompletion=complete_state),
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            "--filter", metavar="EXPR", help="""Only those, e.g. 'labels.team = "care" AND priority >= 500'."""
        ),
    ] = "",
    project: Annotated[str, typer.Option(help="Only jobs of this project.")] = "",
    creator: Annotated[str, typer.Option(help="Only jobs that the token of this name made.")] = "",
    mine: Annotated[bool, typer.Option("--mine", help="Only jobs that this command's token made.")] = False,
    order_by: Annotated[str, typer.Option(metavar="FIELD", help="e.g. 'priority desc'; newest first by default.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    watch: WatchOption = False,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """List jobs, newest first."""
    states = [job_follow.state_number(each) for each in state or ()]

    if mine and creator:
        raise typer.BadParameter("say --mine or --creator, not both", param_hint="--mine")

    def load() -> Iterator[Line]:
        found = client.list_jobs(states=states, name=name, filter=narrow, order_by=order_by, limit=limit + 1)
        for job in at_most(limit, found, aloud=not watch):
            yield Line(job.uid, as_document(job), row(job), wide_row(job))

    with connect(address) as client:
        narrow = _narrowed(where, {"project": project, "creator": client.get_caller().name if mine else creator})
        show_list(form, Columns(COLUMNS, WIDE_COLUMNS), load, watch=watch, nothing="no jobs")


def _narrowed(where: str, fields: Mapping[str, str]) -> str:
    """The filter, and these fields besides."""
    terms = [f"{field} = {json.dumps(value)}" for field, value in fields.items() if value]
    return " AND ".join([f"({where})" if terms else where, *terms] if where else terms)


@app.command()
def get(
    job: JobArgument,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with the exit code of the job's state.")] = False,
    form: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="[table|wide|json|yaml|name|manifest]",
            help="Form of the data on stdout; manifest is a job file that can be submitted again.",
        ),
    ] = Format.TABLE.value,
    address: AddressOption = "",
) -> None:
    """Show one job in few lines, or as a document."""
    forms = [*(each.value for each in Format), _MANIFEST]
    if form not in forms:
        raise typer.BadParameter(f"{form} is none of {', '.join(forms)}", param_hint="--output")
    with connect(address) as client:
        found = client.find_job(job)
    if form == _MANIFEST:
        _print_manifest(found)
    else:
        emit_job(Format(form), found)
    if exit_code:
        raise typer.Exit(of_state(state_name(found)))


def _print_manifest(job: job_pb2.Job) -> None:
    import yaml

    from cluster.job_file import manifest_of

    metadata = {"name": job.name, "project": job.project, "labels": dict(job.labels)}
    manifest = manifest_of(job.kind, metadata, as_document(job)["spec"])
    yaml.safe_dump(manifest, sys.stdout, sort_keys=False, allow_unicode=True)


@app.command()
def describe(job: JobArgument, form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """Tell the whole story of one job: where it stands and why, attempts, history, and what to do next."""
    from cluster.cli.describe import Story, tell

    with connect(address) as client:
        found = client.find_job(job)
        story = Story(found, list(client.list_job_events(found.uid)), client.server_info())
    emit(form, story.as_document(), table=lambda: tell(story), names=[found.uid])


@app.command()
def schema() -> None:
    """Print the JSON Schema of the job file."""
    from trainer.spec import job_schema

    emit_json(job_schema())


def emit_job(form: Format, job: job_pb2.Job) -> None:
    """One job on stdout."""
    emit(
        form,
        as_document(job),
        table=lambda: _print_job(job, as_fields(COLUMNS, row(job))),
        wide=lambda: _print_job(job, as_fields(WIDE_COLUMNS, wide_row(job))),
        names=[job.uid],
    )


def _print_job(job: job_pb2.Job, fields: dict[str, str | Text]) -> None:
    fields |= {"Reason": job.reason, "Report": job.report_path}
    fields |= {f"Uses {asked}": resolved for asked, resolved in job.resolved_models.items()}
    for condition in job.conditions:
        holds = f"[{condition.reason}] {condition.message}" if condition.status else "no longer"
        fields[condition.type] = f"{holds} (for {age(condition.last_transition_time) or 'some time'})"
    for attempt in job.attempts:
        ended = f"{attempt.reason} {attempt.message}".strip() or "running"
        fields[f"Attempt {attempt.number}"] = f"{attempt.ray_job_id}  {ended}"
    print_fields(fields | {"Next": "; ".join(next_steps(job))})


job_follow.add_to(app)
job_read.add_to(app)
job_change.add_to(app)
