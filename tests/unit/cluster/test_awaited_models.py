"""A job that waits for another's model: named by its alias before it is there, pinned when it comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import FakeDriver, World

from cluster import wishes
from cluster.awaited_models import from_dependency
from cluster.errors import Conflict
from cluster.lifecycle import State
from cluster.store.records import Change
from cluster.wire import job_to_proto

TEACHER: dict[str, Any] = {"publish": {"model": "teacher", "alias": "best"}}


@pytest.mark.parametrize(
    ("model", "publish", "expected"),
    [
        ("teacher@best", {"model": "teacher", "alias": "best"}, ["teacher@best"]),
        ("teacher@best", {"model": "teacher", "alias": "other"}, []),
        ("teacher@best", {"model": "teacher", "alias": None}, []),
        ("teacher@3", {"model": "teacher", "alias": "best"}, []),
        ("teacher", {"model": "teacher", "alias": "best"}, []),
        ("teacher@best", None, []),
    ],
)
def test_only_the_alias_that_is_published_is_waited_for(model: str, publish: Any, expected: list[str]) -> None:
    spec = {"teachers": [{"model": model}], "student": {"config": {}, "model": None}}
    assert from_dependency(spec, {"publish": publish}) == expected


def test_a_student_and_every_teacher_may_be_waited_for() -> None:
    spec = {"teachers": [{"model": "a@x"}, {"model": "b@x"}], "student": {"model": "a@x"}}
    assert from_dependency(spec, {"publish": {"model": "a", "alias": "x"}}) == ["a@x", "a@x"]


async def run_to_its_end(world: World, uid: str) -> None:
    await world.rounds(2)
    driver = FakeDriver(world, world.submitted(uid)[-1])
    await driver.heartbeat()
    await driver.report(driver.record("SUCCEEDED", model_path=driver.attempt["publish_dir"]))
    driver.exit()


async def test_it_gets_the_very_version_that_the_other_publishes(wide: World) -> None:
    """There is an older one behind the alias, and a newer one before it begins."""
    await run_to_its_end(wide, wide.create("old", **TEACHER))
    teacher = wide.create("teacher", **TEACHER)
    student = wide.create("student", teachers=[{"model": "teacher@best"}], schedule={"depends_on": [teacher]})
    wide.wish(student, wishes.pause, "not yet")
    before = wide.job(student)
    await run_to_its_end(wide, teacher)
    assert wide.job(student).resource_version > before.resource_version, "it is another content than before"
    with pytest.raises(Conflict):
        wide.store.transition(before, Change("UPDATED", "decided on what it was"))
    *_, event = wide.store.job_events(student)
    assert (event.reason, event.message) == ("MODEL_CAME", f"teacher@best = teacher@2, published by {teacher}")
    assert event.job.resolved_models == {"teacher@best": "teacher@2"}
    assert wide.job(student).resolved_models == {"teacher@best": "teacher@2"}
    assert dict(job_to_proto(wide.job(student)).resolved_models) == {"teacher@best": "teacher@2"}
    await run_to_its_end(wide, wide.create("new", **TEACHER))
    wide.wish(student, wishes.resume)
    await wide.rounds(2)
    assert wide.state(student) is State.STARTING
    attempt = json.loads((wide.settings.job_dir(student) / "attempts" / "1" / "attempt.json").read_text())
    assert attempt["models"]["teacher@best"]["reference"] == "teacher@2"
