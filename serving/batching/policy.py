"""Who comes in next, and how much of whose prompt is computed next: pure functions of a few numbers.

First come, first served. A request reserves room for its prompt and the longest answer it may get, so what was let in
always ends, and nobody is thrown out again; whoever stands first in the line therefore gets in, however long it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine may use. Tokens, but for `max_rows` and `max_waiting`."""

    kv_tokens: int = 1 << 16
    """Of the whole cache: rows times the longest reservation among them, and what is kept of prompts."""
    prefix_tokens: int = 1 << 12
    """The part of it that keeps the beginnings of prompts which came more than once."""
    max_rows: int = 64
    prefill_tokens: int = 256
    """Of prompts, padding included, that one step computes before the other requests get their next token."""
    max_waiting: int = 256

    def __post_init__(self) -> None:
        if min(self.kv_tokens, self.max_rows, self.prefill_tokens, self.max_waiting) < 1:
            raise ValueError("kv_tokens, max_rows, prefill_tokens and max_waiting are at least 1")
        if not 0 <= self.prefix_tokens < self.kv_tokens:
            raise ValueError(f"prefix_tokens ({self.prefix_tokens}) must leave room in kv_tokens ({self.kv_tokens})")

    @property
    def row_tokens(self) -> int:
        """What is there for rows; so long may one request be."""
        return self.kv_tokens - self.prefix_tokens


def admit(reserved: Sequence[int], waiting: Iterable[int], limits: Limits) -> int:
    """How many from the head of the line come in, beside rows that have so much reserved."""
    rows, longest = len(reserved), max(reserved, default=0)
    for count, wanted in enumerate(waiting):
        rows, longest = rows + 1, max(longest, wanted)
        if rows > limits.max_rows or rows * longest > limits.row_tokens:
            return count
    return rows - len(reserved)


def prefill(remaining: Sequence[int], budget: int) -> list[int]:
    """Tokens to compute of the first rows whose prompts are not done, in the order in which they came.

    Either whole rests of prompts, padded to the longest of them within the budget, or one part of the first.
    """
    chosen: list[int] = []
    for rest in remaining:
        if (len(chosen) + 1) * max([*chosen, rest]) > budget:
            break
        chosen.append(rest)
    return chosen or [min(remaining[0], budget)] if remaining else []
