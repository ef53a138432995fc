from __future__ import annotations

import itertools

import pytest
from athanor.v1 import job_pb2

from cluster.lifecycle import ACTIVE, EDGES, LIVE, TERMINAL, State, check, mermaid


def test_states_are_those_of_the_contract() -> None:
    names = {name.removeprefix("JOB_STATE_") for name in job_pb2.JobState.keys()}  # noqa: SIM118
    assert names - {"UNSPECIFIED"} == {state.value for state in State}


def test_terminal_states_are_never_left() -> None:
    for source, target in itertools.product(TERMINAL, State):
        with pytest.raises(AssertionError, match="no edge"):
            check(source, target)


def test_every_live_state_can_be_cancelled_and_can_end() -> None:
    for state in LIVE - {State.CANCELLING}:
        check(state, State.CANCELLING)
    check(State.CANCELLING, State.CANCELLED)


def test_every_state_is_reached_from_the_queue() -> None:
    reached, fresh = {State.QUEUED}, {State.QUEUED}
    while fresh:
        fresh = {target for source in fresh for target in EDGES[source]} - reached
        reached |= fresh
    assert reached == set(State)


def test_queue_and_pause_hold_no_resources() -> None:
    assert set(State) - TERMINAL - ACTIVE == {State.QUEUED, State.PAUSED}


def test_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        EDGES[State.FAILED] = frozenset({State.QUEUED})  # type: ignore[index]


def test_diagram_draws_every_edge_once() -> None:
    lines = mermaid().splitlines()
    assert len(lines) == len(set(lines)) == 2 + sum(map(len, EDGES.values())) + len(TERMINAL)
    assert "    RUNNING --> RECOVERING" in lines
