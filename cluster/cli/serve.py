"""`athanor serve`: deploy, list, status, describe, update, history, delete. Canaries are in serve_canary.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import serve_canary
from cluster.cli.completion import complete_model
from cluster.cli.connect import AddressOption, connect
from cluster.cli.exit_codes import ExitCode
from cluster.cli.lists import Columns, Line, WatchOption, show_list
from cluster.cli.output import (
    Format,
    FormatOption,
    age,
    as_document,
    as_fields,
    coloured,
    emit,
    print_fields,
    print_table,
    say,
)
from cluster.cli.serve_canary import NameArgument
from cluster.cli.serve_options import (
    AutoscaleOption,
    BudgetOption,
    FollowOption,
    GateOption,
    MirrorOption,
    OngoingOption,
    TeacherOption,
    autoscaling_of,
    gate_of,
)
from cluster.cli.serve_view import EVENT_COLUMNS, event_row, replicas_of, state_of, tell

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2
    from rich.text import Text

    from cluster.client import AthanorClient

app = typer.Typer(help="Endpoints: which model answers where.", no_args_is_help=True)

_COLUMNS = ("NAME", "MODEL", "STATE", "REPLICAS", "ENDPOINT", "AGE", "MESSAGE")
ModelOption = Annotated[
    str,
    typer.Option(
        "-m", "--model", help="name@alias, name@version, or name for the newest.", autocompletion=complete_model
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait/--detach", help="Until it answers.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS")]


@app.command()
def deploy(
    name: NameArgument,
    model: ModelOption,
    replicas: Annotated[int, typer.Option(min=1, max=64)] = 1,
    autoscale: AutoscaleOption = "",
    target_ongoing: OngoingOption = 0.0,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs that Ray reserves for each replica; 0 means 1.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that Ray reserves for each replica.")] = 0.0,
    follow: FollowOption = False,
    gate: GateOption = False,
    teacher: TeacherOption = "",
    mirror: MirrorOption = None,
    error_budget: BudgetOption = None,
    project: Annotated[str, typer.Option(help="Who may change it.")] = "",
    wait: WaitOption = True,
    timeout_s: TimeoutOption = 180.0,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Serve a model through an OpenAI-compatible endpoint."""
    from athanor.v1 import deployment_service_pb2

    if gate and not follow:
        words = "it judges what a followed alias moves to; add --follow, or name it at `athanor serve canary`"
        raise typer.BadParameter(words, param_hint="--gate")

    wanted = deployment_service_pb2.Deployment(
        name=name,
        model=model,
        num_replicas=replicas,
        autoscaling=autoscaling_of(autoscale, target_ongoing),
        cpus_per_replica=cpus,
        gpus_per_replica=gpus,
        follow_alias=follow,
        gate=gate_of(gate, teacher, mirror, error_budget),
        project=project,
    )
    with connect(address) as client:
        client.create_deployment(wanted)
        deployment = client.wait_deployment(name, timeout_s=timeout_s) if wait else client.get_deployment(name)
    _emit(form, deployment)
    raise typer.Exit(_code(deployment) if wait else ExitCode.OK)


@app.command("list")
def list_deployments(
    watch: WatchOption = False, form: FormatOption = Format.TABLE, address: AddressOption = ""
) -> None:
    """List deployments, by name."""

    def load() -> Iterator[Line]:
        return (Line(each.name, as_document(each), _row(each)) for each in client.list_deployments())

    with connect(address) as client:
        show_list(form, Columns(_COLUMNS), load, watch=watch)


