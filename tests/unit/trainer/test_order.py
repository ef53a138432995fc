"""I2: what sits at (seed, epoch, step, slot) is a pure function, for any number of workers and after any resume."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batch import padded_length
from trainer.order import SampleOrder, choose, permutation

MAX_LENGTH = 64
orders = st.builds(
    lambda lengths, seed, batch_tokens, packing: SampleOrder(
        lengths, seed=seed, batch_tokens=batch_tokens, max_length=MAX_LENGTH, packing_strategy=packing
    ),
    st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=80),
    st.integers(0, 2**31 - 1),
    st.integers(1, 600),
    st.sampled_from(["none", "bfd", "wrapped"]),
)


def like(order: SampleOrder, packing_strategy: Literal["wrapped"] | None = None) -> SampleOrder:
    """The same order, made anew as after a restart, or with other rows."""
    return SampleOrder(
        order._lengths,
        seed=order._seed,
        batch_tokens=order._batch_tokens,
        max_length=MAX_LENGTH,
        packing_strategy=packing_strategy or order._packing_strategy,
    )


@settings(deadline=None)
@given(orders, st.integers(0, 3))
def test_an_epoch_takes_every_token_of_every_sample_once(order: SampleOrder, epoch: int) -> None:
    first = order.steps_for_epochs(epoch)
    batches = [order.global_batch(first + at) for at in range(order.steps_per_epoch(epoch))]
    assert {batch.epoch for batch in batches} == {epoch}
    pieces = [piece for batch in batches for row in batch.rows for piece in row]
    taken = sorted((index, at) for index, start, end in pieces for at in range(start, end))
    assert taken == [(index, at) for index, length in enumerate(order._lengths) for at in range(length)]
    assert sum(order.num_tokens(first + at) for at in range(len(batches))) == sum(order._lengths)
    if order._packing_strategy != "wrapped":
        assert all(map(order.is_whole, pieces))


@settings(deadline=None)
@given(orders, st.integers(0, 3))
def test_only_the_last_row_of_a_wrapped_epoch_is_not_full(order: SampleOrder, epoch: int) -> None:
    wrapped = like(order, packing_strategy="wrapped")
    first = wrapped.steps_for_epochs(epoch)
    rows = [row for at in range(wrapped.steps_per_epoch(epoch)) for row in wrapped.global_batch(first + at).rows]
    full, rest = divmod(sum(order._lengths), MAX_LENGTH)
    assert sorted(map(wrapped._length, rows)) == [rest] * (rest > 0) + [MAX_LENGTH] * full
    places = [index for row in rows for index, _, _ in row]
    cut = [piece for row in rows for piece in row if not wrapped.is_whole(piece)]
    assert len(places) - len(order._lengths) == len(cut) // 2 < len(rows)


@settings(deadline=None)
@given(orders, st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_step_is_the_same_whatever_was_asked_before(order: SampleOrder, steps: list[int]) -> None:
    asked = [order.global_batch(step) for step in steps]
    assert asked == [like(order).global_batch(step) for step in steps]


@settings(deadline=None)
@given(orders, st.integers(0, 20), st.integers(1, 5), st.integers(1, 700))
def test_any_number_of_workers_shares_the_same_batch(
    order: SampleOrder, step: int, world: int, micro_batch_tokens: int
) -> None:
    shares = [order.micro_batches(step, rank, world, micro_batch_tokens) for rank in range(world)]
    rows = [row for share in shares for micro_batch in share for row in micro_batch]
    assert sorted(rows) == sorted(order.global_batch(step).rows)
    assert len({len(share) for share in shares}) == 1


@settings(deadline=None)
@given(orders, st.integers(0, 20), st.integers(1, 5), st.integers(1, 700))
def test_no_batch_is_over_its_tokens_but_for_a_single_row(
    order: SampleOrder, step: int, world: int, micro_batch_tokens: int
) -> None:
    def tokens(rows) -> int:
        return len(rows) * max(padded_length(order._length(row)) for row in rows)

    rows = order.global_batch(step).rows
    assert len(rows) == 1 or tokens(rows) <= order._batch_tokens
    for micro_batch in order.micro_batches(step, 0, world, micro_batch_tokens):
        assert len(micro_batch) <= 1 or tokens(micro_batch) <= micro_batch_tokens


@settings(deadline=None)
@given(orders, st.integers(0, 20))
def test_packed_rows_hold_no_more_than_max_length(order: SampleOrder, step: int) -> None:
    assert all(order._length(row) <= MAX_LENGTH for row in order.global_batch(step).rows)


def test_the_order_is_this_one_on_every_machine_and_version() -> None:
    """Golden: a change here means that no running job can be resumed."""
    assert permutation(10, seed=7, epoch=0, stream=0) == [8, 4, 1, 6, 3, 2, 7, 5, 9, 0]
    order = SampleOrder(range(1, 13), seed=7, batch_tokens=32, max_length=12)
    assert [order.global_batch(step).sample_ids for step in range(4)] == [(8, 9), (4, 5, 6, 7), (10, 11), (0, 1, 2, 3)]


def test_the_order_of_wrapped_rows_is_this_one_on_every_machine_and_version() -> None:
    order = SampleOrder([5, 8, 3, 6, 7], seed=7, batch_tokens=16, max_length=8, packing_strategy="wrapped")
    assert [order.global_batch(step).rows for step in range(order.steps_per_epoch(0))] == [
        (((1, 1, 8), (3, 0, 1)), ((3, 1, 6), (2, 0, 3))),
        (((0, 0, 5),), ((4, 0, 7), (1, 0, 1))),
    ]


def test_epochs_and_seeds_differ() -> None:
    order = SampleOrder([8] * 200, seed=7, batch_tokens=400, max_length=8)
    steps = order.steps_per_epoch(0)
    assert order.global_batch(0).rows != order.global_batch(steps).rows
    other = SampleOrder([8] * 200, seed=8, batch_tokens=400, max_length=8)
    assert order.global_batch(0).rows != other.global_batch(0).rows


def test_batches_come_neither_by_length_nor_by_place() -> None:
    order = SampleOrder([1 + at % 64 for at in range(2000)], seed=7, batch_tokens=1024, max_length=64)
    longest = [max(map(order._length, order.global_batch(step).rows)) for step in range(order.steps_per_epoch(0))]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_little_of_a_batch_is_padding() -> None:
    order = SampleOrder([8 * (1 + at % 8) for at in range(4000)], seed=7, batch_tokens=2048, max_length=64)
    batches = [order.global_batch(step).rows for step in range(order.steps_per_epoch(0))]
    padded = sum(len(rows) * max(map(order._length, rows)) for rows in batches)
    assert sum(order._lengths) / padded > 0.9


def test_parts_of_an_epoch_are_rounded_up_to_whole_steps() -> None:
    order = SampleOrder([8] * 10, seed=7, batch_tokens=16, max_length=8)
    assert [order.steps_for_epochs(epochs) for epochs in (0.1, 1, 1.5, 2)] == [1, 5, 8, 10]


@pytest.mark.parametrize("lengths", [[], [0, 3], [65]])
def test_lengths_that_cannot_be_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="max_length=64"):
        SampleOrder(lengths, seed=7, batch_tokens=16, max_length=64)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 99))
def test_a_drawn_part_is_a_part_and_the_same_each_time(count: int, wanted: int, seed: int) -> None:
    chosen = choose(count, wanted, seed=seed)
    assert chosen == choose(count, wanted, seed=seed)
    assert len(chosen) == min(count, wanted)
    assert chosen == sorted(set(chosen) & set(range(count)))


def test_a_smaller_part_lies_in_a_larger_one() -> None:
    assert set(choose(1000, 10, seed=7)) <= set(choose(1000, 100, seed=7))
