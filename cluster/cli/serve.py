"""`athanor serve`: deploy, list, status, describe, update, history, delete. Canaries are in serve_canary.py."""

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
    StepsOption,
    TaskDataOption,
    TeacherOption,
    TimeoutOption,
    WaitOption,
    autoscaling_of,
    engine_of,
    gate_of,
)
from cluster.cli.serve_outcome import COLUMNS, end, newest, row, settled
from cluster.cli.serve_view import EVENT_COLUMNS, event_row, tell

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2 as pb

    from cluster.client import AthanorClient

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
        autoscaling=autoscaling_of(autoscale, target_ongoing, scale_delay),
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


@app.command()
def update(
    name: NameArgument,
    model: ModelOption = "",
    replicas: Annotated[int | None, typer.Option(min=1, max=64, help="So many; ends scaling by load.")] = None,
    autoscale: AutoscaleOption = "",
    target_ongoing: OngoingOption = 0.0,
    scale_delay: DelayOption = "",
    cpus: Annotated[float | None, typer.Option(min=0, help="CPUs that Ray reserves for each replica.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs that Ray reserves for each replica.")] = None,
    engine: EngineOption = "",
    engine_limit: EngineLimitOption = None,
    follow: Annotated[bool | None, typer.Option("--follow/--no-follow", help="Move with the alias.")] = None,
    gate: Annotated[
        bool | None, typer.Option("--gate/--no-gate", help="Judge the canaries of a followed alias, or no more.")
    ] = None,
    gate_file: GateFileOption = None,
    teacher: TeacherOption = "",
    task_data: TaskDataOption = None,
    mirror: MirrorOption = None,
    error_budget: BudgetOption = None,
    steps: StepsOption = "",
    wait: WaitOption = True,
    timeout_s: TimeoutOption = WAIT_S,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Change a deployment. Another model, engine or resources come up beside what answers, and replace it when ready.

    What is said of a gate or an engine is changed in the one that the deployment has.
    """
    from athanor.v1 import deployment_service_pb2

    wish = GateWish(gate is True, gate_file, teacher, task_data, mirror, error_budget, steps)
    given = {"model": model or None, "cpus_per_replica": cpus, "gpus_per_replica": gpus, "follow_alias": follow}
    given |= {"num_replicas": replicas}
    fields = {field: value for field, value in given.items() if value is not None}
    scaling = autoscaling_of(autoscale, target_ongoing, scale_delay)
    changed = deployment_service_pb2.Deployment(name=name, autoscaling=scaling, **fields)  # type: ignore[arg-type]
    paths = [*fields, *(["autoscaling"] if scaling or replicas else [])]
    with connect(address) as client:
        known = client.get_deployment(name)
        paths += _more_changes(changed, known, wish, gate, engine_of(engine, engine_limit or (), _engine(known)))
        if not paths:
            raise typer.BadParameter(
                "nothing to change; name what shall, e.g. --model, --replicas, --engine-limit or --gate"
            )
        deployment = client.update_deployment(changed, paths)
        if wait:
            deployment = _until_changed(client, deployment, newest(known), form, timeout_s)
    end(form, deployment, is_over=wait)


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


def _engine(deployment: pb.Deployment) -> pb.EngineOptions | None:
    return deployment.engine if deployment.HasField("engine") else None


def _more_changes(
    changed: pb.Deployment, known: pb.Deployment, wish: GateWish, gate: bool | None, engine: pb.EngineOptions | None
) -> list[str]:
    """Puts engine and gate into what is changed; their paths."""
    if gate is False:
        for option in ("--gate-file",) if wish.file else (*wish.options,):
            raise typer.BadParameter("there is no gate to change with --no-gate", param_hint=option)
    paths = ["gate"] if gate is not None else []
    if wish.wanted or wish.file or wish.options:
        judged = gate_of(wish, known.gate if known.HasField("gate") else None)
        paths = ["gate"]
        if judged is not None:
            changed.gate.CopyFrom(judged)
    if engine is not None:
        changed.engine.CopyFrom(engine)
        paths.append("engine")
    return paths


def _until_changed(
    client: AthanorClient, asked: pb.Deployment, before: int, form: Format, timeout_s: float
) -> pb.Deployment:
    """`before` was the newest revision without the change, which may ask for another one or not."""
    if newest(asked) == before:
        return client.wait_deployment(asked.name, timeout_s=timeout_s)
    return settled(client, asked, newest(asked), form, timeout_s)


def _say_next(deployment: pb.Deployment) -> None:
    """Where it answers, and where to look when it does not."""
    from athanor.v1 import deployment_service_pb2

    if deployment.state == deployment_service_pb2.DEPLOYMENT_STATE_READY:
        page, name = deployment.endpoint.removesuffix(f"{deployment.name}/v1"), deployment.name
        say(f"{name} answers; talk to it at {page}, or give {deployment.endpoint} to an OpenAI client with a token")
    else:
        say(f"next: `athanor serve describe {deployment.name}` says how far it is")
