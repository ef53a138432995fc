"""`athanor serve`: deploy, list, status, describe, history, delete. The rest: serve_update.py, serve_canary.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import serve_canary
from cluster.cli.connect import AddressOption, connect
from cluster.cli.lists import Columns, Line, WatchOption, show_list
from cluster.cli.output import Format, FormatOption, as_document, emit, print_table, say
from cluster.cli.serve_options import (
    WAIT_S,
    AutoscaleOption,
    BudgetOption,
    DelayOption,
    EngineLimitOption,
    EngineOption,
    FollowOption,
    GateFileOption,
    GateOption,
    GateWish,
    MirrorOption,
    ModelOption,
    NameArgument,
    OngoingOption,
    ScalingWish,
    StepsOption,
    TaskDataOption,
    TeacherOption,
    TimeoutOption,
    WaitOption,
    autoscaling_of,
    engine_of,
    gate_of,
)
from cluster.cli.serve_outcome import COLUMNS, end, row
from cluster.cli.serve_update import update
from cluster.cli.serve_view import EVENT_COLUMNS, event_row, tell

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2 as pb

app = typer.Typer(help="Endpoints: which model answers where.", no_args_is_help=True)


@app.command()
def deploy(
    name: NameArgument,
    model: ModelOption,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Copies of the model that answer.")] = 1,
    autoscale: AutoscaleOption = "",
    target_ongoing: OngoingOption = 0.0,
    scale_delay: DelayOption = "",
    cpus: Annotated[float, typer.Option(min=0, help="CPUs that Ray reserves for each replica; 0 means 1.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that Ray reserves for each replica.")] = 0.0,
    engine: EngineOption = "",
    engine_limit: EngineLimitOption = None,
    follow: FollowOption = False,
    gate: GateOption = False,
    gate_file: GateFileOption = None,
    teacher: TeacherOption = "",
    task_data: TaskDataOption = None,
    mirror: MirrorOption = None,
    error_budget: BudgetOption = None,
    steps: StepsOption = "",
    project: Annotated[
        str, typer.Option(help="Who may change it; without it ATHANOR_PROJECT, else the context's, else default.")
    ] = "",
    wait: WaitOption = True,
    timeout_s: TimeoutOption = WAIT_S,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Serve a model through an OpenAI-compatible endpoint."""
    from athanor.v1 import deployment_service_pb2

    from cluster.access import Access, find_access

    judged = gate_of(GateWish(gate, gate_file, teacher, task_data, mirror, error_budget, steps))
    if judged is not None and not follow:
        words = "it judges what a followed alias moves to; add --follow, or name it at `athanor serve canary`"
        raise typer.BadParameter(words, param_hint="--gate")
    wanted = deployment_service_pb2.Deployment(
        name=name,
        model=model,
        num_replicas=replicas,
        autoscaling=autoscaling_of(ScalingWish(autoscale, target_ongoing, scale_delay)),
        cpus_per_replica=cpus,
        gpus_per_replica=gpus,
        engine=engine_of(engine, engine_limit or ()),
        follow_alias=follow,
        gate=judged,
        project=find_access(Access(address=address, project=project)).project,
    )
    with connect(address) as client:
        client.create_deployment(wanted)
        deployment = client.wait_deployment(name, timeout_s=timeout_s) if wait else client.get_deployment(name)
    _say_next(deployment)
    end(form, deployment, is_over=wait)


@app.command("list")
def list_deployments(
    watch: WatchOption = False, form: FormatOption = Format.TABLE, address: AddressOption = ""
) -> None:
    """List deployments, by name."""

    def load() -> Iterator[Line]:
        return (Line(each.name, as_document(each), row(each)) for each in client.list_deployments())

    with connect(address) as client:
        show_list(form, Columns(COLUMNS), load, watch=watch)


@app.command()
def status(name: NameArgument, form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """Show one deployment; exit code 101 while it does not answer yet."""
    with connect(address) as client:
        deployment = client.get_deployment(name)
    end(form, deployment, is_over=True)


@app.command()
def describe(name: NameArgument, address: AddressOption = "") -> None:
    """Show one deployment with its revisions, what its canary has shown, and the last decisions."""
    with connect(address) as client:
        deployment = client.get_deployment(name)
        events = list(client.list_deployment_events(name))
    tell(deployment, events)


app.command()(update)


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
def delete(
    name: NameArgument,
    wait: WaitOption = True,
    timeout_s: TimeoutOption = WAIT_S,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Take a deployment down. The model stays."""
    with connect(address) as client:
        client.delete_deployment(name)
        say(f"{name} is being taken down")
        if wait:
            client.wait_deleted(name, timeout_s=timeout_s)
    state = "GONE" if wait else "DELETING"
    emit(form, {"name": name, "state": state}, table=lambda: None, names=[name])


serve_canary.add_to(app)


def _say_next(deployment: pb.Deployment) -> None:
    """Where it answers, and where to look when it does not."""
    from athanor.v1 import deployment_service_pb2

    if deployment.state == deployment_service_pb2.DEPLOYMENT_STATE_READY:
        page, name = deployment.endpoint.removesuffix(f"{deployment.name}/v1"), deployment.name
        say(f"{name} answers; talk to it at {page}, or give {deployment.endpoint} to an OpenAI client with a token")
    else:
        say(f"next: `athanor serve describe {deployment.name}` says how far it is")
