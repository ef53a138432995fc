"""How the command speaks: data on stdout in the form that was asked for, talk on stderr, errors in clean lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text


class Format(StrEnum):
    """Forms of data."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


FormatOption = Annotated[Format, typer.Option("-o", "--output", help="Form of the data on stdout.")]
Cell = TypeVar("Cell", bound="str | Text")
_GAP, _LEAST_WIDTH = 2, 20
_PIPED_WIDTH = 400  # a table that goes into a pipe is cut nowhere
_STYLES = {
    **dict.fromkeys(("SUCCEEDED", "READY", "ALIVE"), "green"),
    **dict.fromkeys(("ADMITTED", "STARTING", "RUNNING", "DEPLOYING"), "cyan"),
    **dict.fromkeys(("QUEUED", "PAUSING", "PAUSED", "PENDING"), "yellow"),
    **dict.fromkeys(("CANCELLING", "CANCELLED", "DELETING"), "bright_black"),
    "RECOVERING": "magenta",
    **dict.fromkeys(("FAILED", "DEAD"), "bold red"),
}


def data_console() -> Console:
    """stdout. Colours on terminals alone, and none where NO_COLOR is set."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False)


def talk_console() -> Console:
    """stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def say(line: str) -> None:
    """One line for people."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def as_fields(columns: Sequence[str], row: Sequence[Cell]) -> dict[str, Cell]:
    """One line of a table, to be shown on its own."""
    return {column.capitalize(): value for column, value in zip(columns, row, strict=True)}


def as_document(message: Message) -> dict[str, Any]:
    """Proto JSON with the names of the contract; fields without a value are shown as what they stand for."""
    from google.protobuf import json_format

    document = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return {name: _tidy(value) if name == "spec" else value for name, value in document.items()}


def _tidy(value: Any) -> Any:
    """A job's settings as people write them: on the wire every number is a double, and keys have no order."""
    if isinstance(value, dict):
        return {name: _tidy(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_tidy(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def emit(
    form: Format,
    document: object,
    *,
    table: Callable[[], None],
    names: Sequence[str],
    wide: Callable[[], None] | None = None,
) -> None:
    """Write data to stdout; `table` and `wide` print the forms for people themselves."""
    if form is Format.JSON:
        emit_json(document)
    elif form is Format.YAML:
        import yaml

        sys.stdout.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    elif form is Format.NAME:
        sys.stdout.writelines(f"{name}\n" for name in names)
    elif form is Format.WIDE and wide is not None:
        wide()
    else:
        table()


def emit_json(document: object, *, one_line: bool = False) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=None if one_line else 2) + "\n")
    sys.stdout.flush()


def print_line(text: str) -> None:
    """One line of data on stdout."""
    sys.stdout.write(f"{text}\n")


def make_table(
    columns: Sequence[str], rows: Sequence[Sequence[str | Text]], alike: Sequence[Sequence[str | Text]] = ()
) -> Table:
    """A table without lines, as people know it from kubectl. On a terminal its last column alone is cut to fit.

    It is as wide as if it held the rows of `alike` as well.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, *alike, strict=True)]
    left = data_console().width - sum(widths[:-1]) - _GAP * (len(widths) - 1)
    widths[-1] = min(widths[-1], max(left, _LEAST_WIDTH))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, no_wrap=True, overflow="ellipsis", width=width)
    for row in cells:
        table.add_row(*row)
    table.width = sum(widths) + _GAP * (len(widths) - 1)
    return table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """A table on stdout."""
    show(make_table(columns, rows))


def show(shown: RenderableType) -> None:
    """Something of rich on stdout; in a pipe its lines end where their words end."""
    console = data_console()
    if console.is_terminal:
        console.print(shown, crop=False, overflow="ignore", no_wrap=True)
        return
    with console.capture() as captured:
        console.print(shown, crop=False, overflow="ignore", no_wrap=True)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def print_fields(fields: Mapping[str, str | Text]) -> None:
    """One thing, field by field; empty fields are left out."""
    console = data_console()
    shown = {name: value for name, value in fields.items() if value}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        console.print(f"{name:<{width}}  ", end="", style="bold" if console.is_terminal else None)
        console.print(value, soft_wrap=True)


def coloured(state: str, words: str = "") -> Text:
    """A state (or words about it) in its colour."""
    from rich.text import Text

    return Text(words or state, style=_STYLES.get(state, ""))


def age(moment: Timestamp, now: datetime | None = None) -> str:
    """How long ago: 12s, 5m, 3h, 2d. Empty for a time that is not set."""
    if not moment.seconds:
        return ""
    return span(((now or datetime.now(UTC)) - moment.ToDatetime(UTC)).total_seconds())


def span(seconds: float) -> str:
    """A time that passes, by its largest unit: 12s, 5m, 3h, 2d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(int(seconds), 0)}s"


def short_state(state: str) -> str:
    """JOB_STATE_RUNNING -> RUNNING."""
    return state.split("_STATE_", 1)[-1]
