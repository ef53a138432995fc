"""`athanor serve canary`, `traffic`, `promote`, `rollback`: versions beside the one that answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.connect import AddressOption, connect
from cluster.cli.output import Format, FormatOption, say
from cluster.cli.percent import basis_points, percent, share
from cluster.cli.serve_options import (
    WAIT_S,
    BudgetOption,
    GateFileOption,
    GateOption,
    GateWish,
    MirrorOption,
    ModelOption,
    NameArgument,
    StepsOption,
    TaskDataOption,
    TeacherOption,
    TimeoutOption,
    WaitOption,
    gate_of,
)
from cluster.cli.serve_outcome import end, newest, say_done, settled

if TYPE_CHECKING:
    from athanor.v1 import deployment_service_pb2 as pb

WeightOption = Annotated[
    float | None,
    typer.Option(
        "--weight", metavar="PERCENT", parser=share, help="Share of the requests, sticky by session; without it none."
    ),
]


def canary(
    name: NameArgument,
    model: ModelOption,
    weight: WeightOption = None,
    gate: GateOption = False,
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
    """Bring a version up beside the one that answers; with --gate it is promoted or rolled back by itself."""
    is_judged = gate or gate_file is not None
    of_gate = mirror if is_judged else None
    judged = gate_of(GateWish(gate, gate_file, teacher, task_data, of_gate, error_budget, steps))
    alone = None if is_judged else mirror
    with connect(address) as client:
        made = client.start_canary(name, model, weight=basis_points(weight or 0.0), gate=judged, mirror_share=alone)
        number = newest(made)
        _say_canary(made)
        made = settled(client, made, number, form, timeout_s) if wait else made
    say_done(made, _next(name, is_judged=is_judged), is_over=wait)
    end(form, made, is_over=wait)


def traffic(
    name: NameArgument,
    weight: Annotated[
        float, typer.Argument(metavar="PERCENT", parser=share, help="The canary's share of the requests, e.g. 25%.")
    ],
    mirror: MirrorOption = None,
    wait: WaitOption = True,
    timeout_s: TimeoutOption = WAIT_S,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Change how many requests the canary answers. More of them moves sessions to it, and none away."""
    with connect(address) as client:
        made = client.set_traffic(name, basis_points(weight), mirror_share=mirror)
        made = client.wait_deployment(name, timeout_s=timeout_s) if wait else made
    words = f"the canary of {name} takes {percent(weight)}; next: `athanor serve promote {name}`, or rollback"
    say_done(made, words, is_over=wait)
    end(form, made, is_over=wait)


def promote(
    name: NameArgument,
    wait: WaitOption = True,
    timeout_s: TimeoutOption = WAIT_S,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Let the canary answer all requests, whatever its gate has seen."""
    with connect(address) as client:
        made = client.promote_deployment(name)
        made = client.wait_deployment(name, timeout_s=timeout_s) if wait else made
    words = f"{made.resolved_model} answers for {name} now; to go back: `athanor serve rollback {name}`"
    say_done(made, words, is_over=wait)
    end(form, made, is_over=wait)


def rollback(
    name: NameArgument,
    wait: WaitOption = True,
    timeout_s: TimeoutOption = WAIT_S,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """End the canary or the update that is under way; without one, go back to the version before."""
    from athanor.v1 import deployment_service_pb2

    with connect(address) as client:
        made = client.rollback_deployment(name)
        last = next((each for each in made.revisions if each.number == newest(made)), None)
        is_coming = last is not None and last.phase == deployment_service_pb2.REVISION_PHASE_STARTING
        if last is not None and is_coming:
            say(f"{last.model} comes up again as revision {last.number}")
        if wait and is_coming:
            made = settled(client, made, newest(made), form, timeout_s)
        elif wait:
            made = client.wait_deployment(name, timeout_s=timeout_s)
    words = f"{made.resolved_model} answers for {name}; `athanor serve history {name}` tells the whole story"
    say_done(made, words, is_over=wait)
    end(form, made, is_over=wait)


def _say_canary(made: pb.Deployment) -> None:
    last = next((each for each in made.revisions if each.number == newest(made)), None)
    if last is not None:
        share = percent(last.weight / 10_000)
        say(f"{last.model} comes up as revision {last.number} of {made.name}, a canary with {share}")


def _next(name: str, *, is_judged: bool) -> str:
    if is_judged:
        return f"next: its gate decides; `athanor serve describe {name}` shows what it has seen so far"
    return f"next: `athanor serve traffic {name} 25%`, `athanor serve promote {name}`, `athanor serve rollback {name}`"


def add_to(app: typer.Typer) -> None:
    """The commands, in the order of their use."""
    for command in (canary, traffic, promote, rollback):
        app.command()(command)
