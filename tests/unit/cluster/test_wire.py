from __future__ import annotations

import math

import pytest
from athanor.v1 import job_pb2, worker_service_pb2
from fakes import World, struct
from google.protobuf import struct_pb2
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidInput
from cluster.lifecycle import State
from cluster.store.records import StoredJob
from cluster.wire import (
    clean,
    from_struct,
    job_to_proto,
    progress_from_proto,
    states_from_proto,
    terminal_from_proto,
    to_struct,
)

scalars = st.none() | st.booleans() | st.text(max_size=5) | st.integers(-(2**53) + 1, 2**53 - 1)
documents = st.dictionaries(
    st.text(max_size=5),
    st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)),
    max_size=4,
)


@settings(max_examples=40)
@given(documents)
def test_struct_keeps_a_spec_as_it_is(document: dict[str, object]) -> None:
    assert from_struct(to_struct(document)) == document


def test_whole_numbers_stay_whole() -> None:
    plain = from_struct(struct({"hidden_size": 256, "dropout": 0.5}))
    assert plain == {"hidden_size": 256, "dropout": 0.5}
    assert isinstance(plain["hidden_size"], int)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_no_json_can_hold_become_none(value: float) -> None:
    assert from_struct(struct_pb2.Value(number_value=value)) is None
    message = job_pb2.Progress(stage="train", loss=value, tokens_per_second=value)
    stored = progress_from_proto(message, 1, 1)
    assert (stored["loss"], stored["tokens_per_second"]) == (None, 0.0)


def test_words_from_outside_are_made_storable() -> None:
    assert clean("a\0b") == "ab"
    assert len(clean("x" * 100_000)) == 4000


def test_state_filters() -> None:
    assert states_from_proto([job_pb2.JOB_STATE_RUNNING]) == (State.RUNNING,)
    assert states_from_proto([job_pb2.JOB_STATE_UNSPECIFIED, job_pb2.JOB_STATE_RUNNING]) == ()
    with pytest.raises(InvalidInput, match="99"):
        states_from_proto([99])


@pytest.mark.parametrize("outcome", [0, 77])
def test_terminal_record_needs_an_outcome_that_is_known(outcome: int) -> None:
    with pytest.raises(InvalidInput):
        terminal_from_proto(worker_service_pb2.TerminalRecord(outcome=outcome))


async def test_job_on_the_wire(world: World) -> None:
    uid = world.create()
    driver = await world.running(uid)
    await driver.progress(4)
    message = job_to_proto(world.job(uid))
    assert message.state == job_pb2.JOB_STATE_RUNNING
    assert (message.progress.step, message.progress.HasField("loss")) == (4, False)
    assert message.attempts[0].ray_job_id == f"{uid}-1"
    assert message.HasField("start_time")
    assert not message.HasField("end_time")
    assert message.etag != job_to_proto(world.job(world.create())).etag
    assert driver.ref.lease_token not in str(message)


async def test_speed_and_time_left_are_those_of_the_attempt_that_works(world: World) -> None:
    def shown(job: StoredJob) -> tuple[int, float, float]:
        progress = job_to_proto(job).progress
        return progress.step, progress.tokens_per_second, progress.eta.seconds

    uid = world.create()
    first = await world.running(uid)
    await first.progress(4, tokens_per_second=50.0, eta=Duration(seconds=30))
    assert shown(world.job(uid)) == (4, 50.0, 30)
    await first.report(first.record("INFRASTRUCTURE_ERROR", reason="WORKER_LOST"))
    first.exit()
    assert (world.state(uid), shown(world.job(uid))) == (State.RECOVERING, (4, 0.0, 0))
    world.clock.advance(1)
    second = await world.running(uid)
    assert (world.state(uid), shown(world.job(uid))) == (State.RUNNING, (4, 0.0, 0))
    await second.progress(5, tokens_per_second=40.0, eta=Duration(seconds=20))
    assert shown(world.job(uid)) == (5, 40.0, 20)
