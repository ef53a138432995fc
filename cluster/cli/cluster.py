"""`athanor cluster`: info, nodes. And `athanor queue`: who waits, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.connect import AddressOption, connect
from cluster.cli.lists import Columns, Line, WatchOption, show_list
from cluster.cli.output import Format, FormatOption, age, as_document, coloured, emit, print_fields, say

if TYPE_CHECKING:
    from athanor.v1 import cluster_service_pb2
    from rich.text import Text

app = typer.Typer(help="The installation: where it runs, and on what.", no_args_is_help=True)

_NODES = Columns(
    ("ADDRESS", "STATE", "CPUS", "FREE", "GPUS", "FREE GPUS"),
    ("ADDRESS", "STATE", "CPUS", "FREE", "GPUS", "FREE GPUS", "ID"),
)
_QUEUE = Columns(
    ("POSITION", "JOB", "PROJECT", "PRIORITY", "REASON", "SINCE"),
    ("POSITION", "JOB", "PROJECT", "PRIORITY", "REASON", "SINCE", "WORDS"),
)


@app.command()
def info(form: FormatOption = Format.TABLE, address: AddressOption = "") -> None:
    """Show versions and addresses."""
    with connect(address) as client:
        found = client.server_info()
        reached = client.address
    ray = f"{found.ray_version or 'never seen'}{'' if found.ray_reachable else ', cannot be reached now'}"
    fields: dict[str, str | Text] = {
        "Control plane": f"{reached}, Athanor {found.version}",
        "Contract": ", ".join(found.api_versions),
        "Ray": ray,
        "Dashboard": found.ray_dashboard_url,
        "Served models": found.serve_url,
        "Storage": found.storage_path,
        "Store": found.store,
        "Up": age(found.start_time),
    }
    emit(form, as_document(found), table=lambda: print_fields(fields), names=[reached])


@app.command()
def nodes(form: FormatOption = Format.TABLE, watch: WatchOption = False, address: AddressOption = "") -> None:
    """List Ray's machines, the head first, and what of them nobody has reserved."""
    with connect(address) as client:
        show_list(form, _NODES, lambda: (_node(node) for node in client.list_nodes()), watch=watch)


def queue(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    form: FormatOption = Format.TABLE,
    watch: WatchOption = False,
    address: AddressOption = "",
) -> None:
    """List the jobs that wait, the next one first, and what each waits for."""
    with connect(address) as client:

        def load() -> Iterable[Line]:
            found = client.get_queue(limit=limit)
            if found.num_waiting > len(found.jobs) and not watch:
                say(f"{len(found.jobs)} of {found.num_waiting} jobs that wait")
            return [_queued(job) for job in found.jobs]

        show_list(form, _QUEUE, load, watch=watch, nothing="nobody waits")


def _node(node: cluster_service_pb2.Node) -> Line:
    state = coloured("ALIVE" if node.alive else "DEAD")
    row: tuple[str | Text, ...] = (
        node.address,
        state,
        f"{node.cpus:g}",
        f"{node.free_cpus:g}",
        f"{node.gpus:g}",
        f"{node.free_gpus:g}",
    )
    return Line(node.id, as_document(node), row, (*row, node.id))


def _queued(job: cluster_service_pb2.QueuedJob) -> Line:
    row = (str(job.position), job.uid, job.project, str(job.priority), job.reason, age(job.since))
    return Line(job.uid, as_document(job), row, (*row, job.message))
