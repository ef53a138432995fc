"""The KV cache: a rectangle of slots, one row per sequence, written where each row stands and read without copying.

A run of the model sees some neighbouring rows up to the longest of them. The rectangle grows and shrinks with what is
reserved in it and never beyond its bound. What stands behind the end of a row is finite and masked, never read.
Shapes: R rows of the rectangle, S slots of a row, B rows of a run, T new tokens of each, N new tokens of all, H heads,
D their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_SHORTEST = 64  # slots of a row


@dataclass(frozen=True, slots=True)
class Span:
    """What one run reads and writes: rows `first` to `first + rows`, the first `length` slots of each."""

    first: int
    rows: int
    length: int
    target_N: Tensor
    """Where each new token goes, counted in slots from the first of the rectangle."""
    source_N: Tensor | None
    """Which of the B x T tokens are not padding; None where all are."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, each (R, S, H, D): a token's heads lie together, so that a write is one copy."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, length = self._slots.shape
        self.keys, self.values = (
            torch.zeros((rows, length, new.shape[1], new.shape[3]), dtype=new.dtype, device=new.device)
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *_: object,
        **__: object,
    ) -> tuple[Tensor, Tensor]:
        """Write what is new, (B, H, T, D), and give all that the run's rows hold, (B, H, length, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        span = self._slots.span
        _write(self.keys, key_states, span)
        _write(self.values, value_states, span)
        rows = slice(span.first, span.first + span.rows)
        return self.keys[rows, : span.length].transpose(1, 2), self.values[rows, : span.length].transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self._slots.span.length, 0

    def get_seq_length(self) -> int:
        return self._slots.span.length if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        """Unlike the others, this gives the memory back."""
        del self.keys, self.values
        self.is_initialized = False


def _write(slots_RSHD: Tensor, new_BHTD: Tensor, span: Span) -> None:
    flat_NHD = new_BHTD.transpose(1, 2).reshape(-1, new_BHTD.shape[1], new_BHTD.shape[3])
    if span.source_N is not None:
        flat_NHD = flat_NHD.index_select(0, span.source_N)
    slots_RSHD.view(-1, *slots_RSHD.shape[2:]).index_copy_(0, span.target_N, flat_NHD)


Segment = Sequence[tuple[Tensor, Tensor]]
"""Of each layer the keys and values of some tokens, (tokens, H, D)."""


class Slots(Cache):  # type: ignore[misc]
    """The rectangle over all layers. At most `bound` slots, in at most `max_rows` rows."""

    span: Span

    def __init__(self, num_layers: int, *, bound: int, max_rows: int) -> None:
        self.shape = (0, 0)
        self._bound = bound
        self._max_rows = max_rows
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows of so many slots; what the rows hold stays."""
        assert rows <= self._max_rows
        assert rows * length <= self._bound
        if rows > self.shape[0] or length > self.shape[1]:
            self._reshape(rows, *self._roomy(rows, max(length, _SHORTEST)))

    def _roomy(self, rows: int, length: int) -> tuple[int, int]:
        """More than is needed, to powers of two, as far as the bound allows: so it is seldom made anew."""
        length = min(max(_power_of_two(length), 1), self._bound // rows)
        return min(_power_of_two(rows), self._max_rows, self._bound // length), length

    def _reshape(self, kept: int, rows: int, length: int) -> None:
        """Layer by layer, so that no more than one of them is there twice. Without memory for it nothing is kept."""
        kept_rows, kept_length = min(kept, self.shape[0]), min(length, self.shape[1])
        self.shape = (rows, length)
        try:
            for layer in self._held():
                layer.keys = _resized(layer.keys, self.shape, kept_rows, kept_length)
                layer.values = _resized(layer.values, self.shape, kept_rows, kept_length)
        except RuntimeError:
            self.forget()
            raise

    def forget(self) -> None:
        """Everything, and give its memory back."""
        self.shape = (0, 0)
        for layer in self._held():
            layer.reset()

    def move(self, source: int, target: int, length: int) -> None:
        """The first slots of one row into another."""
        for layer in self._held():
            layer.keys[target, :length] = layer.keys[source, :length]
            layer.values[target, :length] = layer.values[source, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        for layer in self._held():
            for slots in (layer.keys, layer.values):
                slots[[one, other], :length] = slots[[other, one], :length]

    def clear(self, row: int) -> None:
        """Of numbers that are none: a mask hides them from the model, but not from its arithmetic."""
        for layer in self._held():
            layer.keys[row].zero_()
            layer.values[row].zero_()

    def _held(self) -> Iterator[SlotLayer]:
        return (layer for layer in self.layers if layer.is_initialized)

    def read(self, row: int, length: int) -> Segment:
        """A copy of the beginning of a row."""
        return [(layer.keys[row, :length].clone(), layer.values[row, :length].clone()) for layer in self.layers]

    def fill(self, row: int, segment: Segment, length: int) -> None:
        """Begin a row with what was read of another."""
        for layer, (keys, values) in zip(self.layers, segment, strict=True):
            layer.keys[row, :length] = keys[:length]
            layer.values[row, :length] = values[:length]


def _resized(slots: Tensor, shape: tuple[int, int], rows: int, length: int) -> Tensor:
    larger = slots.new_zeros((*shape, *slots.shape[2:]))
    larger[:rows, :length] = slots[:rows, :length]
    return larger


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
