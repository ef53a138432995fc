"""Rows of samples: nothing lost, nothing over capacity, and as full as the rule says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batch import Piece
from trainer.packing import best_fit_decreasing, wrap

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


@settings(deadline=None)
@given(lengths_lists, st.randoms(use_true_random=False))
def test_wrapped_rows_are_the_samples_one_after_the_other_cut_where_a_row_is_full(lengths: list[int], random) -> None:
    order = list(range(len(lengths)))
    random.shuffle(order)
    rows = wrap(lengths, order, CAPACITY)
    tokens = [(piece.sample_index, at) for row in rows for piece in row for at in range(piece.start, piece.end)]
    assert tokens == [(index, at) for index in order for at in range(lengths[index])]
    full = [sum(piece.end - piece.start for piece in row) for row in rows]
    assert full[:-1] == [CAPACITY] * (len(rows) - 1)
    assert 0 < full[-1] <= CAPACITY
    assert all(piece.start < piece.end for row in rows for piece in row)


def test_a_sample_is_cut_at_the_end_of_a_row_and_goes_on_in_the_next() -> None:
    assert wrap([6, 6, 4, 3], [2, 0, 1, 3], 8) == [
        (Piece(2, 0, 4), Piece(0, 0, 4)),
        (Piece(0, 4, 6), Piece(1, 0, 6)),
        (Piece(3, 0, 3),),
    ]
