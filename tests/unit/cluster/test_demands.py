"""What specs ask of the cluster, and that they are read once."""

from __future__ import annotations

from typing import Any

from fakes import SPEC

from cluster.capacity import Bundle, Resources
from cluster.demands import Demands, demand_of
from trainer.spec import parse_spec

TEACHERS = [{"model": "a@1", "shards": 2}, {"model": "b@1", "shards": 1, "replicas": 3}]
RESOURCES = {"student": {"workers": 4, "cpus_per_worker": 2}, "teacher": {"gpus_per_worker": 1}}


def test_students_and_every_distinct_teacher_count() -> None:
    document = {**SPEC, "teachers": TEACHERS, "resources": RESOURCES}
    student, *teachers = demand_of(parse_spec("Distill", document))
    assert student == Bundle(4, Resources(2.0, 0.0))
    assert teachers == [Bundle(2, Resources(1.0, 1.0)), Bundle(3, Resources(1.0, 1.0))]


def test_a_spec_is_read_once_and_forgotten_when_many_came_after() -> None:
    known = Demands(most=2)
    for uid in ("one", "two", "one", "three"):
        if known.unknown([uid]):
            known.learn(uid, "FineTune", SPEC)
        known.forget()
        assert known.of(uid) == (Bundle(1, Resources(1.0)),)
    assert known.unknown(["one", "two", "three"]) == ["two"]


def test_what_cannot_be_read_asks_for_nothing() -> None:
    known = Demands()
    document: dict[str, Any] = {**SPEC, "unknown": 1}
    known.learn("bad", "FineTune", document)
    assert known.of("bad") is None
