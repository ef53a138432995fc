"""Which samples share a row: whole ones by best-fit decreasing, or cut at the rows' ends so that rows are full.

Source: best-fit decreasing for sequence packing, arXiv 2107.02027. O(n log capacity) by a tree over free space.
It decides places only; keeping the samples of a row apart is `batch.collate`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.batch import Piece

Row = tuple[Piece, ...]


class _FreeSpace:
    """Open rows by free space; `take(size)` gives the fullest row that still has `size` free."""

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << capacity.bit_length()
        self._any = [False] * (2 * self._leaves)
        self._rows: list[list[int]] = [[] for _ in range(capacity + 1)]

    def put(self, row: int, free: int) -> None:
        self._rows[free].append(row)
        node = self._leaves + free
        while node and not self._any[node]:
            self._any[node] = True
            node >>= 1

    def take(self, size: int) -> tuple[int, int] | None:
        """(row, its free space), removed; None if nothing fits."""
        node = self._leaves + size
        while not self._any[node]:
            while node & 1:
                node >>= 1
            if node == 0:
                return None
            node += 1
        while node < self._leaves:
            node = 2 * node if self._any[2 * node] else 2 * node + 1
        free = node - self._leaves
        row = self._rows[free].pop()
        if not self._rows[free]:
            self._clear(node)
        return row, free

    def _clear(self, node: int) -> None:
        self._any[node] = False
        while node > 1 and not self._any[node ^ 1]:
            node >>= 1
            self._any[node] = False


def best_fit_decreasing(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """Rows of indices into `lengths`, none over `capacity` in sum; equal lengths are taken in the given order."""
    space = _FreeSpace(capacity)
    rows: list[list[int]] = []
    for index in sorted(order, key=lambda i: -lengths[i]):
        found = space.take(lengths[index])
        row, free = found if found else (len(rows), capacity)
        if found is None:
            rows.append([])
        rows[row].append(index)
        if free > lengths[index]:
            space.put(row, free - lengths[index])
    return [tuple(row) for row in rows]


def wrap(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[Row]:
    """Rows filled in the given order to exactly `capacity`, the last one apart; a sample goes on in the next row.

    Each cut costs the first token of the continuation as a target, and what follows it the context before the cut:
    the pieces of a sample do not see each other.
    """
    rows: list[list[Piece]] = [[]]
    free = capacity
    for index in order:
        start = 0
        while start < lengths[index]:
            if not free:
                rows.append([])
                free = capacity
            end = min(lengths[index], start + free)
            rows[-1].append(Piece(index, start, end))
            free -= end - start
            start = end
    return [tuple(row) for row in rows]
