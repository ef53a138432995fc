"""Between stored deployments and the messages of `athanor.v1`, in both directions, with every bound on what comes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Literal
from urllib.parse import urlsplit

from athanor.v1 import deployment_service_pb2 as messages
from google.protobuf import duration_pb2

from cluster.canary import Figure, Kind, Observation, figures
from cluster.errors import InvalidInput, Violation, in_words
from cluster.registry import NAME_RULE, is_name
from cluster.store.deployment_records import (
    Autoscaling,
    Engine,
    Gate,
    Revision,
    StoredDecision,
    StoredDeployment,
)
from cluster.wire import timestamp, to_struct
from serving.options import wrong_engine

_MAX_REPLICAS = 64
_MAX_PER_REPLICA = 1024
_WHOLE = 10_000
_MOST_S = 366 * 24 * 3600.0
_MOST_NATS = 100.0
_MOST_PATH = 4096
_MOST_COUNT = 1_000_000
_SHARES = ("max_agreement_loss", "max_task_loss")
_PROPER_SHARES = {
    "mirror_share": "shows its gate nothing; leave it out for all requests, or give some",
    "max_error_rate": "can be shown of no canary; give a little, e.g. 0.001",
    "error_budget": "needs evidence without end; give a little, e.g. 0.01",
}
"""Above 0, and what is wrong with 0."""
_KINDS = {messages.ObservationKind.Value(f"OBSERVATION_KIND_{each.value}"): each for each in Kind}
_COUNTS = ("min_observations", "step_requests")
_DELAYS: tuple[Literal["scale_up_delay", "scale_down_delay"], ...] = ("scale_up_delay", "scale_down_delay")
_MOST_DELAY_S = 24 * 3600.0
_GATE_NUMBERS = (
    *_SHARES,
    *_PROPER_SHARES,
    *_COUNTS,
    *("max_divergence_increase", "max_latency_ratio"),
)


def deployment_to_proto(deployment: StoredDeployment, grpc_port: int | None = None) -> messages.Deployment:
    """`grpc_port`: of the endpoints, where they are offered over gRPC too."""
    host = urlsplit(deployment.endpoint).hostname
    message = messages.Deployment(
        name=deployment.name,
        model=deployment.model,
        resolved_model=deployment.resolved_model,
        num_replicas=deployment.num_replicas,
        cpus_per_replica=deployment.cpus_per_replica,
        gpus_per_replica=deployment.gpus_per_replica,
        state=messages.DeploymentState.Value(f"DEPLOYMENT_STATE_{deployment.state.value}"),
        message=deployment.message,
        endpoint=deployment.endpoint,
        grpc_endpoint=f"{host}:{grpc_port}" if host and grpc_port else "",
        create_time=timestamp(deployment.create_time_us),
        update_time=timestamp(deployment.update_time_us),
        follow_alias=deployment.follow_alias,
        project=deployment.project,
        creator=deployment.creator,
        etag=etag(deployment),
        revisions=[_revision(each) for each in deployment.revisions],
        generation=deployment.generation,
        observed_generation=deployment.observed_generation,
    )
    if deployment.autoscaling is not None:
        message.autoscaling.CopyFrom(_autoscaling(deployment.autoscaling))
    if deployment.gate is not None:
        message.gate.CopyFrom(_gate(deployment.gate))
    if deployment.engine is not None:
        message.engine.CopyFrom(_engine(deployment.engine))
    return message


def etag(deployment: StoredDeployment) -> str:
    return f'"{deployment.create_time_us:x}-{deployment.generation:x}"'


def decision_to_proto(stored: StoredDecision) -> messages.DeploymentEvent:
    decision = stored.decision
    return messages.DeploymentEvent(
        deployment=stored.deployment,
        revision=decision.revision,
        reason=decision.reason,
        message=decision.message,
        actor=decision.actor,
        figures=to_struct(decision.figures),
        create_time=timestamp(stored.create_time_us),
    )


def observation_from_proto(message: messages.Observation) -> Observation:
    names = [field.name for field in messages.Observation.DESCRIPTOR.fields if field.name != "kind"]
    return Observation(**{name: getattr(message, name) for name in names}, kind=_KINDS.get(message.kind, Kind.MIRRORED))


def gate_from_proto(message: messages.CanaryGate, path: str) -> Gate:
    """With its defaults; InvalidInput / INVALID_DEPLOYMENT names each wrong field under `path`."""
    check(list(_gate_violations(message, path)))
    given = {field.name: value for field, value in message.ListFields() if field.name in _GATE_NUMBERS}
    if message.HasField("max_duration"):
        given["max_duration_s"] = seconds(message.max_duration)
    return Gate(teacher=message.teacher, task_data=message.task_data, steps=tuple(message.steps), **given)


def engine_from_proto(message: messages.EngineOptions, path: str) -> Engine:
    """InvalidInput / INVALID_DEPLOYMENT, as for a gate."""
    name, limits = message.name or "transformers", dict(message.limits)
    if wrong := wrong_engine(name, limits):
        check([Violation(f"{path}.{wrong[0]}", wrong[1])])
    return Engine(name, limits)


def autoscaling_from_proto(message: messages.Autoscaling, path: str) -> Autoscaling:
    """InvalidInput / INVALID_DEPLOYMENT, as for a gate."""
    target = message.target_ongoing_requests
    wrong = []
    if not 1 <= message.max_replicas <= _MAX_REPLICAS:
        wrong.append(Violation(f"{path}.max_replicas", f"{message.max_replicas} is not between 1 and {_MAX_REPLICAS}"))
    if not 0 <= message.min_replicas <= message.max_replicas:
        words = f"{message.min_replicas} is not between 0 and max_replicas ({message.max_replicas})"
        wrong.append(Violation(f"{path}.min_replicas", words))
    if not (math.isfinite(target) and 0 <= target <= 1e6):
        wrong.append(Violation(f"{path}.target_ongoing_requests", f"{target} is not between 0 and a million"))
    delays = {f"{name}_s": seconds(getattr(message, name)) for name in _DELAYS if message.HasField(name)}
    for name, delay_s in delays.items():
        if not 0 <= delay_s <= _MOST_DELAY_S:
            wrong.append(Violation(f"{path}.{name[:-2]}", f"{delay_s:g} s is not between 0 and a day"))
    check(wrong)
    given = {"target_ongoing_requests": target} if target else {}
    return Autoscaling(message.min_replicas, message.max_replicas, **given, **delays)


def name_violations(name: str) -> Iterator[Violation]:
    if not is_name(name):
        yield Violation("deployment.name", f"{name!r} is no name; {NAME_RULE}")


def scale_violations(wish: messages.Deployment) -> Iterator[Violation]:
    if not 0 <= wish.num_replicas <= _MAX_REPLICAS:
        yield Violation("deployment.num_replicas", f"{wish.num_replicas} is not between 1 and {_MAX_REPLICAS}")
    for field in ("cpus_per_replica", "gpus_per_replica"):
        value = getattr(wish, field)
        if not (math.isfinite(value) and 0 <= value <= _MAX_PER_REPLICA):
            yield Violation(f"deployment.{field}", f"{value} is not between 0 and {_MAX_PER_REPLICA}")


def weight_violations(weight: int, path: str) -> Iterator[Violation]:
    if not 0 <= weight <= _WHOLE:
        yield Violation(path, f"{weight} is not between 0 and {_WHOLE} basis points")


def share_violations(share: float, path: str) -> Iterator[Violation]:
    if not 0 <= share <= 1:  # what is no number is not either
        yield Violation(path, f"{share} is not between 0 and 1")


def check(violations: list[Violation]) -> None:
    """InvalidInput / INVALID_DEPLOYMENT where there are any."""
    if violations:
        raise InvalidInput("INVALID_DEPLOYMENT", in_words(violations), violations)


def _gate_violations(message: messages.CanaryGate, path: str) -> Iterator[Violation]:
    for name in (*_SHARES, *_PROPER_SHARES):
        yield from share_violations(getattr(message, name), f"{path}.{name}")
        if name != "mirror_share" and getattr(message, name) == 1:
            yield Violation(f"{path}.{name}", "1 allows anything; give less")
    for field, value in message.ListFields():
        if field.name in _PROPER_SHARES and value == 0:
            yield Violation(f"{path}.{field.name}", f"0 {_PROPER_SHARES[field.name]}")
    if not 0 <= message.max_divergence_increase <= _MOST_NATS:
        yield Violation(f"{path}.max_divergence_increase", f"is not between 0 and {_MOST_NATS:g} nats")
    if message.HasField("max_latency_ratio") and not 1 <= message.max_latency_ratio <= 1e6:
        yield Violation(f"{path}.max_latency_ratio", f"{message.max_latency_ratio} is no factor from 1 to a million")
    for name in _COUNTS:
        if not 0 <= getattr(message, name) <= _MOST_COUNT:
            yield Violation(f"{path}.{name}", f"{getattr(message, name)} is not between 0 and a million")
    if message.HasField("max_duration") and not 0 < message.max_duration.seconds <= _MOST_S:
        yield Violation(f"{path}.max_duration", "is not between a second and a year")
    if len(message.task_data) > _MOST_PATH or "\0" in message.task_data:
        yield Violation(f"{path}.task_data", "is no path of a file")
    if message.HasField("max_task_loss") and not message.task_data:
        yield Violation(f"{path}.max_task_loss", "bounds what labelled examples show; name them in task_data")
    yield from _step_violations(message, path)


def _step_violations(message: messages.CanaryGate, path: str) -> Iterator[Violation]:
    edges = [0, *message.steps, _WHOLE]
    if any(later <= earlier for earlier, later in pairwise(edges)):
        words = f"{[*message.steps][:10]} do not grow from above 0 to below {_WHOLE} basis points; e.g. 500, 2500, 5000"
        yield Violation(f"{path}.steps", words)
    if message.HasField("step_requests") and not message.steps:
        yield Violation(f"{path}.step_requests", "only steps wait for requests; name the shares in steps")


def seconds(duration: duration_pb2.Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _autoscaling(stored: Autoscaling) -> messages.Autoscaling:
    values = asdict(stored)
    delays = {name: values.pop(f"{name}_s") for name in _DELAYS}
    message = messages.Autoscaling(**values)
    for name, delay_s in delays.items():
        getattr(message, name).FromMicroseconds(int(delay_s * 1e6))
    return message


def _gate(gate: Gate) -> messages.CanaryGate:
    values = asdict(gate)
    duration_s = values.pop("max_duration_s")
    if not gate.task_data:
        del values["max_task_loss"]
    if not gate.steps:
        del values["step_requests"]
    message = messages.CanaryGate(**values)
    message.max_duration.FromMicroseconds(int(duration_s * 1e6))
    return message


def _engine(engine: Engine) -> messages.EngineOptions:
    return messages.EngineOptions(name=engine.name, limits=engine.limits)


def _revision(revision: Revision) -> messages.Revision:
    trial = revision.trial
    message = messages.Revision(
        number=revision.number,
        model=revision.model,
        phase=messages.RevisionPhase.Value(f"REVISION_PHASE_{revision.phase.value}"),
        weight=revision.weight,
        mirror_share=revision.mirror_share,
        cpus_per_replica=revision.cpus_per_replica,
        gpus_per_replica=revision.gpus_per_replica,
        is_canary=revision.is_canary,
        message=revision.message,
        create_time=timestamp(revision.create_time_us),
        phase_time=timestamp(revision.phase_time_us),
        figures=[_figure(each) for each in figures(trial.gate, trial.evidence)] if trial else (),
        teacher=trial.teacher if trial else "",
    )
    if trial is not None:
        message.gate.CopyFrom(_gate(trial.gate))
    if revision.engine is not None:
        message.engine.CopyFrom(_engine(revision.engine))
    return message


def _figure(figure: Figure) -> messages.GateFigure:
    return messages.GateFigure(**asdict(figure))
