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
    float | None,
    typer.Option(
        "--mirror", min=0.001, max=1, help="With --gate: share of the requests that the canary is asked in the dark; 1."
    ),
]
BudgetOption = Annotated[
    float | None,
    typer.Option("--error-budget", min=0.0001, max=0.5, help="With --gate: probability of a wrong decision; 0.05."),
]


def autoscaling_of(given: str, ongoing: float) -> deployment_service_pb2.Autoscaling | None:
    """Of `--autoscale MIN:MAX`; None without it."""
    from athanor.v1 import deployment_service_pb2

    if not given:
        if ongoing:
            raise typer.BadParameter("only scaling by load reads this; add --autoscale", param_hint="--target-ongoing")
        return None
    found = _RANGE.fullmatch(given)
    if found is None:
        raise typer.BadParameter(f"{given!r} is no MIN:MAX, e.g. 0:4", param_hint="--autoscale")
    least, most = map(int, found.groups())
    return deployment_service_pb2.Autoscaling(min_replicas=least, max_replicas=most, target_ongoing_requests=ongoing)


def gate_of(
    wanted: bool, teacher: str, mirror: float | None, budget: float | None
) -> deployment_service_pb2.CanaryGate | None:
    """Of `--gate` and what goes with it; None without it. Limits that are not given are the server's."""
    from athanor.v1 import deployment_service_pb2

    given = {"--teacher": teacher or None, "--mirror": mirror, "--error-budget": budget}
    if not wanted:
        for option, value in given.items():
            if value is not None:
                raise typer.BadParameter("only a gate reads this; add --gate", param_hint=option)
        return None
    return deployment_service_pb2.CanaryGate(teacher=teacher, mirror_share=mirror or 0.0, error_budget=budget or 0.0)
