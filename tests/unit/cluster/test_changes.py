"""What a driver's record makes of its job: the whole table, and the budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_policy import NOW_US, jobs, terminals

from cluster.changes import LONGEST_PAUSE_S, conclude, lost, next_to_conclusion, paused, requeued
from cluster.lifecycle import DRIVER_TERMINATED, EDGES, PREEMPTED, State
from cluster.store.records import Outcome, StoredAttempt, StoredJob, Terminal

OPEN = (StoredAttempt("j-1", 1, "j-1-1", "h", submit_time_us=1, start_time_us=1),)
WITH_DRIVER = [State.STARTING, State.RUNNING, State.PAUSING, State.CANCELLING]

# (state, how the driver ended) -> what the job is then, with budgets of one failure each of which none is used.
TABLE = {
    (State.STARTING, Outcome.SUCCEEDED): State.SUCCEEDED,
    (State.STARTING, Outcome.USER_ERROR): State.RECOVERING,
    (State.STARTING, Outcome.INFRASTRUCTURE_ERROR): State.RECOVERING,
    (State.STARTING, Outcome.CANCELLED): State.CANCELLED,
    (State.STARTING, Outcome.PAUSED): State.RECOVERING,
    (State.RUNNING, Outcome.SUCCEEDED): State.SUCCEEDED,
    (State.RUNNING, Outcome.USER_ERROR): State.RECOVERING,
    (State.RUNNING, Outcome.INFRASTRUCTURE_ERROR): State.RECOVERING,
    (State.RUNNING, Outcome.CANCELLED): State.CANCELLED,
    (State.RUNNING, Outcome.PAUSED): State.RECOVERING,
    (State.PAUSING, Outcome.SUCCEEDED): State.SUCCEEDED,
    (State.PAUSING, Outcome.USER_ERROR): State.PAUSED,
    (State.PAUSING, Outcome.INFRASTRUCTURE_ERROR): State.PAUSED,
    (State.PAUSING, Outcome.CANCELLED): State.CANCELLED,
    (State.PAUSING, Outcome.PAUSED): State.PAUSED,
    (State.CANCELLING, Outcome.SUCCEEDED): State.SUCCEEDED,
    **{(State.CANCELLING, outcome): State.CANCELLED for outcome in Outcome if outcome is not Outcome.SUCCEEDED},
}


def a_job(state: State, **fields: object) -> StoredJob:
    retries = {"schedule": {"retries": {"infrastructure": 1, "user": 1}}}
    drawn = StoredJob(
        *(1, "j-1", "j", "FineTune", {}, retries, 500, state, "", "", [], None, {}, "", "", None, 0, 0, None),
        *(1, None, None, 1, 1),
        attempts=OPEN,
    )
    return replace(drawn, **fields)


def test_the_table_has_every_way_to_end() -> None:
    assert TABLE.keys() == {(state, outcome) for state in WITH_DRIVER for outcome in Outcome}


@pytest.mark.parametrize(("state", "outcome"), TABLE)
def test_how_a_driver_ends_decides_by_what_was_asked_for(state: State, outcome: Outcome) -> None:
    change = conclude(a_job(state), Terminal(outcome, message="so it went"), NOW_US)
    assert change.state is TABLE[state, outcome]
    assert change.attempt["end_time_us"] == NOW_US
    assert "so it went" in change.message


@given(jobs, terminals)
def test_every_end_is_an_edge_of_the_lifecycle(job: StoredJob, terminal: Terminal) -> None:
    change = next_to_conclusion(job, terminal, NOW_US)
    if change is not None and job.state in (*WITH_DRIVER, State.ADMITTED, State.RECOVERING):
        assert change.state in EDGES[job.state]


def test_budgets_are_counted_apart() -> None:
    job = a_job(State.RUNNING, infrastructure_failures=1)
    assert conclude(job, Terminal(Outcome.USER_ERROR), NOW_US).job["user_failures"] == 1
    assert conclude(job, Terminal(Outcome.USER_ERROR), NOW_US).state is State.RECOVERING
    over = conclude(job, Terminal(Outcome.INFRASTRUCTURE_ERROR), NOW_US)
    assert (over.state, over.job["infrastructure_failures"]) == (State.FAILED, 2)
    assert lost(job, "", NOW_US).state is State.FAILED


@pytest.mark.parametrize("reason", ["PAUSE_ASKED", PREEMPTED])
def test_a_failure_of_its_own_counts_even_while_it_pauses(reason: str) -> None:
    job = a_job(State.PAUSING, reason=reason)
    change = conclude(job, Terminal(Outcome.USER_ERROR, "DATA_EMPTY", "no rows"), NOW_US)
    expected = PREEMPTED if reason == PREEMPTED else "PAUSED"
    assert (change.state, change.reason, change.job["user_failures"]) == (State.PAUSED, expected, 1)
    spent = replace(job, user_failures=1)
    change = conclude(spent, Terminal(Outcome.USER_ERROR, "DATA_EMPTY", "no rows"), NOW_US)
    assert (change.state, change.reason) == (State.FAILED, "DATA_EMPTY")


def test_a_driver_that_was_told_from_outside_to_end_costs_nothing() -> None:
    told = Terminal(Outcome.INFRASTRUCTURE_ERROR, DRIVER_TERMINATED)
    change = conclude(a_job(State.RUNNING, infrastructure_failures=1), told, NOW_US)
    assert change.state is State.RECOVERING
    assert set(change.job) == {"retry_at_us"}, "it waits a moment: whoever ends drivers may do so again"


@given(st.integers(0, 998))
def test_the_next_attempt_waits_longer_each_time_and_never_long(failures: int) -> None:
    spec = {"schedule": {"retries": {"infrastructure": 1000}}}
    job = a_job(State.RUNNING, spec=spec, infrastructure_failures=failures)
    waits = [
        int(str(lost(one, "", NOW_US).job["retry_at_us"])) - NOW_US
        for one in (job, replace(job, infrastructure_failures=failures + 1))
    ]
    assert 1_000_000 <= waits[0] <= waits[1] <= LONGEST_PAUSE_S * 1e6


def test_who_made_room_comes_back_once_more_and_quietly() -> None:
    unseen = [{"type": "Unreachable", "status": True, "reason": "RAY_UNREACHABLE"}]
    job = a_job(State.PAUSING, reason=PREEMPTED, preemptions=1, conditions=unseen)
    assert paused(job, "room").job["conditions"] == []
    change = requeued(job, NOW_US)
    assert (change.state, change.job["preemptions"], change.job["conditions"]) == (State.QUEUED, 2, [])


S_US = 1_000_000


def test_who_made_room_keeps_what_it_gained_by_waiting_and_gains_nothing_by_running() -> None:
    """Waited 10 s, ran 500 s in two attempts, made room; waited 20 s, ran 700 s, made room again."""
    attempts = (
        StoredAttempt("j", 1, "j-1", start_time_us=10 * S_US, end_time_us=100 * S_US, reason="DRIVER_LOST"),
        StoredAttempt("j", 2, "j-2", start_time_us=110 * S_US, end_time_us=510 * S_US, reason="PAUSED"),
    )
    job = a_job(State.PAUSED, reason=PREEMPTED, queue_since_us=0, attempts=attempts)
    since_us = requeued(job, 512 * S_US).job["queue_since_us"]
    assert since_us == 502 * S_US, "10 s ago"
    third = StoredAttempt("j", 3, "j-3", start_time_us=532 * S_US, end_time_us=1232 * S_US, reason="PAUSED")
    job = replace(job, queue_since_us=since_us, attempts=(*attempts, third), preemptions=1)
    assert requeued(job, 1240 * S_US).job["queue_since_us"] == 1210 * S_US, "30 s ago"
