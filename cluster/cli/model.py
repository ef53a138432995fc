"""`athanor model`: list, get, path, create, delete, verify, download. Aliases are in model_alias.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli import model_alias
from cluster.cli.completion import complete_model
from cluster.cli.connect import AddressOption, connect
from cluster.cli.exit_codes import ExitCode
from cluster.cli.lists import at_most
from cluster.cli.output import (
    Format,
    FormatOption,
    age,
    as_document,
    as_fields,
    emit,
    print_fields,
    print_line,
    print_table,
    say,
)

if TYPE_CHECKING:
    from athanor.v1 import model_service_pb2
    from rich.text import Text

app = typer.Typer(help="Models: versions, and the aliases that point at them.", no_args_is_help=True)

app.add_typer(model_alias.app, name="alias")
app.command()(model_alias.rollback)

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="name@alias, name@version, or name.", autocompletion=complete_model),
]
_COLUMNS = ("MODEL", "ALIASES", "PARAMETERS", "EXACT MATCH", "TEACHERS", "JOB", "AGE")


@app.command("list")
def list_models(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Only versions of this model.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """List model versions, by name, newest first."""
    with connect(address) as client:
        versions = list(at_most(limit, client.list_models(name, limit=limit + 1)))
    if not versions:
        say(f"no models of the name {name}" if name else "no models")
    emit(
        form,
        [as_document(version) for version in versions],
        table=lambda: print_table(_COLUMNS, [_row(version) for version in versions]),
        names=[_reference(version) for version in versions],
    )


@app.command()
def get(
    reference: ModelArgument,
    form: FormatOption = Format.TABLE,
    address: AddressOption = "",
) -> None:
    """Show one version: where it lies, and where it came from."""
    with connect(address) as client:
        version = client.get_model(reference)
    emit(form, as_document(version), table=lambda: _print(version), names=[_reference(version)])


@app.command()
def path(reference: ModelArgument, address: AddressOption = "") -> None:
    """Print the directory of a version on the cluster's storage, for `from_pretrained`."""
    with connect(address) as client:
        version = client.get_model(reference)
    print_line(version.path)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model, new or not.")],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Directory on the cluster's storage, as save_pretrained leaves it.")
    ],
    description: Annotated[str, typer.Option(help="Free words, kept with the version.")] = "",
    request_id: Annotated[str, typer.Option(help="Asked again with the same one, nothing is made twice.")] = "",
    form: FormatOption = Format.NAME,
    address: AddressOption = "",
) -> None:
    """Make a version of a model directory: it is checked, copied, and hashed. Safetensors alone."""
    with connect(address) as client:
        version = client.create_model_version(name, path, description, request_id=request_id or None)
    emit(form, as_document(version), table=lambda: _print(version), names=[_reference(version)])
    say(f"it is in {version.path}; `athanor model alias set {_reference(version)} ALIAS` gives it a name that moves")


@app.command()
def delete(
    references: Annotated[
        list[str], typer.Argument(metavar="NAME@VERSION", help="Versions.", autocompletion=complete_model)
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    address: AddressOption = "",
) -> None:
    """Forget versions and their files. One that an alias, a deployment or a waiting job needs is kept."""
    with connect(address) as client:
        words = f"delete {', '.join(references)} with all files?"
        if not yes and not (sys.stdin.isatty() and typer.confirm(words, err=True)):
            say("nothing was deleted; --yes does not ask")
            raise typer.Exit(ExitCode.ERROR)
        for reference in references:
            client.delete_model_version(reference)
            say(f"{reference} is deleted")


@app.command()
def verify(reference: ModelArgument, form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """Have the control plane read every file of a version and compare it with what was published."""
    with connect(address) as client:
        read = client.verify_model_version(reference)
    name = _reference(read.model_version)
    fields = {"Model": name, "Files": str(read.num_files), "Bytes": f"{read.num_bytes:,}", "State": "as published"}
    emit(form, as_document(read), table=lambda: print_fields(fields), names=[name])


@app.command()
def download(
    reference: ModelArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to; must not be there, or be empty.")],
    file: Annotated[str, typer.Option(help="Only this one, e.g. config.json.")] = "",
    address: AddressOption = "",
) -> None:
    """Bring a version here, checked by its hashes; run again it goes on where it was cut off. Prints where it is."""
    with connect(address) as client:
        print_line(str(client.download_model_version(reference, directory, file=file)))


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
    more: dict[str, str | Text] = {
        "Description": version.description,
        "Path": version.path,
        "Manifest": f"sha256:{version.manifest_sha256}",
    }
    print_fields(fields | more)
