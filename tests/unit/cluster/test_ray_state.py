"""What Ray's dashboard says, in its own words as they were seen of Ray 2.60, becomes jobs and sums."""

from __future__ import annotations

import pytest

from cluster.capacity import Resources
from cluster.policy import View
from cluster.ray_state import ListedJob, listed_jobs, sum_reserved

GROUP = {
    "state": "CREATED",
    "bundles": [
        {"unit_resources": {"CPU": 1.0, "GPU": 0.5}, "node_id": "a"},
        {"unit_resources": {"CPU": 2.0}, "node_id": "b"},
        {"unit_resources": {"CPU": 8.0}, "node_id": None},
    ],
}
ACTOR = {"state": "ALIVE", "placement_group_id": None, "node_id": "a", "required_resources": {"CPU": 0.25}}


def test_bundles_and_actors_beside_them_are_summed_by_node() -> None:
    groups = [GROUP, {**GROUP, "state": "REMOVED"}, {"state": "PENDING", "bundles": None}]
    actors = [
        ACTOR,
        {**ACTOR, "placement_group_id": "ab"},
        {**ACTOR, "state": "DEAD"},
        {**ACTOR, "node_id": None},
        {**ACTOR, "required_resources": {}},
        {**ACTOR, "required_resources": {"GPU": 1.0, "custom": 3.0}},
    ]
    assert sum_reserved(groups, actors) == {"a": Resources(1.25, 1.5), "b": Resources(2.0, 0.0)}
    assert sum_reserved([], []) == {}


@pytest.mark.parametrize(
    ("status", "view"),
    [("PENDING", View.ALIVE), ("RUNNING", View.ALIVE), ("FAILED", View.ENDED), ("STOPPED", View.ENDED)],
)
def test_submitted_jobs_are_listed(status: str, view: View) -> None:
    row = {"type": "SUBMISSION", "submission_id": "x-1", "status": status, "metadata": {"a": "1"}}
    driver = {"type": "DRIVER", "submission_id": None, "status": "RUNNING", "metadata": None}
    bare = {**row, "submission_id": "x-2", "metadata": None}
    assert listed_jobs([row, driver, bare]) == [ListedJob("x-1", view, {"a": "1"}), ListedJob("x-2", view, {})]
