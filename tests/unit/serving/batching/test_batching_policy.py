"""Who comes in, and whose prompt is computed: nobody starves, no bound is passed, nothing idles that could work."""

from __future__ import annotations

from threading import Event
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batching.line import Line
from serving.batching.policy import Limits, admit, lanes, prefill

LIMITS = Limits(kv_tokens=200, prefix_tokens=40, max_rows=5, prefill_tokens=16)
SIZES = st.integers(1, LIMITS.row_tokens)


def fits(rows):
    return len(rows) <= LIMITS.max_rows and len(rows) * max(rows, default=0) <= LIMITS.row_tokens


@given(st.lists(SIZES, max_size=5).filter(fits), st.lists(SIZES, max_size=9))
def test_the_bound_is_kept_and_as_many_as_fit_come_in(reserved, waiting):
    count = admit(reserved, waiting, LIMITS)
    assert fits([*reserved, *waiting[:count]])
    assert count == len(waiting) or not fits([*reserved, *waiting[: count + 1]])


@given(st.lists(SIZES, min_size=1))
def test_whoever_stands_first_comes_in_when_the_rows_are_empty(waiting):
    assert admit([], waiting, LIMITS) >= 1


@given(st.lists(SIZES, min_size=1, max_size=30), st.data())
def test_everybody_gets_a_row_in_the_order_of_the_line(waiting, data):
    """Whatever the others do, as long as each ends once; and whoever is passed over does not fit."""
    line, rows, came = Line(len(waiting), Event()), [], []
    everybody = [SimpleNamespace(reserved=size, stream=SimpleNamespace(cancelled=False)) for size in waiting]
    for work in everybody:
        line.join(work)
    while len(line) or rows:
        reserved = [work.reserved for work in rows]
        fresh = line.take(lambda works, reserved=reserved: admit(reserved, (work.reserved for work in works), LIMITS))
        rows, came = rows + fresh, came + fresh
        assert rows
        assert fits([work.reserved for work in rows])
        rows.pop(data.draw(st.integers(0, len(rows) - 1)))
    assert came == everybody


@given(st.integers(100, 100_000), st.floats(0, 0.9), st.integers(1, 200_000))
def test_lanes_share_the_cache_and_many_short_ones_fit_beside_each_other(kv_tokens, long_share, context_length):
    limits = Limits(kv_tokens=kv_tokens, prefix_tokens=40, long_share=long_share, max_rows=64)
    found = lanes(limits, context_length)
    assert sum(lane.limits.row_tokens for lane in found) <= limits.row_tokens
    assert [lane.longest for lane in found] == sorted(lane.longest for lane in found)
    assert all(1 <= lane.longest <= min(lane.limits.row_tokens, context_length) for lane in found[-1:])
    short = found[0]
    if len(found) == 2:
        assert admit([], [short.longest] * 16, short.limits) == 16
        assert admit([], [found[1].longest], found[1].limits) == 1
    elif context_length <= limits.row_tokens // 16:
        assert admit([], [short.longest] * 16, short.limits) == 16


@given(st.lists(st.integers(1, 60), max_size=8), st.integers(1, 64))
def test_prompts_come_on_within_the_budget(remaining, budget):
    sizes = prefill(remaining, budget)
    assert sum(sizes) == min(sum(remaining), budget), "nothing of the budget idles while there is something to compute"
    assert all(sizes)
    assert sizes[:-1] == list(remaining[: len(sizes)])[:-1], "whoever came first is done first"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 64))
def test_every_prompt_comes_to_its_end(remaining, budget):
    steps = 0
    while remaining:
        sizes = prefill(remaining, budget)
        rests = [rest - size for rest, size in zip(remaining, sizes, strict=False)]
        remaining = [rest for rest in [*rests, *remaining[len(sizes) :]] if rest]
        steps += 1
        assert steps <= 8 * 60


@pytest.mark.parametrize(
    "wrong", [{"kv_tokens": 0}, {"max_rows": 0}, {"prefix_tokens": 1 << 16}, {"max_waiting": 0}, {"long_share": 1.0}]
)
def test_limits_that_leave_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=r"at least 1|must leave room|leave something"):
        Limits(**wrong)
