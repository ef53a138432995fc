"""How commands of `athanor serve` end: one deployment as it is then, an exit code, and what may be done next."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

from cluster.cli.exit_codes import ExitCode
from cluster.cli.output import Format, age, as_document, as_fields, coloured, emit, print_fields, say
from cluster.cli.serve_view import replicas_of, state_of

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2 as pb
    from rich.text import Text

    from cluster.client import AthanorClient

COLUMNS = ("NAME", "MODEL", "STATE", "REPLICAS", "ENDPOINT", "AGE", "MESSAGE")


def emit_deployment(form: Format, deployment: pb.Deployment) -> None:
    """In the form that was asked for."""
    fields = as_fields(COLUMNS, row(deployment))
    emit(form, as_document(deployment), table=lambda: print_fields(fields), names=[deployment.name])


def row(deployment: pb.Deployment) -> tuple[str | Text, ...]:
    return (
        deployment.name,
        deployment.resolved_model or deployment.model,
        coloured(state_of(deployment)),
        replicas_of(deployment),
        deployment.endpoint,
        age(deployment.create_time),
        deployment.message,
    )


def code_of(deployment: pb.Deployment) -> ExitCode:
    codes = {"READY": ExitCode.OK, "FAILED": ExitCode.ERROR}
    return codes.get(state_of(deployment), ExitCode.NOT_FINISHED)


def end(form: Format, deployment: pb.Deployment, *, is_over: bool) -> NoReturn:
    """With the deployment, and the code for what became of it; nothing became of it yet if the command did not wait."""
    emit_deployment(form, deployment)
    raise typer.Exit(code_of(deployment) if is_over else ExitCode.OK)


def say_done(deployment: pb.Deployment, words: str, *, is_over: bool) -> None:
    """What was done, once it is, with what may come next."""
    if is_over and code_of(deployment) is ExitCode.OK:
        say(words)
    else:
        say(f"next: `athanor serve describe {deployment.name}` says how far it is")


def newest(deployment: pb.Deployment) -> int:
    return max((each.number for each in deployment.revisions), default=0)


def settled(client: AthanorClient, asked: pb.Deployment, number: int, form: Format, timeout_s: float) -> pb.Deployment:
    """Once this revision of it is up; exit code 1 where it was taken back."""
    from athanor.v1 import deployment_service_pb2

    deployment = client.wait_revision(asked.name, number, timeout_s=timeout_s)
    phases = {each.number: each.phase for each in deployment.revisions}
    if phases.get(number) not in (
        deployment_service_pb2.REVISION_PHASE_LIVE,
        deployment_service_pb2.REVISION_PHASE_CANARY,
    ):
        words = next((each.message for each in deployment.revisions if each.number == number), "another one came")
        say(f"revision {number} was taken back: {words}")
        emit_deployment(form, deployment)
        raise typer.Exit(ExitCode.ERROR)
    return client.wait_deployment(asked.name, timeout_s=timeout_s)
