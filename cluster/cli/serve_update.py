"""`athanor serve update`: what is said of scaling, engine and gate is changed in those that the deployment has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.connect import AddressOption, connect
from cluster.cli.output import Format, FormatOption
from cluster.cli.serve_options import (
    WAIT_S,
    AutoscaleOption,
    BudgetOption,
    DelayOption,
    EngineLimitOption,
    EngineOption,
    GateFileOption,
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
from cluster.cli.serve_outcome import end, newest, settled

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2 as pb

    from cluster.client import AthanorClient

_MERGED = frozenset({"autoscaling", "engine", "gate"})
"""Written as they were read, but for what was said: only if nobody changed them meanwhile."""
_TRIES = 8


@dataclass(frozen=True)
class Change:
    """What was said of one deployment on the command line."""

    name: str
    fields: dict[str, Any]
    scaling: ScalingWish
    engine: str
    limits: tuple[str, ...]
    has_gate: bool | None
    gate: GateWish

    def of(self, known: pb.Deployment) -> tuple[pb.Deployment, list[str]]:
        """The new values, and the fields that have them."""
        from athanor.v1 import deployment_service_pb2

        changed = deployment_service_pb2.Deployment(name=self.name, **self.fields)
        paths = [*self.fields]
        if self._scale(changed, known):
            paths.append("autoscaling")
        if (
            engine := engine_of(self.engine, self.limits, known.engine if known.HasField("engine") else None)
        ) is not None:
            changed.engine.CopyFrom(engine)
            paths.append("engine")
        if self._judge(changed, known):
            paths.append("gate")
        return changed, paths

    def _scale(self, changed: pb.Deployment, known: pb.Deployment) -> bool:
        """So many replicas are no longer as many as load needs."""
        is_fixed = "num_replicas" in self.fields
        scales = known.HasField("autoscaling") and not is_fixed
        scaling = autoscaling_of(self.scaling, known.autoscaling if scales else None)
        if scaling is not None:
            changed.autoscaling.CopyFrom(scaling)
        return scaling is not None or is_fixed

    def _judge(self, changed: pb.Deployment, known: pb.Deployment) -> bool:
        wish = self.gate
        if self.has_gate is False:
            for option in ("--gate-file",) if wish.file else (*wish.options,):
                raise typer.BadParameter("there is no gate to change with --no-gate", param_hint=option)
        if wish.wanted or wish.file or wish.options:
            judged = gate_of(wish, known.gate if known.HasField("gate") else None)
            if judged is not None:
                changed.gate.CopyFrom(judged)
            return True
        return self.has_gate is not None


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

    What is said of scaling, a gate or an engine is changed in the one that the deployment has.
    """
    given = {"model": model or None, "cpus_per_replica": cpus, "gpus_per_replica": gpus, "follow_alias": follow}
    given |= {"num_replicas": replicas}
    change = Change(
        name,
        {field: value for field, value in given.items() if value is not None},
        ScalingWish(autoscale, target_ongoing, scale_delay),
        engine,
        tuple(engine_limit or ()),
        gate,
        GateWish(gate is True, gate_file, teacher, task_data, mirror, error_budget, steps),
    )
    with connect(address) as client:
        known, deployment = _make(client, change)
        if wait and newest(known) != newest(deployment):
            deployment = settled(client, deployment, newest(deployment), form, timeout_s)
        elif wait:
            deployment = client.wait_deployment(name, timeout_s=timeout_s)
    end(form, deployment, is_over=wait)


def _make(client: AthanorClient, change: Change) -> tuple[pb.Deployment, pb.Deployment]:
    """The deployment before and after it; tried again where somebody changed what it is merged into."""
    from cluster.rpc import RequestFailed

    for left in reversed(range(_TRIES)):
        known = client.get_deployment(change.name)
        changed, paths = change.of(known)
        if not paths:
            words = "nothing to change; name what shall, e.g. --model, --replicas, --engine-limit or --gate"
            raise typer.BadParameter(words)
        try:
            etag = known.etag if _MERGED & set(paths) else ""
            return known, client.update_deployment(changed, paths, etag=etag)
        except RequestFailed as error:
            if error.reason != "ETAG_MISMATCH" or not left:
                raise
    raise AssertionError("the last try returns or raises")
