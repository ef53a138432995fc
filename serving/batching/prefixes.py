"""Beginnings of prompts that came more than once, kept so that the next one begins where they end.

A prompt is cut into blocks; the name of a block is a hash of all tokens up to its end, so a name that is known means
that all before it is equal too. What was used longest ago goes first (RadixAttention, arXiv 2312.07104, keeps a tree
instead). Knows nothing of requests; its tokens count against the cache's bound.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from serving.batching.cache import Segment

BLOCK = 16
_REMEMBERED = 1 << 14
"""Names of blocks that came, whether kept or not."""


def block_names(tokens: Sequence[int]) -> list[bytes]:
    """Of every whole block, with at least one token behind the last of them: the model must have something to read."""
    names, state = [], blake2b(digest_size=16)
    for start in range(0, len(tokens) - BLOCK, BLOCK):
        state.update(array("q", tokens[start : start + BLOCK]).tobytes())
        names.append(state.digest())
    return names


@dataclass(eq=False)
class Prefix:
    """Keys and values of the blocks of these names."""

    names: tuple[bytes, ...]
    segment: Segment

    @property
    def num_tokens(self) -> int:
        return len(self.names) * BLOCK


class PrefixPool:
    """At most `capacity` tokens of prefixes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[bytes, Prefix] = OrderedDict()  # by the name of the last block, oldest use first
        self._by_name: dict[bytes, Prefix] = {}
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self.num_tokens = 0

    def clear(self) -> None:
        """Nothing is kept, and nothing was seen."""
        self._kept.clear()
        self._by_name.clear()
        self._seen.clear()
        self.num_tokens = 0

    def find(self, names: Sequence[bytes]) -> tuple[Prefix, int] | None:
        """The longest beginning that is kept: where it is, and how many tokens of that."""
        for count in range(len(names), 0, -1):
            if (prefix := self._by_name.get(names[count - 1])) is not None:
                self._kept.move_to_end(prefix.names[-1])
                return prefix, count * BLOCK
        return None

    def worth_keeping(self, names: Sequence[bytes]) -> int:
        """How many blocks of a prompt that was just computed came before and are not kept yet; 0: nothing to do."""
        known = sum(name in self._seen for name in names)  # names chain, so the known ones come first
        for name in names:
            self._seen[name] = None
            self._seen.move_to_end(name)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        known = min(known, self._capacity // BLOCK)
        return 0 if known == 0 or names[known - 1] in self._by_name else known

    def keep(self, names: Sequence[bytes], segment: Segment) -> None:
        """Take this in; a shorter one that it begins with has no use any more."""
        prefix = Prefix(tuple(names), segment)
        for name in names:
            if name in self._kept:
                self._drop(self._kept[name])
        while self.num_tokens + prefix.num_tokens > self._capacity:
            self._drop(next(iter(self._kept.values())))
        self._kept[prefix.names[-1]] = prefix
        self._by_name.update(dict.fromkeys(names, prefix))
        self.num_tokens += prefix.num_tokens

    def _drop(self, prefix: Prefix) -> None:
        """Blocks that another one shares are found there again when they come next."""
        del self._kept[prefix.names[-1]]
        self.num_tokens -= prefix.num_tokens
        for name in prefix.names:
            if self._by_name.get(name) is prefix:
                del self._by_name[name]
