"""Properties of the decisions over everything that can be stored and seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.changes import conclude, heard
from cluster.lifecycle import EDGES, PREEMPTED, State
from cluster.policy import Release, Sight, Step, Stop, Submit, View, Wait, condition_change, decide
from cluster.settings import Settings
from cluster.store.records import Outcome, StoredAttempt, StoredJob, Terminal

SETTINGS = Settings()
NOW_US = 1_800_000_000_000_000
times = st.none() | st.integers(NOW_US - 200_000_000, NOW_US)


@st.composite
def attempts(draw: st.DrawFn) -> tuple[StoredAttempt, ...]:
    count = draw(st.integers(0, 2))
    closed = [
        StoredAttempt("j-1", n, f"j-1-{n}", "h", None, 1, 1, 2, "DRIVER_LOST", released=True) for n in range(1, count)
    ]
    if count == 0:
        return ()
    submit = draw(times)
    last = StoredAttempt(
        "j-1",
        count,
        f"j-1-{count}",
        "h",
        lease_expires_us=draw(times.map(lambda t: t and t + 15_000_000)) if submit else None,
        submit_time_us=submit,
        end_time_us=draw(times),
    )
    released = last.end_time_us is not None and draw(st.booleans())
    return (*closed, replace(last, released=released))


jobs = st.builds(
    StoredJob,
    seq=st.just(1),
    uid=st.just("j-1"),
    name=st.just("j"),
    kind=st.just("FineTune"),
    labels=st.just({}),
    spec=st.sampled_from([{}, {"schedule": None}, {"schedule": {"retries": {"user": 1}}}]),
    priority=st.just(500),
    state=st.sampled_from(sorted(State)),
    reason=st.sampled_from(["", PREEMPTED]),
    message=st.just(""),
    conditions=st.just([]),
    progress=st.none(),
    resolved_models=st.just({}),
    published_model=st.just(""),
    report_path=st.just(""),
    summary=st.none(),
    infrastructure_failures=st.integers(0, 6),
    user_failures=st.integers(0, 2),
    cancel_time_us=times,
    create_time_us=st.just(1),
    start_time_us=times,
    end_time_us=st.none(),
    update_time_us=st.just(1),
    resource_version=st.just(1),
    max_run_duration_us=st.sampled_from([None, 60_000_000]),
    ran_us=st.sampled_from([0, 59_000_000, 61_000_000]),
    running_since_us=times,
    retry_at_us=st.none() | st.integers(NOW_US - 1, NOW_US + 100_000_000),
    attempts=attempts(),
)
EXAMPLE = StoredJob(
    *(1, "j-1", "j", "FineTune", {}, {}, 500, State.QUEUED, "", "", [], None, {}, "", "", None, 0, 0, None),
    *(1, None, None, 1, 1),
)
terminals = st.builds(Terminal, outcome=st.sampled_from(list(Outcome)))
sights = st.builds(Sight, st.just(NOW_US), st.sampled_from(list(View)), st.just(""), st.none() | terminals)


@given(jobs, sights)
def test_every_step_is_an_edge_of_the_lifecycle(job: StoredJob, sight: Sight) -> None:
    decision = decide(job, sight, SETTINGS)
    change = decision.change if isinstance(decision, Step) else decision.then if isinstance(decision, Stop) else None
    if change is not None and change.state is not None:
        assert change.state in EDGES[job.state]


@given(jobs)
def test_what_cannot_be_seen_decides_nothing(job: StoredJob) -> None:
    """Without a record, an unreachable Ray loses no attempt, submits nothing, fails nothing."""
    decision = decide(job, Sight(NOW_US, View.UNREACHABLE), SETTINGS)
    assert not isinstance(decision, Submit)
    if isinstance(decision, Step):
        assert decision.change.state not in (State.FAILED, State.RECOVERING, State.SUCCEEDED)
    if isinstance(decision, Release):
        assert job.last_attempt is not None
        assert job.last_attempt.submit_time_us is None


@given(jobs, sights)
def test_next_attempt_begins_only_when_the_last_one_holds_nothing(job: StoredJob, sight: Sight) -> None:
    decision = decide(job, sight, SETTINGS)
    if isinstance(decision, Step) and decision.change.opens_attempt is not None:
        assert job.last_attempt is None or job.last_attempt.released
        assert decision.change.opens_attempt.number == len(job.attempts) + 1


@given(jobs, sights)
def test_no_attempt_is_given_up_while_its_lease_lasts(job: StoredJob, sight: Sight) -> None:
    decision = decide(job, sight, SETTINGS)
    if isinstance(decision, Step) and decision.change.reason == "DRIVER_LOST":
        attempt = job.last_attempt
        assert attempt is not None
        assert (attempt.lease_expires_us or 0) < NOW_US
        assert sight.view in (View.ENDED, View.UNKNOWN)
        assert sight.terminal is None


@given(jobs, sights)
def test_driver_seen_alive_is_stopped_but_never_forgotten(job: StoredJob, sight: Sight) -> None:
    sight = replace(sight, view=View.ALIVE, terminal=None)
    decision = decide(job, sight, SETTINGS)
    assert not isinstance(decision, Submit)
    assert not isinstance(decision, Release)


@given(jobs, terminals)
def test_success_is_never_turned_into_failure(job: StoredJob, terminal: Terminal) -> None:
    change = conclude(job, replace(terminal, outcome=Outcome.SUCCEEDED), NOW_US)
    assert change.state is State.SUCCEEDED


@given(jobs)
def test_word_of_a_driver_moves_only_what_had_not_begun(job: StoredJob) -> None:
    change = heard(job, NOW_US)
    assert (change is not None) == (job.state in (State.ADMITTED, State.RECOVERING, State.STARTING))


@given(jobs, sights)
def test_condition_is_said_once(job: StoredJob, sight: Sight) -> None:
    change = condition_change(job, sight, SETTINGS)
    if change is not None:
        told = replace(job, conditions=change.job["conditions"])
        assert change.state is None
        assert condition_change(told, sight, SETTINGS) is None
        assert told.condition("Unreachable")["status"] is True


@given(jobs)
def test_job_with_nothing_to_do_waits(job: StoredJob) -> None:
    alive = replace(job, state=State.RUNNING, max_run_duration_us=None, attempts=(StoredAttempt("j-1", 1, "j-1-1"),))
    assert decide(alive, Sight(NOW_US, View.ALIVE), SETTINGS) == Wait()


def test_time_in_running_alone_counts_against_the_limit() -> None:
    attempt = StoredAttempt("j-1", 1, "j-1-1", lease_expires_us=NOW_US + 1, submit_time_us=1)
    fields = {"start_time_us": 1, "max_run_duration_us": 60_000_000, "attempts": (attempt,), "spec": {}}
    job = replace(EXAMPLE, state=State.RUNNING, ran_us=50_000_000, running_since_us=NOW_US - 10_000_000, **fields)
    sight = Sight(NOW_US, View.ALIVE)
    assert decide(job, sight, SETTINGS) == Wait()
    late = decide(job, replace(sight, now_us=NOW_US + 1), SETTINGS)
    assert isinstance(late, Stop)
    assert late.then is not None
    assert late.then.reason == "MAX_RUN_DURATION"
    paused = replace(job, state=State.STARTING, running_since_us=None)
    assert decide(paused, replace(sight, now_us=NOW_US + 10_000_000), SETTINGS) == Wait()


@pytest.mark.parametrize("view", [View.ENDED, View.UNKNOWN])
@given(ahead_s=st.integers(61, 100_000))
def test_a_lease_from_a_clock_that_is_ahead_ends_a_lease_after_this_one_began_to_listen(
    view: View, ahead_s: int
) -> None:
    ahead_us = NOW_US + ahead_s * 1_000_000
    attempt = StoredAttempt("j-1", 1, "j-1-1", lease_expires_us=ahead_us + 15_000_000, submit_time_us=ahead_us)
    job = replace(EXAMPLE, state=State.RUNNING, attempts=(attempt,))
    patience_us = int((SETTINGS.lease_s + (SETTINGS.unknown_grace_s if view is View.UNKNOWN else 0)) * 1e6)
    assert decide(job, Sight(NOW_US, view, listening_since_us=NOW_US - patience_us), SETTINGS) == Wait()
    gone = decide(job, Sight(NOW_US, view, listening_since_us=NOW_US - patience_us - 1), SETTINGS)
    assert isinstance(gone, Step)
    assert gone.change.reason == "DRIVER_LOST"


@given(jobs, st.sampled_from([View.UNREACHABLE, View.ALIVE]))
def test_no_clock_alone_gives_up_a_driver(job: StoredJob, view: View) -> None:
    for now_us in (NOW_US - 3_600_000_000, NOW_US + 3_600_000_000):
        decision = decide(job, Sight(now_us, view), SETTINGS)
        if isinstance(decision, Step):
            assert decision.change.reason != "DRIVER_LOST"
            assert not decision.change.attempt.get("released") or view is View.UNREACHABLE


@given(ahead_us=st.integers(1, 59_000_000))
def test_a_time_a_little_ahead_counts_as_now(ahead_us: int) -> None:
    """Two machines' clocks differ: a pause keeps its grace, and a driver that was just heard its lease."""
    attempt = StoredAttempt("j-1", 1, "j-1-1", lease_expires_us=NOW_US + ahead_us + 15_000_000, submit_time_us=1)
    pausing = replace(EXAMPLE, state=State.PAUSING, cancel_time_us=NOW_US + ahead_us, attempts=(attempt,))
    assert decide(pausing, Sight(NOW_US, View.ALIVE, listening_since_us=1), SETTINGS) == Wait()
    running = replace(EXAMPLE, state=State.RUNNING, attempts=(attempt,))
    assert decide(running, Sight(NOW_US, View.UNKNOWN, listening_since_us=1), SETTINGS) == Wait()
