"""`athanor model`: list, get, alias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.connect import AddressOption, connect
from cluster.cli.output import Format, FormatOption, age, as_document, as_fields, emit, print_fields, print_table, say

if TYPE_CHECKING:
    from athanor.v1 import model_service_pb2

app = typer.Typer(help="Models: versions, and the aliases that point at them.", no_args_is_help=True)

_COLUMNS = ("MODEL", "ALIASES", "PARAMETERS", "EXACT MATCH", "TEACHERS", "JOB", "AGE")


@app.command("list")
def list_models(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only versions of this model.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """List model versions, by name, newest first."""
    with connect(address) as client:
        versions = list(client.list_models(name, limit=limit))
    emit(
        form,
        [as_document(version) for version in versions],
        table=lambda: print_table(_COLUMNS, [_row(version) for version in versions]),
        names=[_reference(version) for version in versions],
    )


@app.command()
def get(
    reference: Annotated[str, typer.Argument(metavar="MODEL", help="name@alias, name@version, or name.")],
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Show one version: where it lies, and where it came from."""
    with connect(address) as client:
        version = client.get_model(reference)
    emit(form, as_document(version), table=lambda: _print(version), names=[_reference(version)])


@app.command()
def alias(
    reference: Annotated[
        str, typer.Argument(metavar="NAME@VERSION", help="The version, or NAME@ALIAS for its version.")
    ],
    alias: Annotated[str, typer.Argument(help="The alias that shall point there.")],
    expected: Annotated[
        int | None, typer.Option(help="Only if the alias points at this version now; 0: only if there is none.")
    ] = None,
    address: AddressOption = "",
) -> None:
    """Point an alias at a version."""
    with connect(address) as client:
        version = client.get_model(reference)
        moved = client.set_alias(version.name, alias, version.version, expected_version=expected)
    say(f"{moved.name}@{alias} is {_reference(moved)} now")


def _reference(version: model_service_pb2.ModelVersion) -> str:
    return f"{version.name}@{version.version}"


def _row(version: model_service_pb2.ModelVersion) -> tuple[str, ...]:
    metrics = as_document(version).get("metrics") or {}
    exact_match = metrics.get("exact_match")
    return (
        _reference(version),
        ", ".join(version.aliases),
        f"{version.num_parameters:,}",
        f"{exact_match:.1%}" if isinstance(exact_match, float) else "",
        ", ".join(version.teachers),
        version.job_uid,
        age(version.create_time),
    )


def _print(version: model_service_pb2.ModelVersion) -> None:
    fields = as_fields(_COLUMNS, _row(version))
    print_fields(fields | {"Path": version.path, "Manifest": f"sha256:{version.manifest_sha256}"})
