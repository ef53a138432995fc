"""`athanor model alias` and `athanor model rollback`: where names point, where they pointed, back, and away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cluster.cli.completion import complete_model
from cluster.cli.connect import AddressOption, connect
from cluster.cli.output import Format, FormatOption, age, as_document, emit, print_table, say

if TYPE_CHECKING:
    from athanor.v1 import model_service_pb2


class _SetsByDefault(TyperGroup):
    """`alias bot@3 champion` means `alias set bot@3 champion`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named or not args else ["set", *args])


app = typer.Typer(help="Aliases: set, history, delete.", cls=_SetsByDefault, no_args_is_help=True)
_COLUMNS = ("VERSION", "BEFORE", "CAUSE", "BY", "AGE")
ReferenceArgument = Annotated[
    str, typer.Argument(metavar="NAME@ALIAS", help="A model and one of its aliases.", autocompletion=complete_model)
]
ExpectedOption = Annotated[
    int | None, typer.Option(help="Only if the alias points at this version now; 0: only if there is none.")
]


@app.command("set")
def set_alias(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME@VERSION", help="The version, or NAME@ALIAS for its version.", autocompletion=complete_model
        ),
    ],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias that shall point there.")],
    expected: ExpectedOption = None,
    address: AddressOption = "",
) -> None:
    """Point an alias at a version."""
    with connect(address) as client:
        version = client.get_model(reference)
        moved = client.set_alias(version.name, alias, version.version, expected_version=expected)
    say(f"{moved.name}@{alias} is {moved.name}@{moved.version} now")


@app.command()
def history(reference: ReferenceArgument, form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """Show where an alias pointed, newest first."""
    name, alias = split(reference)
    with connect(address) as client:
        moves = list(client.list_alias_history(name, alias))
    emit(
        form,
        [as_document(move) for move in moves],
        table=lambda: print_table(_COLUMNS, [_row(move) for move in moves]),
        names=[f"{name}@{move.version}" for move in moves if move.version],
    )


@app.command()
def delete(
    reference: ReferenceArgument,
    expected: Annotated[int | None, typer.Option(help="Only if the alias points at this version now.")] = None,
    address: AddressOption = "",
) -> None:
    """Take an alias away. Its versions stay, and so does its history."""
    name, alias = split(reference)
    with connect(address) as client:
        client.delete_alias(name, alias, expected_version=expected)
    say(f"{name}@{alias} is no more")


def rollback(reference: ReferenceArgument, expected: ExpectedOption = None, address: AddressOption = "") -> None:
    """Point an alias at the version it pointed at before; again, and it goes one further back."""
    name, alias = split(reference)
    with connect(address) as client:
        if expected is None:  # so that an answer that is lost and asked for again does not go back twice
            expected = client.get_model(reference).version
        moved = client.rollback_alias(name, alias, expected_version=expected)
    say(f"{name}@{alias} is {name}@{moved.version} again")


def split(reference: str) -> tuple[str, str]:
    """Name and alias."""
    name, at, alias = reference.partition("@")
    if not at or not alias or alias[0].isdigit():
        raise typer.BadParameter(f"{reference} names no alias; write name@alias", param_hint="NAME@ALIAS")
    return name, alias


def _row(move: model_service_pb2.AliasMove) -> tuple[str, ...]:
    before = str(move.previous_version) if move.previous_version else ""
    return (str(move.version) if move.version else "none", before, move.cause, move.actor, age(move.create_time))
