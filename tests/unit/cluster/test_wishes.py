"""What may be asked of a job in which state, and what becomes of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from fakes import World

from cluster import wishes
from cluster.errors import PreconditionFailed
from cluster.lifecycle import LIVE, PREEMPTED, TERMINAL, State, check
from cluster.store.records import Change, StoredJob


def in_state(world: World, state: State, **changes: object) -> StoredJob:
    return replace(world.job(world.create()), state=state, **changes)


@pytest.mark.parametrize("state", list(State))
def test_every_wish_is_refused_in_words_or_takes_an_edge_that_there_is(world: World, state: State) -> None:
    job = in_state(world, state)
    for wish in (
        lambda: wishes.cancel(job, 1, "w", None),
        lambda: wishes.pause(job, 1, "w"),
        lambda: wishes.resume(job, 1),
        lambda: wishes.update(job, {"labels": {"a": "b"}}),
    ):
        with suppress(PreconditionFailed):
            change = wish()
            if change is not None and change.state is not None:
                check(job.state, change.state)


@pytest.mark.parametrize("state", sorted(LIVE - {State.CANCELLING}))
def test_a_live_job_can_be_cancelled_and_paused(world: World, state: State) -> None:
    job = in_state(world, state)
    assert wishes.cancel(job, 1, "w", 5).state is State.CANCELLING
    paused = wishes.pause(job, 1, "w")
    if state in (State.PAUSED, State.PAUSING):
        assert paused is None
    else:
        assert paused.state is (State.PAUSED if state is State.QUEUED else State.PAUSING)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_what_has_ended_stays_so(world: World, state: State) -> None:
    job = in_state(world, state)
    assert wishes.cancel(job, 1, "w", None) is None
    for wish in (lambda: wishes.pause(job, 1, "w"), lambda: wishes.resume(job, 1), lambda: wishes.update(job, {})):
        with pytest.raises(PreconditionFailed, match="has ended") as caught:
            wish()
        assert caught.value.reason == "JOB_ENDED"


def test_one_that_only_makes_room_stays_away_when_it_is_paused(world: World) -> None:
    for state in (State.PAUSING, State.PAUSED):
        change = wishes.pause(in_state(world, state, reason=PREEMPTED), 1, "w")
        assert change is not None
        assert (change.state, change.job["reason"]) == (None, "PAUSE_ASKED")


def test_a_second_wish_to_cancel_may_only_hurry(world: World) -> None:
    job = in_state(world, State.CANCELLING, cancel_time_us=1_000, cancel_grace_us=500)
    assert wishes.cancel(job, 1_100, "w", None) is None
    assert wishes.cancel(job, 1_100, "w", 400) is None
    assert wishes.cancel(job, 1_100, "w", 0) == Change("CANCEL_HURRIED", "w", job={"cancel_grace_us": 100})


def test_only_what_changes_is_stored(world: World) -> None:
    job = in_state(world, State.QUEUED)
    assert wishes.update(job, {"priority": job.priority, "labels": job.labels}) is None
    change = wishes.update(job, {"priority": 900, "labels": job.labels})
    assert change is not None
    assert set(change.job) == {"priority"}
    assert world.store.transition(job, change).queue_key == pytest.approx(job.queue_key - 400)
