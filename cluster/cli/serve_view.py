"""`athanor serve describe` and `history`: one deployment with its revisions, and every decision about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cluster.cli.output import age, coloured, print_fields, print_line, print_table, short_state

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2 as pb
    from rich.text import Text

EVENT_COLUMNS = ("AGE", "REVISION", "REASON", "BY", "MESSAGE")
_REVISION_COLUMNS = ("REVISION", "MODEL", "PHASE", "WEIGHT", "DARK", "AGE", "MESSAGE")
_FIGURE_COLUMNS = ("LIMIT", "SEEN", "ALLOWED", "COMPARED", "WITHIN", "BEYOND")
_MOST_EVENTS = 10


def tell(deployment: pb.Deployment, events: Sequence[pb.DeploymentEvent]) -> None:
    """Print all of it."""
    print_fields(dict(_facts(deployment)))
    print_line("")
    print_table(_REVISION_COLUMNS, [_revision(each) for each in deployment.revisions])
    for each in deployment.revisions:
        if each.figures and _phase(each) in ("STARTING", "CANARY"):
            print_line("")
            print_table(_FIGURE_COLUMNS, [_figure(figure) for figure in each.figures])
    print_line("")
    print_table(EVENT_COLUMNS, [event_row(each) for each in events[:_MOST_EVENTS]])


def event_row(event: pb.DeploymentEvent) -> tuple[str, ...]:
    number = str(event.revision) if event.revision else ""
    return (age(event.create_time), number, event.reason, event.actor, event.message)


def replicas_of(deployment: pb.Deployment) -> str:
    """As many as there shall be: `2`, or `0:4` by load."""
    if deployment.HasField("autoscaling"):
        return f"{deployment.autoscaling.min_replicas}:{deployment.autoscaling.max_replicas}"
    return str(deployment.num_replicas)


def state_of(deployment: pb.Deployment) -> str:
    from athanor.v1 import deployment_service_pb2

    return short_state(deployment_service_pb2.DeploymentState.Name(deployment.state))


def _facts(deployment: pb.Deployment) -> Iterator[tuple[str, str | Text]]:
    yield "Name", deployment.name
    yield "State", coloured(state_of(deployment))
    yield "Message", deployment.message
    follows = " (follows the alias)" if deployment.follow_alias else ""
    yield "Model", f"{deployment.model}{follows}"
    yield "Answers", deployment.resolved_model
    yield "Endpoint", deployment.endpoint
    yield "Replicas", replicas_of(deployment)
    yield "Each", f"{deployment.cpus_per_replica:g} CPUs, {deployment.gpus_per_replica:g} GPUs"
    yield "Project", deployment.project
    yield "Creator", deployment.creator
    yield "Age", age(deployment.create_time)


def _phase(revision: pb.Revision) -> str:
    from athanor.v1 import deployment_service_pb2

    return deployment_service_pb2.RevisionPhase.Name(revision.phase).removeprefix("REVISION_PHASE_")


def _revision(revision: pb.Revision) -> tuple[str | Text, ...]:
    return (
        str(revision.number),
        revision.model,
        coloured(_phase(revision)),
        f"{revision.weight / 100:g} %",
        f"{100 * revision.mirror_share:g} %" if revision.mirror_share else "",
        age(revision.create_time),
        revision.message,
    )


def _figure(figure: pb.GateFigure) -> tuple[str, ...]:
    return (
        figure.name,
        f"{figure.mean:.4g}",
        f"{figure.limit:g}",
        str(figure.observations),
        f"{figure.evidence_within:.3g}",
        f"{figure.evidence_beyond:.3g}",
    )
