"""`athanor project`: list, set-quota."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.connect import AddressOption, connect
from cluster.cli.lists import Columns, Line, WatchOption, show_list
from cluster.cli.output import Format, FormatOption, as_document, say

if TYPE_CHECKING:
    from athanor.v1 import cluster_service_pb2

app = typer.Typer(help="Projects: what they hold, and what they may.", no_args_is_help=True)
_COLUMNS = Columns(("PROJECT", "RUNNING", "WAITING", "CPUS", "GPUS", "WEIGHT"))


@app.command("list")
def list_projects(form: FormatOption = Format.TABLE, watch: WatchOption = False, address: AddressOption = "") -> None:
    """List projects, each with what it holds of what it may; a project without a limit shows what it holds."""
    with connect(address) as client:
        show_list(form, _COLUMNS, lambda: (_line(project) for project in client.list_projects()), watch=watch)


@app.command()
def set_quota(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="Name of the project.")],
    cpus: Annotated[float | None, typer.Option(help="CPUs at once; no limit without it.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs at once; no limit without it.")] = None,
    running_jobs: Annotated[int | None, typer.Option(help="Jobs at once; no limit without it.")] = None,
    weight: Annotated[float, typer.Option(help="Its share beside other projects.")] = 1.0,
    address: AddressOption = "",
) -> None:
    """Set all that a project may hold at once: what is left out is without limit from now on."""
    from athanor.v1 import cluster_service_pb2

    quota = cluster_service_pb2.Quota(cpus=cpus, gpus=gpus, running_jobs=running_jobs, weight=weight)
    with connect(address) as client:
        changed = client.set_quota(project, quota)
    limits = [_counted(value, name) for name, value in _limits(changed.quota).items()]
    say(f"{changed.name} may hold {', '.join(limits) or 'everything'}; weight {changed.quota.weight:g}")


def _counted(value: float, name: str) -> str:
    """2 CPUs, 1 running job."""
    return f"{value:g} {name.removesuffix('s') if value == 1 else name}"


def _limits(quota: cluster_service_pb2.Quota) -> dict[str, float]:
    """Those that are set."""
    words = {"cpus": "CPUs", "gpus": "GPUs", "running_jobs": "running jobs"}
    return {word: getattr(quota, field) for field, word in words.items() if quota.HasField(field)}  # type: ignore[arg-type]


def _line(project: cluster_service_pb2.Project) -> Line:
    limits = _limits(project.quota)

    def of(held: float, word: str) -> str:
        return f"{held:g} of {limits[word]:g}" if word in limits else f"{held:g}"

    row = (
        project.name,
        of(project.running_jobs, "running jobs"),
        str(project.waiting_jobs),
        of(project.cpus, "CPUs"),
        of(project.gpus, "GPUs"),
        f"{project.quota.weight:g}",
    )
    return Line(project.name, as_document(project), row)
