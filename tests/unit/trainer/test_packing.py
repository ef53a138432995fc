"""Best-fit decreasing: nothing lost, nothing over capacity, and as full as the rule says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.packing import best_fit_decreasing

CAPACITY = 24
lengths_lists = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=60)


def naive(lengths: list[int]) -> list[int]:
    """Free space of each row when every item looks at every row."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [at for at, space in enumerate(free) if space >= length]
        if fitting:
            free[min(fitting, key=lambda at: free[at])] -= length
        else:
            free.append(CAPACITY - length)
    return sorted(free)


@settings(deadline=None)
@given(lengths_lists)
def test_every_sample_lies_in_one_row_and_no_row_is_over_full(lengths: list[int]) -> None:
    rows = best_fit_decreasing(lengths, range(len(lengths)), CAPACITY)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= CAPACITY for row in rows)


@settings(deadline=None)
@given(lengths_lists)
def test_rows_are_as_full_as_those_of_the_plain_rule(lengths: list[int]) -> None:
    rows = best_fit_decreasing(lengths, range(len(lengths)), CAPACITY)
    assert sorted(CAPACITY - sum(lengths[index] for index in row) for row in rows) == naive(lengths)


@settings(deadline=None)
@given(lengths_lists, st.randoms(use_true_random=False))
def test_the_given_order_settles_equal_lengths_only(lengths: list[int], random) -> None:
    order = list(range(len(lengths)))
    random.shuffle(order)
    rows = best_fit_decreasing(lengths, order, CAPACITY)
    assert rows == best_fit_decreasing(lengths, order, CAPACITY)
    shapes = [[lengths[index] for index in row] for row in rows]
    assert shapes == [[lengths[index] for index in row] for row in best_fit_decreasing(lengths, range(len(order)), 24)]


def test_the_work_does_not_grow_with_the_square() -> None:
    """200,000 items: looking at every row for each would take 10^10 comparisons, and the time limit of the test."""
    count = 200_000
    lengths = [1 + (7919 * index) % 4096 for index in range(count)]
    rows = best_fit_decreasing(lengths, range(count), 4096)
    assert sum(lengths) / (len(rows) * 4096) > 0.99
