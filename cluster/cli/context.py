"""`athanor context`: list, use, set, show, delete. Several installations under names, in ~/.config/athanor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from cluster.access import Access, Contexts, find_access
from cluster.cli.output import Format, FormatOption, emit, print_fields, print_table, say

app = typer.Typer(help="Contexts: addresses and tokens of several installations.", no_args_is_help=True)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the context.")]


@app.command("list")
def list_contexts(form: FormatOption = Format.TABLE) -> None:
    """List contexts; * marks the one in use."""
    contexts = Contexts.load()
    if not contexts.named:
        say("no contexts; commands go to the local cluster")
    rows = [
        ("*" if name == contexts.in_use else "", name, access.address, access.project)
        for name, access in sorted(contexts.named.items())
    ]
    emit(
        form,
        [{"name": name, **_shown(access)} for name, access in sorted(contexts.named.items())],
        table=lambda: print_table(("", "NAME", "ADDRESS", "PROJECT"), rows),
        names=sorted(contexts.named),
    )


@app.command()
def use(name: Annotated[str, typer.Argument(metavar="NAME", help="Empty: the local cluster again.")] = "") -> None:
    """Take a context for the commands that follow."""
    Contexts.load().use(name).save()
    say(f"commands go to {name or 'the local cluster'} now")


@app.command("set")
def set_context(
    name: NameArgument,
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Of its control plane.")] = "",
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token.")] = None,
    token_stdin: Annotated[bool, typer.Option("--token-stdin", help="Read the token from stdin and keep it.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(help="By which its certificate is known.")] = None,
    client_cert: Annotated[Path | None, typer.Option(help="What we show, where it asks for that.")] = None,
    client_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    project: Annotated[str, typer.Option(help="Where jobs go that name none.")] = "",
) -> None:
    """Make or change a context; what is not given stays. The first one is taken into use."""
    if not _NAME.fullmatch(name):
        raise typer.BadParameter(f"{name!r} is no name; write letters, digits, '.', '_' and '-'", param_hint="NAME")
    contexts = Contexts.load()
    given = Access(
        address=address,
        token=typer.get_text_stream("stdin").readline().strip() if token_stdin else "",
        project=project,
        **{key: str(path.expanduser().absolute()) for key, path in _paths(token_file, tls_ca, client_cert, client_key)},
    )
    access = given.or_else(contexts.named.get(name, Access()))
    if not access.address:
        raise typer.BadParameter("a new context needs an address", param_hint="--address")
    from cluster.channel import check_address  # loads gRPC

    check_address(access.address)
    changed = contexts.with_context(name, access)
    changed.save()
    use = "it is in use" if changed.in_use == name else f"take it with: athanor context use {name}"
    say(f"context {name} goes to {access.address}; {use}")


@app.command()
def delete(name: NameArgument) -> None:
    """Forget a context."""
    Contexts.load().without(name).save()
    say(f"context {name} is forgotten")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Without it: what commands use now.")] = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Show a context, without its token; or where commands go now, of flags, environment, context and local cluster."""
    access = Contexts.load().get(name) if name else find_access()
    shown = _shown(access)
    fields = {key.replace("_", " ").capitalize(): value for key, value in shown.items()}
    emit(form, shown, table=lambda: print_fields(fields), names=[access.address])


def _paths(
    token_file: Path | None, tls_ca: Path | None, client_cert: Path | None, client_key: Path | None
) -> list[tuple[str, Path]]:
    named = {"token_file": token_file, "tls_ca": tls_ca, "client_cert": client_cert, "client_key": client_key}
    return [(key, path) for key, path in named.items() if path is not None]


def _shown(access: Access) -> dict[str, str]:
    """Of a token only the public part."""
    public = "_".join(access.token.split("_")[:2]) + "_..." if access.token else ""
    return {**vars(access), "token": public}
