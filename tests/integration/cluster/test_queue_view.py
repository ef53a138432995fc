"""The queue and projects as people see them, on both databases."""

from __future__ import annotations

from typing import Any

from cluster.ids import new_job_uid
from cluster.lifecycle import State
from cluster.standings import WORDS, Standing
from cluster.store.records import Change, NewJob, StoredJob
from cluster.store.store import Store


def waiting(store: Store, project: str = "care", priority: int = 500, **fields: Any) -> StoredJob:
    return store.create_job(NewJob(new_job_uid("q"), "q", "FineTune", {}, {}, priority, {}, project=project, **fields))


def test_those_that_were_decided_on_come_first_then_the_queue_then_the_held(store: Store) -> None:
    held = waiting(store, hold_until_us=store.now_us() + 10**12, priority=900)
    low, high, late = waiting(store, priority=100), waiting(store, priority=800), waiting(store, "desk", priority=900)
    gone = waiting(store)
    store.save_standings({gone.uid: Standing(1, "RESOURCES"), low.uid: Standing(2, "QUOTA", WORDS["QUOTA"])})
    unmet = waiting(store, priority=900, depends_on=[gone.uid])
    store.transition(gone, Change("ADMITTED", "", State.ADMITTED))
    line = store.queue_line(None, 10)
    assert [(place.job.uid, place.position, place.standing.reason) for place in line.places] == [
        (low.uid, 1, "QUOTA"),
        (late.uid, 2, "BEHIND_OTHERS"),
        (high.uid, 3, "BEHIND_OTHERS"),
        (held.uid, 4, "HELD"),
        (unmet.uid, 5, "DEPENDENCY"),
    ]
    assert all(place.standing.message for place in line.places)
    assert (line.num_waiting, line.decision_time_us > 0) == (5, True)
    assert [place.job.uid for place in store.queue_line(None, 2).places] == [low.uid, late.uid]


def test_whoever_sees_one_project_is_told_true_positions(store: Store) -> None:
    _, second, _ = waiting(store, "care"), waiting(store, "desk"), waiting(store, "care")
    line = store.queue_line(("desk",), 10)
    assert [(place.job.uid, place.position) for place in line.places] == [(second.uid, 2)]
    assert line.num_waiting == 3
    assert [place.position for place in store.queue_line(("care",), 10).places] == [1, 3]
    assert store.queue_line((), 10).places == []


def test_decision_on_more_jobs_than_one_question_may_name(store: Store) -> None:
    job = waiting(store)
    gone = {f"q-{number}": Standing(number, "QUOTA") for number in range(2_000)}
    store.save_standings({**gone, job.uid: Standing(2_000, "QUOTA")})
    assert [(each.job.uid, each.position) for each in store.queue_line(None, 5).places] == [(job.uid, 1)]


def test_projects_are_those_with_a_quota_or_a_job(store: Store) -> None:
    assert store.project_names() == []
    for project in ("care", "desk", "care"):
        waiting(store, project)
    store.set_quota("lab", {"gpus": 2.0}, 1.0)
    assert store.project_names() == ["care", "desk", "lab"]
    assert store.num_waiting_of() == {"care": 2, "desk": 1}
