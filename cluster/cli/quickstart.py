"""`athanor quickstart`: the whole way on this machine, from nothing to an answer of a served student."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.cli.output import emit_json


def add_to(app: typer.Typer) -> None:
    app.command()(quickstart)


def quickstart(
    as_json: Annotated[bool, typer.Option("--json", help="The figures as one JSON document on stdout.")] = False,
    take_down: Annotated[bool, typer.Option("--down", help="Stop the cluster afterwards.")] = False,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="Logical CPUs of Ray, when it is not up yet.")] = None,
) -> None:
    """Teach a teacher, distil a student, measure it, serve it, ask it. About five minutes on two CPU cores."""
    from cluster.home import Home
    from cluster.quickstart.run import run_quickstart

    document = run_quickstart(Home.from_env(), num_cpus=num_cpus, take_down=take_down)
    if as_json:
        emit_json(document)
