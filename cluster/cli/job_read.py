"""`athanor job logs`, `metrics`, `events`, `report`, `tensorboard`: what a job has left behind for reading."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.connect import AddressOption, connect
from cluster.cli.exit_codes import of_state
from cluster.cli.job_change import JobArgument
from cluster.cli.job_table import state_name
from cluster.cli.lists import Columns, Line, at_most, show_list
from cluster.cli.output import Format, FormatOption, age, as_document, coloured, emit_json, say, short_state

if TYPE_CHECKING:
    from athanor.v1 import job_service_pb2

_EVENT_COLUMNS = ("TIME", "AGE", "STATE", "REASON", "MESSAGE")
_FIGURES = ("loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second")
_PLOT_HEIGHT = 12

RoleOption = Annotated[str, typer.Option(metavar="student|baseline", help="Whose figures; the student's by default.")]
FollowOption = Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")]


def add_to(app: typer.Typer) -> None:
    """The commands of this module."""
    for command in (logs, metrics, events, report, tensorboard):
        app.command()(command)


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the attempt ends.")] = False,
    attempt: Annotated[int, typer.Option(min=0, help="Attempt number; 0 is the latest.")] = 0,
    role: Annotated[
        str, typer.Option(metavar="driver|student|teacher", help="Whose log; the driver's has everybody's lines.")
    ] = "",
    rank: Annotated[int, typer.Option(min=0, help="Which student worker or teacher shard.")] = 0,
    tail: Annotated[int, typer.Option(min=0, help="Begin with the last so many lines; 0: at the beginning.")] = 0,
    address: AddressOption = "",
) -> None:
    """Print what the job's driver and workers printed. With -f ends with the job's exit code."""
    with connect(address) as client:
        uid = client.find_job(job).uid
        which = {"attempt": attempt, "rank": rank, "tail_lines": tail}
        for data in client.stream_logs(uid, role=role, follow=follow, **which):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        if follow:
            raise typer.Exit(of_state(state_name(client.get_job(uid))))


def metrics(
    job: JobArgument,
    role: RoleOption = "",
    plot: Annotated[bool, typer.Option("--plot", help="Draw curves in the terminal.")] = False,
    figures: Annotated[
        list[str] | None, typer.Option("--figure", metavar="NAME", help="What to plot, e.g. loss; repeatable.")
    ] = None,
    after_step: Annotated[int, typer.Option(min=0, help="Only later steps.")] = 0,
    follow: FollowOption = False,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Print a job's figures step by step, or draw them. With -f each line as it comes, as JSON with -o json."""
    with connect(address) as client:
        uid = client.find_job(job).uid
        found = client.stream_metrics(uid, role=role, after_step=after_step, follow=follow)
        if follow and not plot:
            _print_as_they_come(form, found)
            raise typer.Exit(of_state(state_name(client.get_job(uid))))
        lines = settled(found)
    if plot:
        _draw(lines, figures or ["loss", "tokens_per_second"])
    else:
        documents = [{"step": step, **figures} for step, figures in lines]
        show_list(
            form, Columns(_heading()), lambda: [Line(str(each["step"]), each, _cells(each)) for each in documents]
        )


