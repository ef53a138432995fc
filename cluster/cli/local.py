"""`athanor up`, `down`, `doctor`, `control-plane`, `version`: the cluster of this machine."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster import __version__
from cluster.cli.exit_codes import ExitCode
from cluster.cli.output import Format, FormatOption, data_console, emit, emit_json, print_fields, print_line, say

if TYPE_CHECKING:
    from cluster.local import UpResult

_LIVE = "NOT (state = SUCCEEDED OR state = FAILED OR state = CANCELLED)"
_MARKS = {"ok": "green", "warn": "yellow", "fail": "red"}


def add_to(app: typer.Typer) -> None:
    """The commands without a noun."""
    app.command()(up)
    app.command()(down)
    app.command()(doctor)
    app.command("control-plane")(control_plane)
    app.command()(version)


def up(
    ray_address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Use this running Ray instead of starting one.")
    ] = None,
    ray_dashboard_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Its dashboard; goes with --ray-address.")
    ] = None,
    num_cpus: Annotated[
        int | None, typer.Option(min=1, help="Logical CPUs of our own Ray; at least 8 by default.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Control plane; 127.0.0.1:50051 or a free port by default.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Start the local cluster: Ray with its dashboard, and the control plane. Mends one that is half dead."""
    from cluster.home import Home
    from cluster.local import UpOptions
    from cluster.local import up as bring_up

    home = Home.from_env()
    result = bring_up(home, UpOptions(ray_address, ray_dashboard_url, num_cpus, listen), say)
    say("up" if result.started else "already up")
    emit(
        form,
        result.record.as_document(),
        table=lambda: _print_record(result, home.admin_token_path),
        names=[result.record.control_plane],
    )


def down() -> None:
    """Stop what `up` started, and nothing else. Jobs, models and reports stay."""
    from cluster.home import Home
    from cluster.local import down as take_down

    home = Home.from_env()
    num_live = _num_live_jobs()
    ended = take_down(home, say)
    say(f"down; data stays in {home.root}" if ended else "nothing was up")
    if ended and num_live:
        jobs = "one job has" if num_live == 1 else f"{num_live} jobs have"
        say(f"{jobs} not ended: from where their last checkpoints are they go on at the next `athanor up`")


def _num_live_jobs() -> int:
    """Of the local cluster; none where its control plane cannot be asked."""
    from cluster.access import local_access
    from cluster.client import AthanorClient
    from cluster.errors import ClusterError

    try:
        access = local_access()
        if not access.address:
            return 0
        with AthanorClient(access.address, **access.for_client(), patience_s=0.0) as client:
            return sum(1 for _ in client.list_jobs(filter=_LIVE, limit=1000))
    except ClusterError:
        return 0


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Check what this machine needs, and say how to mend what is missing. Exit code 1 when something must be mended."""
    from cluster.doctor import Status, examine, is_fit
    from cluster.home import Home

    findings = examine(Home.from_env())
    if as_json:
        emit_json({"ok": is_fit(findings), "checks": [asdict(finding) for finding in findings]})
    else:
        console = data_console()
        for finding in findings:
            console.print(f"{finding.status:<5}", style=_MARKS[finding.status], end=" ")
            console.print(f"{finding.name:<14} {finding.message}")
            if finding.status is not Status.OK and finding.mend:
                console.print(f"{'':<20} -> {finding.mend}")
    raise typer.Exit(ExitCode.OK if is_fit(findings) else ExitCode.ERROR)


def control_plane() -> None:
    """Run the control plane alone in the foreground; settings come from ATHANOR_* variables."""
    from cluster.server import serve
    from cluster.settings import Settings

    serve(Settings.from_env())


def version(form: FormatOption = Format.TABLE) -> None:
    """Print the version."""
    document = {"athanor": __version__, "python": sys.version.split()[0]}
    emit(form, document, table=lambda: print_fields(document), names=[__version__])


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"athanor {__version__}")
        raise typer.Exit


def version_option(
    wanted: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What every command line of this kind knows; the help is the application's."""
    del wanted


def _print_record(result: UpResult, admin_token: Path) -> None:
    record = result.record
    fields = {
        "Control plane": record.control_plane,
        "Dashboard": record.dashboard_url,
        "Ray": record.ray_address,
        "Serving": record.serve_url,
        "Ray's token": record.ray_token_path or "",
        "Admin token": str(admin_token) if admin_token.exists() else "",
    }
    print_fields(fields)
    if record.ray_token_path and Path(record.ray_token_path).exists():
        say("the dashboard asks for Ray's token; commands on this machine find theirs. Stop with: athanor down")