@app.command()
def status(name: NameArgument, form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """Show one deployment; exit code 101 while it does not answer yet."""
    with connect(address) as client:
        deployment = client.get_deployment(name)
    _emit(form, deployment)
    raise typer.Exit(_code(deployment))


@app.command()
def describe(name: NameArgument, address: AddressOption = "") -> None:
    """Show one deployment with its revisions, what its canary has shown, and the last decisions."""
    with connect(address) as client:
        deployment = client.get_deployment(name)
        events = list(client.list_deployment_events(name))
    tell(deployment, events)


@app.command()
def update(
    name: NameArgument,
    model: ModelOption = "",
    replicas: Annotated[int | None, typer.Option(min=1, max=64, help="So many; ends scaling by load.")] = None,
    autoscale: AutoscaleOption = "",
    target_ongoing: OngoingOption = 0.0,
    cpus: Annotated[float | None, typer.Option(min=0)] = None,
    gpus: Annotated[float | None, typer.Option(min=0)] = None,
    follow: Annotated[bool | None, typer.Option("--follow/--no-follow", help="Move with the alias.")] = None,
    timeout_s: TimeoutOption = 600.0,
    wait: WaitOption = True,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Change a deployment. Another model or other resources come up beside what answers, and replace it when ready."""
    from athanor.v1 import deployment_service_pb2

    given = {"model": model or None, "cpus_per_replica": cpus, "gpus_per_replica": gpus, "follow_alias": follow}
    given |= {"num_replicas": replicas}
    fields = {field: value for field, value in given.items() if value is not None}
    scaling = autoscaling_of(autoscale, target_ongoing)
    changed = deployment_service_pb2.Deployment(name=name, autoscaling=scaling, **fields)  # type: ignore[arg-type]
    paths = [*fields, *(["autoscaling"] if scaling or replicas else [])]
    if not paths:
        raise typer.BadParameter("nothing to change; name --model, --replicas, --autoscale, --cpus, --gpus or --follow")
    with connect(address) as client:
        before = _newest(client.get_deployment(name))
        deployment = client.update_deployment(changed, paths)
        if wait:
            deployment = _settled(client, deployment, before, timeout_s)
    _emit(form, deployment)
    raise typer.Exit(_code(deployment) if wait else ExitCode.OK)


@app.command()
def history(name: NameArgument, form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """Show every decision about a deployment, newest first, with who made it and on what."""
    with connect(address) as client:
        events = list(client.list_deployment_events(name, limit=1000))
    emit(
        form,
        [as_document(each) for each in events],
        table=lambda: print_table(EVENT_COLUMNS, [event_row(each) for each in events]),
        names=[each.reason for each in events],
    )


@app.command()
def delete(name: NameArgument, address: AddressOption = "") -> None:
    """Take a deployment down. The model stays."""
    with connect(address) as client:
        client.delete_deployment(name)
    say(f"{name} is being taken down")


serve_canary.add_to(app)


def _settled(
    client: AthanorClient, asked: deployment_service_pb2.Deployment, before: int, timeout_s: float
) -> deployment_service_pb2.Deployment:
    """Once the revision that the change asks for answers, or was taken back; `before` was the newest without it."""
    from athanor.v1 import deployment_service_pb2

    number = _newest(asked)
    if number == before:  # changed where it is
        return client.wait_deployment(asked.name, timeout_s=timeout_s)
    deployment = client.wait_revision(asked.name, number, timeout_s=timeout_s)
    phases = {each.number: each.phase for each in deployment.revisions}
    if phases.get(number) != deployment_service_pb2.REVISION_PHASE_LIVE:
        words = next((each.message for each in deployment.revisions if each.number == number), "another one came")
        say(f"revision {number} was taken back: {words}")
        _emit(Format.TABLE, deployment)
        raise typer.Exit(ExitCode.ERROR)
    return client.wait_deployment(asked.name, timeout_s=timeout_s)


def _newest(deployment: deployment_service_pb2.Deployment) -> int:
    return max((each.number for each in deployment.revisions), default=0)


def _emit(form: Format, deployment: deployment_service_pb2.Deployment) -> None:
    fields = as_fields(_COLUMNS, _row(deployment))
    emit(form, as_document(deployment), table=lambda: print_fields(fields), names=[deployment.name])


def _code(deployment: deployment_service_pb2.Deployment) -> ExitCode:
    codes = {"READY": ExitCode.OK, "FAILED": ExitCode.ERROR}
    return codes.get(state_of(deployment), ExitCode.NOT_FINISHED)


def _row(deployment: deployment_service_pb2.Deployment) -> tuple[str | Text, ...]:
    return (
        deployment.name,
        deployment.resolved_model or deployment.model,
        coloured(state_of(deployment)),
        replicas_of(deployment),
        deployment.endpoint,
        age(deployment.create_time),
        deployment.message,
    )
