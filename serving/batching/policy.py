"""Who comes in next, and how much of whose prompt is computed next: pure functions of a few numbers.

First come, first served. A request reserves room for its prompt and the longest answer it may get, so what was let in
always ends, and nobody is thrown out again; whoever stands first in the line therefore gets in, however long it is.
Long requests have a lane, and a part of the cache, of their own: short ones never wait until one of them ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_ABREAST = 16
"""So many of the longest requests of the lane for short ones fit beside each other."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine may use. Tokens, but for `max_rows` and `max_waiting`."""

    kv_tokens: int = 1 << 16
    """Of the whole cache: rows times the longest reservation among them, and what is kept of prompts."""
    prefix_tokens: int = 1 << 12
    """The part of it that keeps the beginnings of prompts which came more than once."""
    long_share: float = 0.5
    """Of the rest: the part that long requests have to themselves; 0: all requests wait in one line."""
    max_rows: int = 64
    """Of each lane."""
    prefill_tokens: int = 256
    """Of prompts, that one step computes beside the next token of everybody else."""
    max_waiting: int = 256
    """In each lane."""

    def __post_init__(self) -> None:
        if min(self.kv_tokens, self.max_rows, self.prefill_tokens, self.max_waiting) < 1:
            raise ValueError("kv_tokens, max_rows, prefill_tokens and max_waiting are at least 1")
        if not 0 <= self.prefix_tokens < self.kv_tokens:
            raise ValueError(f"prefix_tokens ({self.prefix_tokens}) must leave room in kv_tokens ({self.kv_tokens})")
        if not 0 <= self.long_share < 1:
            raise ValueError(
                f"long_share ({self.long_share}) must be at least 0, and leave something for short requests"
            )

    @property
    def row_tokens(self) -> int:
        """What is there for rows."""
        return self.kv_tokens - self.prefix_tokens


@dataclass(frozen=True, slots=True)
class Lane:
    """Requests that wait for each other alone."""

    longest: int
    """Tokens that one of them may reserve."""
    limits: Limits
    """Its part of the cache, without the prefixes, which all lanes share."""


def lanes(limits: Limits, context_length: int) -> list[Lane]:
    """Who is shorter than this goes into the first that takes it. Only one, where even the longest are short."""
    of_long = int(limits.row_tokens * limits.long_share)
    of_short = limits.row_tokens - of_long
    short = of_short // _ABREAST
    if context_length <= limits.row_tokens // _ABREAST or min(of_long, context_length) <= short or short < 1:
        return [Lane(min(context_length, limits.row_tokens), _part(limits, limits.row_tokens))]
    return [
        Lane(short, _part(limits, of_short)),
        Lane(min(context_length, of_long), _part(limits, of_long)),
    ]


def _part(limits: Limits, tokens: int) -> Limits:
    return replace(limits, kv_tokens=tokens, prefix_tokens=0)


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

    As many as the budget allows, so the last of these rows may get a part alone.
    """
    chosen: list[int] = []
    for rest in remaining:
        if budget == 0:
            break
        chosen.append(min(rest, budget))
        budget -= chosen[-1]
    return chosen
