"""What a cluster has, what jobs ask of it, and whether it fits: nodes, bundles, and placing all of a job or none of it.

A model, not a view: it packs bundles on nodes as Ray would, so that what is admitted can be placed. Starts nothing.

Shapes: N nodes, 2 resources (CPUs, GPUs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

_ROUNDING = 1e-6
"""Fractions of CPUs are summed in floating point."""
Array = np.ndarray[Any, np.dtype[np.float64]]


class Resources(NamedTuple):
    """Of a node, or of a part of a job."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Bundle:
    """So many processes that each need the same, each on one node."""

    count: int
    each: Resources


Demand = tuple[Bundle, ...]
"""What a job needs all at once, or it cannot begin (a gang)."""
Placement = tuple[tuple[int, Resources], ...]
"""(node, resources taken there)."""


def total(demand: Demand) -> Resources:
    """Of all bundles together."""
    return Resources(
        sum(bundle.count * bundle.each.cpus for bundle in demand),
        sum(bundle.count * bundle.each.gpus for bundle in demand),
    )


class Space:
    """Free resources of N nodes, taken and given back by whole placements."""

    def __init__(self, free: Sequence[Resources]) -> None:
        self._free_N2: Array = np.array(free, dtype=np.float64).reshape(-1, 2)

    def copy(self) -> Space:
        twin = Space(())
        twin._free_N2 = self._free_N2.copy()
        return twin

    @property
    def free(self) -> Resources:
        """Over all nodes."""
        cpus, gpus = self._free_N2.sum(axis=0)
        return Resources(float(cpus), float(gpus))

    def place(self, demand: Demand) -> Placement | None:
        """Where all bundles go together, the greediest first and each on the fullest nodes; None if they do not fit.

        Takes nothing yet. First fit decreasing may miss a packing that exists; it never finds one that does not.
        """
        if any(asked > has + _ROUNDING for asked, has in zip(total(demand), self.free, strict=True)):
            return None
        free_N2, found = self._free_N2.copy(), list[tuple[int, Resources]]()
        for bundle in sorted(demand, key=lambda one: (one.each.gpus, one.each.cpus), reverse=True):
            fits_N = _fits(free_N2, bundle.each)
            if fits_N.sum() < bundle.count:
                return None
            left = bundle.count
            for node in _fullest_first(fits_N):
                taken = min(left, int(fits_N[node]))
                part = Resources(taken * bundle.each.cpus, taken * bundle.each.gpus)
                free_N2[node] -= part
                found.append((int(node), part))
                left -= taken
                if left == 0:
                    break
        return tuple(found)

    def has_room_for(self, placement: Placement) -> bool:
        """On the very nodes that it names."""
        left_N2 = self._free_N2.copy()
        for node, part in placement:
            left_N2[node] -= part
        return bool((left_N2 >= -_ROUNDING).all())

    def take(self, placement: Placement) -> None:
        for node, part in placement:
            self._free_N2[node] -= part

    def give_back(self, placement: Placement) -> None:
        for node, part in placement:
            self._free_N2[node] += part


def _fits(free_N2: Array, each: Resources) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[N] how many such processes each node has room for."""
    needed = [(column, amount) for column, amount in enumerate(each) if amount > 0]
    if not needed:
        return np.full(len(free_N2), np.iinfo(np.int32).max, dtype=np.int64)
    rooms = [np.floor((free_N2[:, column] + _ROUNDING) / amount) for column, amount in needed]
    rooms_N: np.ndarray[Any, np.dtype[np.int64]] = np.minimum.reduce(rooms).astype(np.int64)
    return rooms_N


def _fullest_first(fits_N: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Nodes with room, the least of it first: large holes stay for large jobs."""
    nodes = np.flatnonzero(fits_N)
    order = np.argsort(fits_N[nodes], kind="stable")
    found: np.ndarray[Any, np.dtype[np.int64]] = nodes[order]
    return found
