"""`athanor serve describe` and `history`: one deployment with its revisions, and every decision about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cluster.cli.output import age, coloured, print_fields, print_line, print_table, short_state
from cluster.cli.percent import percent

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2 as pb
    from rich.text import Text

EVENT_COLUMNS = ("AGE", "REVISION", "REASON", "BY", "MESSAGE")
_REVISION_COLUMNS = ("REVISION", "MODEL", "PHASE", "WEIGHT", "DARK", "AGE", "MESSAGE")
_FIGURE_COLUMNS = ("LIMIT", "SEEN", "ALLOWED", "COMPARED", "TO PROMOTE", "TO ROLL BACK", "VERDICT")
_MOST_SHOWN = 1e6
_MOST_EVENTS = 10


def tell(deployment: pb.Deployment, events: Sequence[pb.DeploymentEvent]) -> None:
    """Print all of it."""
    print_fields(dict(_facts(deployment)))
    print_line("")
    print_table(_REVISION_COLUMNS, [_revision(each) for each in deployment.revisions])
    for each in deployment.revisions:
        if each.figures and _phase(each) in ("STARTING", "CANARY"):
            print_line("")
            print_line(f"The gate of revision {each.number}, {_gate(each.gate, each.teacher)}:")
            print_table(_FIGURE_COLUMNS, [_figure(figure, each.gate) for figure in each.figures])
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
    yield "Engine", _engine(deployment.engine)
    yield "Gate", f"judges canaries {_gate(deployment.gate, '')}" if deployment.HasField("gate") else ""
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
        percent(revision.weight / 10_000),
        percent(revision.mirror_share) if revision.mirror_share else "",
        age(revision.create_time),
        revision.message,
    )


def _engine(engine: pb.EngineOptions) -> str:
    limits = ", ".join(f"{name}={value:g}" for name, value in sorted(engine.limits.items()))
    return f"{engine.name or 'transformers'}{f' with {limits}' if limits else ''}"


def _gate(gate: pb.CanaryGate, teacher: str) -> str:
    """By what canaries are judged."""
    words = [f"beside {teacher or gate.teacher or 'the first teacher of each'}"]
    if gate.task_data:
        words.append(f"on the examples of {gate.task_data}")
    if gate.steps:
        words.append(f"by steps of {', '.join(percent(step / 10_000) for step in gate.steps)}")
    return ", ".join(words)


def _figure(figure: pb.GateFigure, gate: pb.CanaryGate) -> tuple[str, ...]:
    """Evidence as what there is of what is needed: both only ever grow."""
    seen, allowed = _in_words(figure, gate)
    return (
        figure.name,
        seen if figure.observations else "",
        allowed,
        str(figure.observations),
        _part(figure.evidence_within, figure.needed_within) if figure.needed_within else "not waited for",
        _part(figure.evidence_beyond, figure.needed_beyond),
        figure.verdict,
    )


def _in_words(figure: pb.GateFigure, gate: pb.CanaryGate) -> tuple[str, str]:
    """What was seen, and what is allowed."""
    seen, allowed = percent(figure.mean), percent(figure.limit)
    if figure.name == "divergence":
        return f"{figure.mean:+.3g} nats", f"{figure.limit:+g} nats"
    if figure.name == "latency":
        return f"{seen} took over {gate.max_latency_ratio:g} times as long", f"{allowed} of requests"
    if figure.name in ("agreement", "task"):
        what = "agreement" if figure.name == "agreement" else "right answers"
        return f"{percent(-figure.mean)} {what}", f"{percent(-figure.limit)}"
    return f"{seen} failed", allowed


def _part(evidence: float, needed: float) -> str:
    there = f"{evidence:.3g}" if evidence < _MOST_SHOWN else "certain"
    return f"{there} of {needed:g}"
