"""Lists of things: once in the form that was asked for, or again and again while they change.

On a terminal a table that renews itself; elsewhere each line (or document) as it becomes another one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from cluster.cli.exit_codes import ExitCode
from cluster.cli.output import Format, data_console, emit, emit_json, make_table, print_table, say, show

if TYPE_CHECKING:
    from rich.text import Text

WatchOption = Annotated[bool, typer.Option("-w", "--watch", help="Go on showing what changes; ends with Ctrl-C.")]
_EVERY_S = 2.0
Item = TypeVar("Item")


@dataclass(frozen=True)
class Line:
    """One thing of a list. `wide` is its row in the wide form, where there is one."""

    name: str
    document: dict[str, Any]
    row: Sequence[str | Text]
    wide: Sequence[str | Text] = ()

    def cells(self, form: Format) -> Sequence[str | Text]:
        return self.wide if form is Format.WIDE and self.wide else self.row


@dataclass(frozen=True)
class Columns:
    """The headings of both forms."""

    table: Sequence[str]
    wide: Sequence[str] = ()

    def of(self, form: Format) -> Sequence[str]:
        return self.wide if form is Format.WIDE and self.wide else self.table


def at_most(limit: int, found: Iterable[Item], *, aloud: bool = True) -> Iterator[Item]:
    """The first `limit` of them; said when there are more, for which `found` needs to hold one more."""
    for at, item in enumerate(found):
        if at == limit:
            if aloud:
                say(f"there are more than these {limit}: --limit {limit * 10}")
            return
        yield item


def show_list(
    form: Format,
    columns: Columns,
    load: Callable[[], Iterable[Line]],
    *,
    watch: bool = False,
    nothing: str = "",
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Print a list; with `watch` until Ctrl-C. `nothing` is said, to people, of one that is empty."""
    lines = list(load())
    if watch:
        is_shown_anew = form in (Format.TABLE, Format.WIDE) and sys.stdout.isatty()
        keep = _renew if is_shown_anew else _print_changes
        try:
            keep(form, columns, lines, load, sleep)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
    else:
        if nothing and not lines:
            say(nothing)
        emit(
            form,
            [line.document for line in lines],
            table=lambda: print_table(columns.of(form), [line.cells(form) for line in lines]),
            names=[line.name for line in lines],
        )


def _renew(
    form: Format,
    columns: Columns,
    lines: Sequence[Line],
    load: Callable[[], Iterable[Line]],
    sleep: Callable[[float], object],
) -> None:
    from rich.live import Live

    overflow: Literal["ellipsis"] = "ellipsis"
    with Live(console=data_console(), auto_refresh=False, vertical_overflow=overflow) as live:
        while True:
            live.update(make_table(columns.of(form), [line.cells(form) for line in lines]), refresh=True)
            sleep(_EVERY_S)
            lines = list(load())


def _print_changes(
    form: Format,
    columns: Columns,
    lines: Sequence[Line],
    load: Callable[[], Iterable[Line]],
    sleep: Callable[[float], object],
) -> None:
    seen: dict[str, dict[str, Any]] = {}
    heading = True
    while True:
        changed = [line for line in lines if seen.get(line.name) != line.document]
        if changed or heading:
            _print(form, columns.of(form), changed, lines, heading=heading)
        heading = False
        seen = {line.name: line.document for line in lines}
        sleep(_EVERY_S)
        lines = list(load())


def _print(
    form: Format, columns: Sequence[str], changed: Sequence[Line], lines: Sequence[Line], *, heading: bool
) -> None:
    """Lines of JSON, documents of YAML, names, or rows below headings that stand there once."""
    if form is Format.JSON:
        for line in changed:
            emit_json(line.document, one_line=True)
    elif form is Format.YAML:
        import yaml

        yaml.safe_dump_all([line.document for line in changed], sys.stdout, explicit_start=True, sort_keys=False)
    elif form is Format.NAME:
        sys.stdout.writelines(f"{line.name}\n" for line in changed)
    else:
        table = make_table(columns, *([line.cells(form) for line in rows] for rows in (changed, lines)))
        table.show_header = heading
        show(table)
    sys.stdout.flush()
