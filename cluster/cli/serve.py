"""`athanor serve`: deploy, list, status, delete."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.completion import complete_deployment, complete_model
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
    say,
    short_state,
)

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2
    from rich.text import Text

app = typer.Typer(help="Endpoints: which model answers where.", no_args_is_help=True)

_COLUMNS = ("NAME", "MODEL", "STATE", "REPLICAS", "ENDPOINT", "AGE", "MESSAGE")
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The deployment; also the path of its endpoint.", autocompletion=complete_deployment
    ),
]


@app.command()
def deploy(
    name: NameArgument,
    model: Annotated[
        str,
        typer.Option(
            "-m", "--model", help="name@alias, name@version, or name for the newest.", autocompletion=complete_model
        ),
    ],
    replicas: Annotated[int, typer.Option(min=1, max=64)] = 1,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs that Ray reserves for each replica; 0 means 1.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that Ray reserves for each replica.")] = 0.0,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Until it answers.")] = True,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS")] = 180.0,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Serve a model through an OpenAI-compatible endpoint."""
    from athanor.v1 import deployment_service_pb2

    wanted = deployment_service_pb2.Deployment(
        name=name, model=model, num_replicas=replicas, cpus_per_replica=cpus, gpus_per_replica=gpus
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
def delete(name: NameArgument, address: AddressOption = "") -> None:
    """Take a deployment down. The model stays."""
    with connect(address) as client:
        client.delete_deployment(name)
    say(f"{name} is being taken down")


def _emit(form: Format, deployment: deployment_service_pb2.Deployment) -> None:
    fields = as_fields(_COLUMNS, _row(deployment))
    emit(form, as_document(deployment), table=lambda: print_fields(fields), names=[deployment.name])


def _code(deployment: deployment_service_pb2.Deployment) -> ExitCode:
    codes = {"READY": ExitCode.OK, "FAILED": ExitCode.ERROR}
    return codes.get(_state(deployment), ExitCode.NOT_FINISHED)


def _state(deployment: deployment_service_pb2.Deployment) -> str:
    from athanor.v1 import deployment_service_pb2

    return short_state(deployment_service_pb2.DeploymentState.Name(deployment.state))


def _row(deployment: deployment_service_pb2.Deployment) -> tuple[str | Text, ...]:
    return (
        deployment.name,
        deployment.resolved_model or deployment.model,
        coloured(_state(deployment)),
        str(deployment.num_replicas),
        deployment.endpoint,
        age(deployment.create_time),
        deployment.message,
    )
