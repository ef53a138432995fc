"""`athanor token`: create, list, revoke, whoami."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import spans
from cluster.cli.connect import AddressOption, connect
from cluster.cli.output import Format, FormatOption, age, as_document, as_fields, emit, print_fields, print_table, say

if TYPE_CHECKING:
    from athanor.v1 import options_pb2, token_service_pb2
    from rich.text import Text

app = typer.Typer(help="Tokens: who may do what, where, until when.", no_args_is_help=True)

_COLUMNS = ("ID", "NAME", "ROLE", "PROJECTS", "STATE", "LAST USE", "AGE")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is for; stands in the audit log.")],
    role: Annotated[str, typer.Option(help="viewer, submitter or admin.")] = "submitter",
    project: Annotated[list[str] | None, typer.Option(help="Only here; repeatable. All without it.")] = None,
    ttl: Annotated[str, typer.Option(help="Until it expires, e.g. 12h or 90d; for ever without it.")] = "",
    file: Annotated[Path | None, typer.Option(help="Write it there, 0600, instead of to stdout.")] = None,
    form: FormatOption = Format.NAME,
    address: AddressOption = "",
) -> None:
    """Make a token. It is shown this once: the control plane keeps only a hash."""
    with connect(address) as client:
        made = client.create_token(name, _role(role), projects=project or (), ttl=_duration(ttl))
    if file is not None:
        from trainer.atomic import write_text

        write_text(file, f"{made.secret}\n", mode=0o600)
        say(f"token {made.token.id} is in {file}; use it with ATHANOR_TOKEN_FILE={file}")
        return
    emit(form, as_document(made), table=lambda: print_fields(_fields(made)), names=[made.secret])
    say("keep it: it cannot be shown again")


@app.command("list")
def list_tokens(form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """List tokens, newest first; revoked and expired ones too."""
    with connect(address) as client:
        tokens = list(client.list_tokens())
    emit(
        form,
        [as_document(token) for token in tokens],
        table=lambda: print_table(_COLUMNS, [_row(token) for token in tokens]),
        names=[token.id for token in tokens],
    )


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Of the token, or the name of the one that is in use.")],
    address: AddressOption = "",
) -> None:
    """Take a token out of use at once."""
    with connect(address) as client:
        named = (each.id for each in client.list_tokens() if each.name == token_id and _state(each) != "revoked")
        token = client.revoke_token(next(named, token_id))
    say(f"token {token.id} ({token.name}) is revoked")


@app.command()
def whoami(form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """Show the token that this command is using."""
    with connect(address) as client:
        token = client.get_caller()
    emit(form, as_document(token), table=lambda: print_fields(as_fields(_COLUMNS, _row(token))), names=[token.name])


def _role(word: str) -> options_pb2.Role.ValueType:
    from athanor.v1 import options_pb2

    known = [name.removeprefix("ROLE_").lower() for name in options_pb2.Role.keys()[1:]]
    if word.lower() not in known:
        raise typer.BadParameter(f"{word} is no role; there are {', '.join(known)}", param_hint="--role")
    return options_pb2.Role.Value(f"ROLE_{word.upper()}")


def _duration(text: str) -> timedelta | None:
    if not text:
        return None
    found = spans.read(text)
    if found is None:
        raise typer.BadParameter(f"{text} is no duration; write 30m, 12h or 90d", param_hint="--ttl")
    return found


def _fields(made: token_service_pb2.CreateTokenResponse) -> dict[str, str | Text]:
    return {**as_fields(_COLUMNS, _row(made.token)), "Token": made.secret}


def _row(token: token_service_pb2.Token) -> tuple[str, ...]:
    from athanor.v1 import options_pb2

    role = options_pb2.Role.Name(token.role).removeprefix("ROLE_").lower()
    projects = ", ".join(token.projects) or "all"
    return (token.id, token.name, role, projects, _state(token), age(token.last_use_time), age(token.create_time))


def _state(token: token_service_pb2.Token) -> str:
    if token.HasField("revoke_time"):
        return "revoked"
    if not token.HasField("expire_time"):
        return "in use"
    from datetime import UTC, datetime

    end = token.expire_time.ToDatetime(UTC)
    return "expired" if end < datetime.now(UTC) else f"until {end:%Y-%m-%d %H:%M}Z"
