"""`athanor audit`: list, verify."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import spans
from cluster.cli.connect import AddressOption, connect
from cluster.cli.exit_codes import ExitCode
from cluster.cli.lists import at_most
from cluster.cli.output import Format, FormatOption, as_document, emit, print_table, say

if TYPE_CHECKING:
    from athanor.v1 import audit_service_pb2

app = typer.Typer(help="The audit log: who asked for what, and what came of it.", no_args_is_help=True)

_COLUMNS = ("NUMBER", "TIME", "ACTOR", "METHOD", "RESOURCE", "RESULT", "PEER", "REQUEST")
_NEWER = 1000  # entries that may be written while we look


@app.command("list")
def list_entries(
    actor: Annotated[str, typer.Option(help="Only what the token of this name did.")] = "",
    resource: Annotated[
        str, typer.Option(help="Only about what begins with this, e.g. a job's uid, or bot@champion.")
    ] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="Only from then on: 2h or 7d ago, or a time.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 100,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """List calls that change something, refused ones too, newest first."""
    with connect(address) as client:
        found = client.list_audit_entries(actor=actor, resource=resource, since=_moment(since), limit=limit + 1)
        entries = list(at_most(limit, found))
    if not entries:
        say("no such entries")
    emit(
        form,
        [as_document(entry) for entry in entries],
        table=lambda: print_table(_COLUMNS, [_row(entry) for entry in entries]),
        names=[str(entry.number) for entry in entries],
    )


@app.command()
def verify(
    kept: Annotated[
        str, typer.Option(metavar="NUMBER:HASH", help="What an earlier `verify` printed: must be there still.")
    ] = "",
    form: FormatOption = Format.NAME,
    address: AddressOption = "",
) -> None:
    """Compute the chain of hashes anew. Prints NUMBER:HASH of the newest entry: keep it somewhere else."""
    with connect(address) as client:
        found = client.verify_audit_log()
        if kept:
            number, _, sealed = kept.partition(":")
            if not number.isdigit() or not sealed:
                raise typer.BadParameter("write NUMBER:HASH, as `athanor audit verify` prints it", param_hint="--kept")
            newer = max(found.num_entries - int(number), 0) + _NEWER
            listed = client.list_audit_entries(limit=newer)
            entry = next((each for each in listed if each.number <= int(number)), None)
            if entry is None or (entry.number, entry.hash) != (int(number), sealed):
                say(f"error: [AUDIT_ALTERED] entry {number} is not the one that was kept: the log was cut or rewritten")
                raise typer.Exit(ExitCode.ERROR)
    say(f"{found.num_entries} entries fit together")
    head = f"{found.num_entries}:{found.head}"
    emit(form, as_document(found), table=lambda: print_table(("HEAD",), [(head,)]), names=[head])


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    ago = spans.read(text)
    if ago is not None:
        return datetime.now(UTC) - ago
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        words = f"{text} is no time; write 30m, 2h or 7d, or 2026-11-01T08:00:00Z"
        raise typer.BadParameter(words, param_hint="--since") from error


def _row(entry: audit_service_pb2.AuditEntry) -> tuple[str, ...]:
    moment = entry.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")
    method = entry.method.rpartition(".")[2]
    result = " ".join(filter(None, (entry.code, entry.reason)))
    number = str(entry.number)
    return (number, moment, entry.actor, method, entry.resource, result, entry.peer, entry.request_id)