def events(
    job: JobArgument,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Print a job's history, oldest first."""

    def load() -> Iterator[Line]:
        found = client.list_job_events(client.find_job(job).uid, limit=limit + 1)
        for event in at_most(limit, found):
            yield Line(str(event.resource_version), as_document(event), _event_row(event))

    with connect(address) as client:
        show_list(form, Columns(_EVENT_COLUMNS), load)


def report(
    job: JobArgument,
    html: Annotated[bool, typer.Option("--html", help="The page with pictures, not the figures as JSON.")] = False,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it there, not to stdout.")] = None,
    address: AddressOption = "",
) -> None:
    """Print the transfer report of a finished job: what was measured, as JSON."""
    with connect(address) as client:
        content = client.get_job_report(client.find_job(job).uid, form="html" if html else "json").content
    if to is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    to.write_bytes(content)
    say(f"written to {to}")


def tensorboard(
    job: JobArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made when it is not there.")],
    role: RoleOption = "",
    follow: FollowOption = False,
    address: AddressOption = "",
) -> None:
    """Write a job's curves as TensorBoard event files: on the storage they lie already, this brings them here."""
    from trainer.curves import Curves

    with connect(address) as client:
        uid = client.find_job(job).uid
        curves = Curves(directory / uid / (role or "student"), ())
        kept: list[tuple[int, dict[str, Any]]] = []
        for line in client.stream_metrics(uid, role=role, follow=follow):
            add_line(kept, line)
            if line.rewound:
                curves = Curves(directory / uid / (role or "student"), (_flat(each) for each in kept))
            else:
                curves.write(_flat(kept[-1]))
    say(f"{len(kept)} steps; look at them with: tensorboard --logdir {directory}")


def settled(found: Iterable[job_service_pb2.StreamJobMetricsResponse]) -> list[tuple[int, dict[str, Any]]]:
    """Step and figures, each step once: what a job did again after going back to a checkpoint counts."""
    lines: list[tuple[int, dict[str, Any]]] = []
    for line in found:
        add_line(lines, line)
    return lines


def add_line(lines: list[tuple[int, dict[str, Any]]], line: job_service_pb2.StreamJobMetricsResponse) -> None:
    """Append step and figures, in the place of what was rewound."""
    from google.protobuf import json_format

    while line.rewound and lines and lines[-1][0] >= line.step:
        lines.pop()
    figures = {name: value for name, value in json_format.MessageToDict(line.figures).items() if name != "step"}
    lines.append((line.step, figures))


def _flat(line: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    return {"step": line[0], **line[1]}


def _heading() -> tuple[str, ...]:
    return ("STEP", *(name.upper().replace("_PER_SECOND", "/S").replace("_", " ") for name in _FIGURES))


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    return (str(int(line["step"])), *(_figure(line.get(name)) for name in _FIGURES))


def _figure(value: object) -> str:
    if not isinstance(value, float | int):
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _print_as_they_come(form: Format, found: Iterable[job_service_pb2.StreamJobMetricsResponse]) -> None:
    widths = [max(len(heading), 10) for heading in _heading()]
    if form is not Format.JSON:
        _print_row(_heading(), widths)
    for line in found:
        (step, figures), *_ = settled([line])
        if form is Format.JSON:
            emit_json({"step": step, "rewound": line.rewound, **figures}, one_line=True)
        else:
            _print_row(_cells({"step": step, **figures}), widths)


def _print_row(cells: Iterable[str], widths: Iterable[int]) -> None:
    words = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _draw(lines: list[tuple[int, dict[str, Any]]], names: Iterable[str]) -> None:
    """One curve below the other, as wide as the terminal."""
    from cluster.cli.braille import draw

    known = ", ".join(sorted({each for _, figures in lines for each in _names(figures)}))
    if not known:
        say("there are no figures yet")
        return
    width = min(shutil.get_terminal_size().columns, 120)
    for name in names:
        points = [
            (float(step), float(_named(figures, name))) for step, figures in lines if _named(figures, name) is not None
        ]
        if not points:
            say(f"there is no figure {name!r}; there are {known}")
            continue
        sys.stdout.write("\n".join([*draw(name, points, width, _PLOT_HEIGHT), "", ""]))


def _names(figures: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Of all that can be drawn."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}"


def _named(figures: dict[str, Any], name: str) -> Any:
    """`loss`, or `terms.divergence`."""
    value: Any = figures
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def _event_row(event: job_service_pb2.JobEvent) -> tuple[Any, ...]:
    from athanor.v1 import job_pb2

    moment = event.create_time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    state = coloured(short_state(job_pb2.JobState.Name(event.state)))
    return (moment, age(event.create_time), state, event.reason, event.message)
