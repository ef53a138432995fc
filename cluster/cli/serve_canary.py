"""`athanor serve canary`, `traffic`, `promote`, `rollback`: versions beside the one that answers."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.completion import complete_deployment, complete_model
from cluster.cli.connect import AddressOption, connect
from cluster.cli.output import say
from cluster.cli.serve_options import BudgetOption, GateOption, MirrorOption, TeacherOption, gate_of

_PERCENT = 100
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The deployment; also the path of its endpoint.", autocompletion=complete_deployment
    ),
]
WeightOption = Annotated[
    float, typer.Option("--weight", min=0, max=100, help="Share of the requests in percent, sticky by session.")
]


def canary(
    name: NameArgument,
    model: Annotated[
        str,
        typer.Option(
            "-m", "--model", help="name@alias, name@version, or name for the newest.", autocompletion=complete_model
        ),
    ],
    weight: WeightOption = 0.0,
    gate: GateOption = False,
    teacher: TeacherOption = "",
    mirror: MirrorOption = None,
    error_budget: BudgetOption = None,
    address: AddressOption = "",
) -> None:
    """Bring a version up beside the one that answers; with --gate it is promoted or rolled back by itself."""
    judged = gate_of(gate, teacher, mirror, error_budget)
    with connect(address) as client:
        made = client.start_canary(name, model, weight=_basis_points(weight), gate=judged)
    newest = made.revisions[-1]
    say(f"{newest.model} comes up as revision {newest.number} of {name}, a canary with {weight:g} %")


def traffic(
    name: NameArgument,
    weight: Annotated[float, typer.Argument(min=0, max=100, help="The canary's share of the requests in percent.")],
    mirror: Annotated[
        float | None, typer.Option("--mirror", min=0, max=1, help="Its share of those that are asked in the dark.")
    ] = None,
    address: AddressOption = "",
) -> None:
    """Change how many requests the canary answers. More of them moves sessions to it, and none away."""
    with connect(address) as client:
        client.set_traffic(name, _basis_points(weight), mirror_share=mirror)
    say(f"the canary of {name} takes {weight:g} %")


def promote(name: NameArgument, address: AddressOption = "") -> None:
    """Let the canary answer all requests, whatever its gate has seen."""
    with connect(address) as client:
        made = client.promote_deployment(name)
    say(f"{made.resolved_model} answers for {name} now")


def rollback(name: NameArgument, address: AddressOption = "") -> None:
    """End the canary or the update that is under way; without one, go back to the version before."""
    with connect(address) as client:
        made = client.rollback_deployment(name)
    newest = made.revisions[-1]
    coming = f"; {newest.model} comes up again" if newest.model != made.resolved_model and newest.weight == 0 else ""
    say(f"{made.resolved_model} answers for {name}{coming}")


def _basis_points(percent: float) -> int:
    return round(percent * _PERCENT)


def add_to(app: typer.Typer) -> None:
    """The commands, in the order of their use."""
    for command in (canary, traffic, promote, rollback):
        app.command()(command)
