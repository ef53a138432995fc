"""The KV cache: a rectangle of slots, one row per sequence, written where each row stands and read without copying.

The rectangle grows and shrinks with what is reserved in it and never beyond its bound. What stands behind the end of a
row is finite and masked, never read.
Shapes: R rows of the rectangle, S slots of a row, N new tokens of all, K heads of keys and values, D their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from serving.batching.attention import Span

_SHORTEST = 64  # slots of a row


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, each (R, K, S, D): what a head reads of a row lies together."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, length = self._slots.shape
        self.keys, self.values = (
            torch.zeros((rows, new.shape[1], length, new.shape[3]), dtype=new.dtype, device=new.device)
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
        """Write what is new, (1, K, N, D), and give all that there is, (R, K, S, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        target_NK = self._slots.targets(key_states.shape[1])
        _write(self.keys, key_states, target_NK)
        _write(self.values, value_states, target_NK)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self._slots.shape[1], 0

    def get_seq_length(self) -> int:
        return self._slots.shape[1] if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        """Unlike the others, this gives the memory back."""
        del self.keys, self.values
        self.is_initialized = False


def _write(slots_RKSD: Tensor, new_1KND: Tensor, target_NK: Tensor) -> None:
    new = new_1KND[0].transpose(0, 1).reshape(-1, new_1KND.shape[3])
    slots_RKSD.view(-1, slots_RKSD.shape[3]).index_copy_(0, target_NK, new)


Segment = Sequence[tuple[Tensor, Tensor]]
"""Of each layer the keys and values of some tokens, (K, tokens, D)."""


class Slots(Cache):  # type: ignore[misc]
    """The rectangle over all layers. At most `bound` slots, in at most `max_rows` rows."""

    def __init__(self, num_layers: int, *, bound: int, max_rows: int) -> None:
        self.shape = (0, 0)
        self._span: Span | None = None
        self._targets: dict[int, Tensor] = {}
        self._bound = bound
        self._max_rows = max_rows
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def write_by(self, span: Span) -> None:
        """What comes next are the new tokens of this run."""
        self._span, self._targets = span, {}

    def targets(self, heads: int) -> Tensor:
        """Where each head of each new token goes, counted in vectors from the first of the rectangle."""
        assert self._span is not None
        if heads not in self._targets:
            head_K = torch.arange(heads, device=self._span.row_N.device)
            of_head_NK = (self._span.row_N[:, None] * heads + head_K) * self.shape[1]
            self._targets[heads] = (of_head_NK + self._span.position_N[:, None]).flatten()
        return self._targets[heads]

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
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        for layer in self._held():
            for slots in (layer.keys, layer.values):
                slots[[one, other], :, :length] = slots[[other, one], :, :length]

    def clear(self, row: int) -> None:
        """Of numbers that are none: a mask hides them from the model, but not from its arithmetic."""
        for layer in self._held():
            layer.keys[row].zero_()
            layer.values[row].zero_()

    def _held(self) -> Iterator[SlotLayer]:
        return (layer for layer in self.layers if layer.is_initialized)

    def read(self, row: int, length: int) -> Segment:
        """A copy of the beginning of a row."""
        return [(layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone()) for layer in self.layers]

    def fill(self, row: int, segment: Segment, length: int) -> None:
        """Begin a row with what was read of another, maybe of another rectangle: here nothing may have been run yet."""
        for layer, (keys, values) in zip(self.layers, segment, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[row, :, :length] = keys[:, :length]
            layer.values[row, :, :length] = values[:, :length]


def _resized(slots: Tensor, shape: tuple[int, int], rows: int, length: int) -> Tensor:
    larger = slots.new_zeros((shape[0], slots.shape[1], shape[1], slots.shape[3]))
    larger[:rows, :, :length] = slots[:rows, :, :length]
    return larger


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
