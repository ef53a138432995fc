"""What Ray's dashboard tells of the whole cluster, read into values: submitted jobs, and what is taken.

Asks nothing itself. Ray's own figures of what is free on a node come seconds late and as prose, so they are not used:
what placement groups and actors have reserved is summed instead. Tasks outside of both (none is ours) are not in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.capacity import Resources
from cluster.policy import View

ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
ALIVE_ACTORS = "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
Json = Mapping[str, Any]


@dataclass(frozen=True)
class ListedJob:
    """A submitted job, whoever submitted it."""

    ray_job_id: str
    view: View
    metadata: Mapping[str, str]


def listed_jobs(rows: Iterable[Json]) -> list[ListedJob]:
    """Of `/api/jobs/`; drivers that connected by themselves are no submitted jobs."""
    return [
        ListedJob(
            str(row["submission_id"]),
            View.ENDED if row["status"] in ENDED else View.ALIVE,
            {str(key): str(value) for key, value in (row.get("metadata") or {}).items()},
        )
        for row in rows
        if row["type"] == "SUBMISSION"
    ]


def sum_reserved(groups: Iterable[Json], actors: Iterable[Json]) -> dict[str, Resources]:
    """Node id -> what is reserved there, of `/api/v0/placement_groups` and `/api/v0/actors` with details."""
    found: dict[str, Resources] = defaultdict(lambda: Resources(0.0))
    for node_id, asked in (*_in_bundles(groups), *_by_actors(actors)):
        before = found[node_id]
        found[node_id] = Resources(before.cpus + asked.get("CPU", 0.0), before.gpus + asked.get("GPU", 0.0))
    return dict(found)


def _in_bundles(groups: Iterable[Json]) -> Iterator[tuple[str, Mapping[str, float]]]:
    for group in groups:
        if group["state"] != "REMOVED":
            yield from ((each["node_id"], each["unit_resources"]) for each in group["bundles"] or () if each["node_id"])


def _by_actors(actors: Iterable[Json]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Those that live in a placement group take nothing beside it."""
    for actor in actors:
        if actor["state"] == "ALIVE" and not actor["placement_group_id"] and actor["node_id"]:
            yield actor["node_id"], actor["required_resources"] or {}
