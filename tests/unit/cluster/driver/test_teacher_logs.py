"""Each shard of each teacher copies what it prints to a file of its own."""

from __future__ import annotations

from pathlib import Path

from attempts import written_attempt

from cluster.driver.teacher_group import TeacherPlan
from cluster.driver.teacher_plan import logged


def no_load(rank: int, world: int):
    raise AssertionError("nothing is loaded here")


def test_shards_of_all_teachers_are_counted_through(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    plans = [TeacherPlan(no_load, 2, 1.0, replicas=2), TeacherPlan(no_load, 1, 1.0, index=1)]
    first, second = logged(plans, attempt)
    assert [path.name for path in first.logs] == [f"teacher-{rank}.log" for rank in range(4)]
    assert [path.name for path in second.logs] == ["teacher-4.log"]
    assert first.logs[0].parent == attempt.path.parent / "logs"
