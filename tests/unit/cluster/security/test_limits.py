from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ResourceExhausted
from cluster.security.limits import Rate, Streams


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.5, 50), st.integers(1, 20))
def test_never_more_than_the_burst_and_what_flows_in(pauses: list[float], rate: float, burst: int) -> None:
    now, let_in = 0.0, 0
    limit = Rate(rate, burst, clock=lambda: now)
    for pause in pauses:
        now += pause
        let_in += limit.wait_s("a") == 0.0
        assert let_in <= burst + rate * now + 1e-6


def test_who_waits_as_told_is_let_in_and_others_are_not_kept_waiting() -> None:
    now = 0.0
    limit = Rate(2.0, 1.0, clock=lambda: now)
    limit.check("a")
    with pytest.raises(ResourceExhausted) as refused:
        limit.check("a")
    assert refused.value.reason == "RATE_LIMITED"
    assert pickle.loads(pickle.dumps(refused.value)).retry_after_s == refused.value.retry_after_s == 0.5
    limit.check("b")
    now += refused.value.retry_after_s
    limit.check("a")


def test_a_clock_that_is_set_back_lets_nobody_in_for_free() -> None:
    now = 100.0
    limit = Rate(1.0, 1.0, clock=lambda: now)
    limit.check("a")
    now = 0.0
    assert limit.wait_s("a") == 1.0


def test_keys_do_not_pile_up() -> None:
    limit = Rate(1.0, 1.0, clock=lambda: 0.0)
    for number in range(30_000):
        limit.check(str(number))
    assert len(limit._buckets) == 10_000


def test_a_stream_that_ends_makes_room() -> None:
    streams = Streams(1)
    with streams.one("a"), streams.one("b"), pytest.raises(ResourceExhausted, match="1 watches"), streams.one("a"):
        raise AssertionError("two were open")
    with streams.one("a"):
        assert list(streams._open) == ["a"]
    assert not streams._open
