"""What several commands of `athanor serve` take: replicas by load, engines, waiting, and the gate of a canary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import spans
from cluster.cli.completion import complete_deployment, complete_model
from cluster.cli.percent import basis_points, share

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2

_RANGE = re.compile(r"(\d{1,2}):(\d{1,2})")
WAIT_S = 600.0
"""How long commands of `serve` wait unless told otherwise."""

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The deployment; also the path of its endpoint.", autocompletion=complete_deployment
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "-m", "--model", help="name@alias, name@version, or name for the newest.", autocompletion=complete_model
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait/--detach", help="Until what was asked for is there.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait at most.")]
AutoscaleOption = Annotated[
    str, typer.Option("--autoscale", metavar="MIN:MAX", help="Replicas by load; 0 as the least scales to zero.")
]
OngoingOption = Annotated[
    float,
    typer.Option(
        "--target-ongoing", min=0, help="Of scaling by load: requests in progress per replica; 8 unless told otherwise."
    ),
]
DelayOption = Annotated[
    str,
    typer.Option(
        "--scale-delay",
        metavar="UP:DOWN",
        help="Of scaling by load: how long more must be wanted, and how long fewer must suffice; 30s:10m.",
    ),
]
FollowOption = Annotated[
    bool, typer.Option("--follow/--no-follow", help="When the alias in the model moves, this deployment moves with it.")
]
EngineOption = Annotated[
    str, typer.Option("--engine", metavar="NAME", help="By what models are run: transformers (the default) or vllm.")
]
EngineLimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-limit", metavar="KEY=VALUE", help="What the engine may use, e.g. kv_tokens=32768; may be repeated."
    ),
]
GateOption = Annotated[
    bool, typer.Option("--gate", help="Judge the canary by what it shows; it is promoted or rolled back by that.")
]
GateFileOption = Annotated[
    Path | None,
    typer.Option("--gate-file", metavar="FILE", help="A gate with all its limits, in YAML; see docs/deployments.md."),
]
TeacherOption = Annotated[
    str,
    typer.Option(
        "--teacher",
        help="With --gate: the model to compare with; without it the canary's own first teacher.",
        autocompletion=complete_model,
    ),
]
TaskDataOption = Annotated[
    Path | None,
    typer.Option(
        "--task-data",
        metavar="FILE",
        help="With --gate: labelled examples (.jsonl, .csv) that both versions are asked.",
    ),
]
MirrorOption = Annotated[
    float | None,
    typer.Option(
        "--mirror", metavar="PERCENT", parser=share, help="Share of the requests that it is asked in the dark as well."
    ),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--error-budget", metavar="PERCENT", parser=share, help="With --gate: probability of a wrong decision; 5%."
    ),
]
StepsOption = Annotated[
    str,
    typer.Option(
        "--steps", metavar="PERCENT,...", help="With --gate: shares that the canary grows by, e.g. 5%,25%,50%."
    ),
]


@dataclass(frozen=True)
class GateWish:
    """What was said of a gate on the command line."""

    wanted: bool = False
    file: Path | None = None
    teacher: str = ""
    task_data: Path | None = None
    mirror: float | None = None
    error_budget: float | None = None
    steps: str = ""

    @property
    def options(self) -> dict[str, object]:
        """Those that were given, by their names; only a gate reads them."""
        given = {
            "--teacher": self.teacher or None,
            "--task-data": self.task_data,
            "--mirror": self.mirror,
            "--error-budget": self.error_budget,
            "--steps": self.steps or None,
        }
        return {option: value for option, value in given.items() if value is not None}


@dataclass(frozen=True)
class ScalingWish:
    """What was said of replicas by load on the command line."""

    bounds: str = ""
    target_ongoing: float = 0.0
    delay: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """Those that were given beside --autoscale, by their names."""
        given = {"--target-ongoing": self.target_ongoing, "--scale-delay": self.delay}
        return tuple(option for option, value in given.items() if value)


def autoscaling_of(
    wish: ScalingWish, known: deployment_service_pb2.Autoscaling | None = None
) -> deployment_service_pb2.Autoscaling | None:
    """Of `--autoscale MIN:MAX` and what goes with it, over what is `known`; None where nothing is said."""
    from athanor.v1 import deployment_service_pb2

    if not wish.bounds and (known is None or not wish.options):
        for option in wish.options:
            raise typer.BadParameter("only scaling by load reads this; add --autoscale", param_hint=option)
        return None
    scaling = deployment_service_pb2.Autoscaling()
    if known is not None:
        scaling.CopyFrom(known)
    if wish.bounds:
        scaling.min_replicas, scaling.max_replicas = _bounds(wish.bounds)
    if wish.target_ongoing:
        scaling.target_ongoing_requests = wish.target_ongoing
    if wish.delay:
        up, down = _delays(wish.delay)
        scaling.scale_up_delay.FromTimedelta(up)
        scaling.scale_down_delay.FromTimedelta(down)
    return scaling


def _bounds(given: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(given)
    if found is None:
        raise typer.BadParameter(f"{given!r} is no MIN:MAX, e.g. 0:4", param_hint="--autoscale")
    return int(found[1]), int(found[2])


def _delays(given: str) -> tuple[timedelta, timedelta]:
    up, _, down = given.partition(":")
    found_up, found_down = spans.read(up), spans.read(down)
    if found_up is None or found_down is None:
        words = f"{given!r} is no UP:DOWN of spans of time, e.g. 30s:10m"
        raise typer.BadParameter(words, param_hint="--scale-delay")
    return found_up, found_down


def engine_of(
    name: str, limits: Sequence[str], known: deployment_service_pb2.EngineOptions | None = None
) -> deployment_service_pb2.EngineOptions | None:
    """Of `--engine` and `--engine-limit`, added to what is `known` of the same engine; None without either."""
    from athanor.v1 import deployment_service_pb2

    if not name and not limits:
        return None
    wanted = deployment_service_pb2.EngineOptions(name=name or (known.name if known else ""))
    if known is not None and wanted.name == known.name:
        wanted.CopyFrom(known)
    for given in limits:
        key, is_pair, value = given.partition("=")
        try:
            wanted.limits[key.strip()] = float(value)
        except ValueError:
            words = f"{given!r} is no KEY=VALUE with a number, e.g. kv_tokens=32768"
            raise typer.BadParameter(words, param_hint="--engine-limit") from None
        if not is_pair or not key.strip():
            raise typer.BadParameter(f"{given!r} names no limit, e.g. kv_tokens=32768", param_hint="--engine-limit")
    return wanted


def gate_of(
    wish: GateWish, known: deployment_service_pb2.CanaryGate | None = None
) -> deployment_service_pb2.CanaryGate | None:
    """Of `--gate` or `--gate-file` and what goes with it, over what is `known`; None without a gate.

    Limits that are not given are the server's.
    """
    from athanor.v1 import deployment_service_pb2

    if not wish.wanted and wish.file is None and known is None:
        for option in wish.options:
            raise typer.BadParameter("only a gate reads this; add --gate", param_hint=option)
        return None
    gate = deployment_service_pb2.CanaryGate()
    if wish.file is not None:
        from cluster.cli.gate_file import read_gate

        gate.CopyFrom(read_gate(wish.file))
    elif known is not None:
        gate.CopyFrom(known)
    if wish.teacher:
        gate.teacher = wish.teacher
    if wish.task_data is not None:
        gate.task_data = str(wish.task_data.expanduser().absolute())
    if wish.mirror is not None:
        gate.mirror_share = wish.mirror
    if wish.error_budget is not None:
        gate.error_budget = wish.error_budget
    if wish.steps:
        gate.steps[:] = [basis_points(share(each)) for each in wish.steps.split(",")]
    return gate
