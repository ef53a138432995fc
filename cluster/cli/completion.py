"""What the shell offers after the Tab key: names that the control plane knows. Says nothing when it cannot ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.client import AthanorClient

_MOST = 100


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """Uids of the newest jobs, with state."""

    def jobs(client: AthanorClient) -> Iterable[tuple[str, str]]:
        from cluster.cli.job_table import state_of

        return ((job.uid, f"{job.kind} {state_of(job)}") for job in client.list_jobs(limit=_MOST))

    return _offered(jobs, incomplete)


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """Versions and aliases of models."""

    def models(client: AthanorClient) -> Iterable[tuple[str, str]]:
        for version in client.list_models(limit=_MOST):
            yield f"{version.name}@{version.version}", ", ".join(version.aliases)
            yield from ((f"{version.name}@{alias}", f"version {version.version}") for alias in version.aliases)

    return _offered(models, incomplete)


def complete_deployment(incomplete: str) -> list[tuple[str, str]]:
    """Names of deployments."""

    def deployments(client: AthanorClient) -> Iterable[tuple[str, str]]:
        return ((deployment.name, deployment.resolved_model) for deployment in client.list_deployments())

    return _offered(deployments, incomplete)


def complete_state(incomplete: str) -> list[str]:
    """States of jobs, in lower case."""
    from cluster.lifecycle import State

    return [state.lower() for state in State if state.lower().startswith(incomplete.lower())]


def _offered(ask: Callable[[AthanorClient], Iterable[tuple[str, str]]], incomplete: str) -> list[tuple[str, str]]:
    from cluster.cli.connect import connect
    from cluster.errors import ClusterError

    try:
        with connect("") as client:
            return [found for found in islice(ask(client), _MOST) if found[0].startswith(incomplete)]
    except ClusterError:
        return []
