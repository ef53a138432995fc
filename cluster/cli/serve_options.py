"""What several commands of `athanor serve` take: replicas by load, and the gate of a canary."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.completion import complete_model

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2

_RANGE = re.compile(r"(\d{1,2}):(\d{1,2})")

AutoscaleOption = Annotated[
    str, typer.Option("--autoscale", metavar="MIN:MAX", help="Replicas by load; 0 as the least scales to zero.")
]
OngoingOption = Annotated[
    float,
    typer.Option("--target-ongoing", min=0, help="With --autoscale: requests in progress per replica; 0 means 8."),
]
FollowOption = Annotated[
    bool, typer.Option("--follow/--no-follow", help="When the alias in the model moves, this deployment moves with it.")
]
GateOption = Annotated[
    bool, typer.Option("--gate", help="Judge canaries on mirrored requests; they are promoted or rolled back by that.")
]
TeacherOption = Annotated[
    str,
    typer.Option(
        "--teacher",
        help="With --gate: the model to compare with; without it the canary's own first teacher.",
        autocompletion=complete_model,
    ),
]
MirrorOption = Annotated[
    float, typer.Option("--mirror", min=0, max=1, help="Share of the requests that the canary is asked in the dark.")
]
BudgetOption = Annotated[
    float, typer.Option("--error-budget", min=0, max=0.5, help="With --gate: probability of a wrong decision.")
]


def autoscaling_of(given: str, ongoing: float) -> deployment_service_pb2.Autoscaling | None:
    """Of `--autoscale MIN:MAX`; None without it."""
    from athanor.v1 import deployment_service_pb2

    if not given:
        return None
    found = _RANGE.fullmatch(given)
    if found is None:
        raise typer.BadParameter(f"{given!r} is no MIN:MAX, e.g. 0:4", param_hint="--autoscale")
    least, most = map(int, found.groups())
    return deployment_service_pb2.Autoscaling(min_replicas=least, max_replicas=most, target_ongoing_requests=ongoing)


def gate_of(wanted: bool, teacher: str, mirror: float, budget: float) -> deployment_service_pb2.CanaryGate | None:
    """Of `--gate` and what goes with it; None without it. Limits that are not given are the server's."""
    from athanor.v1 import deployment_service_pb2

    if not wanted:
        return None
    return deployment_service_pb2.CanaryGate(teacher=teacher, mirror_share=mirror, error_budget=budget)
