from __future__ import annotations

from pathlib import Path
from typing import Any

from attempts import SPEC, written_attempt

from cluster.driver.demand import shortage
from cluster.driver.listener import EventTail, write_event
from trainer.spec import FineTuneSpec, parse_spec


def spec(kind: str = "FineTune", **resources: Any) -> FineTuneSpec:
    teachers = {"teachers": [{"model": "/models/t", "shards": 3}]} if kind == "Distill" else {}
    return parse_spec(kind, SPEC | teachers | {"resources": resources})


def test_what_fits_is_not_spoken_of() -> None:
    assert shortage(spec(student={"workers": 2, "cpus_per_worker": 4}), {"CPU": 8.0}) == ""


def test_what_cannot_be_placed_is_told_with_what_there_is() -> None:
    wish = spec(student={"workers": 2, "cpus_per_worker": 4})
    assert shortage(wish, {"CPU": 7.0}) == "waits for 2 × 4 CPUs; the cluster has 7 in all"


def test_teachers_and_gpus_count() -> None:
    wish = spec("Distill", student={"gpus_per_worker": 1}, teacher={"cpus_per_worker": 0.5})
    assert shortage(wish, {"CPU": 2.0}) == (
        "waits for 1 × 1 and 3 × 0.5 CPUs; the cluster has 2 in all; waits for 1 × 1 GPUs; the cluster has 0 in all"
    )


def test_the_drivers_own_events_are_read_with_those_of_its_workers(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    write_event(attempt.path.with_name("events-driver.jsonl"), "RESOURCES_SHORT", "waits")
    assert EventTail(attempt.path.parent).read() == [{"reason": "RESOURCES_SHORT", "message": "waits"}]
