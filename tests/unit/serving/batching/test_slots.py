"""The cache alone: what is written stays where it is read, through growth, moves and copies, and within its bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching import cache
from serving.batching.attention import Span
from serving.batching.cache import Slots

BOUND, MAX_ROWS, LAYERS = 600, 6, 2


def write(slots: Slots, row: int, start: int, numbers: list[int]) -> None:
    """As a model would, in each layer; the values are the keys with the other sign."""
    position = torch.arange(start, start + len(numbers))
    slots.write_by(Span(row, 0, 0, torch.full_like(position, row), position, parts=[], reaches=[]))
    keys = torch.tensor(numbers, dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 3)
    for layer in range(LAYERS):
        slots.update(keys + layer, -keys, layer)


def read(slots: Slots, row: int, length: int) -> list[int]:
    first, second = slots.read(row, length)
    assert torch.equal(first[0] + 1, second[0])
    assert torch.equal(first[0], -second[1])
    return first[0][1, :, 2].int().tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "grow", "move", "swap", "drop"]), st.integers(1, 90)), max_size=25))
def test_rows_keep_what_was_written(actions):
    """A model of lists in lists, beside the cache."""
    slots, rows, reserved, fresh = Slots(LAYERS, bound=BOUND, max_rows=MAX_ROWS), [], 1, 1
    for action, number in actions:
        wanted = max(reserved, number)
        if action == "add" and len(rows) < MAX_ROWS and (len(rows) + 1) * wanted <= BOUND:
            reserved = wanted
            slots.reserve(len(rows) + 1, reserved)
            rows.append([])
        elif action == "grow" and rows:
            row = number % len(rows)
            new = list(range(fresh, fresh + min(number, reserved - len(rows[row]))))
            fresh += len(new)
            if new:
                write(slots, row, len(rows[row]), new)
                rows[row] += new
        elif action == "move" and len(rows) > 1:
            target = number % (len(rows) - 1)
            slots.move(len(rows) - 1, target, len(rows[-1]))
            rows[target] = rows.pop()
        elif action == "swap" and len(rows) > 1:
            one, other = number % len(rows), (number + 1) % len(rows)
            slots.swap(one, other, max(len(rows[one]), len(rows[other])))
            rows[one], rows[other] = rows[other], rows[one]
        elif action == "drop" and rows:
            rows.pop()
            reserved = reserved if rows else 1
        assert slots.shape[0] * slots.shape[1] <= BOUND
    for row, numbers in enumerate(rows):
        assert not numbers or read(slots, row, len(numbers)) == numbers


def test_a_row_begins_as_another_was_read():
    slots = Slots(LAYERS, bound=BOUND, max_rows=MAX_ROWS)
    slots.reserve(2, 20)
    write(slots, 0, 0, [4, 5, 6, 7])
    segment = slots.read(0, 3)
    write(slots, 0, 0, [9, 9, 9, 9])
    slots.fill(1, segment, 2)
    assert read(slots, 1, 2) == [4, 5]


def test_a_wiped_row_is_zero_in_all_its_length():
    slots = Slots(LAYERS, bound=BOUND, max_rows=MAX_ROWS)
    slots.reserve(1, 20)
    write(slots, 0, 0, [4, 5])
    slots.clear(0)
    assert not any(layer.keys[0].any() or layer.values[0].any() for layer in slots.layers)


def test_without_memory_to_grow_nothing_is_kept_and_it_begins_anew(monkeypatch):
    slots = Slots(LAYERS, bound=BOUND, max_rows=MAX_ROWS)
    slots.reserve(1, 20)
    write(slots, 0, 0, [4, 5])
    calls = []

    def no_second(slots_, *shape):
        calls.append(shape)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return slots_

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_resized", no_second)
        with pytest.raises(torch.OutOfMemoryError):
            slots.reserve(4, 100)
    assert slots.shape == (0, 0)
    slots.reserve(4, 100)
    write(slots, 3, 0, [1, 2])
    assert read(slots, 3, 2) == [1, 2]
