"""What a cluster has, what jobs ask of it, and whether it fits: nodes, bundles, and placing all of a job or none of it.

A model, not a view: it packs bundles on nodes as Ray would, so that what is admitted can be placed. Starts nothing.

Shapes: N nodes, P parts of jobs, 2 resources (CPUs, GPUs).
"""

from __future__ import annotations

import bisect
import itertools
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
    """Free resources of N nodes, taken and given back by whole placements. Below zero: more is held than there is."""

    def __init__(self, free: Sequence[Resources] | Array) -> None:
        self.free_N2: Array = np.array(free, dtype=np.float64).reshape(-1, 2)

    def copy(self) -> Space:
        return Space(self.free_N2)

    @property
    def free(self) -> Resources:
        """Over all nodes."""
        cpus, gpus = self.free_N2.sum(axis=0)
        return Resources(float(cpus), float(gpus))

    def place(self, demand: Demand) -> Placement | None:
        """Where all bundles go together, the greediest first and each on the fullest nodes; None if they do not fit.

        Takes nothing yet. First fit decreasing may miss a packing that exists; it never finds one that does not.
        """
        if not self.may_hold(total(demand)):
            return None
        free_N2, found = self.free_N2.copy(), list[tuple[int, Resources]]()
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

    def crowd(self, demand: Demand) -> Placement:
        """Where a job that runs must be: as `place`, or spread over the freest nodes, although they are full."""
        placement = self.place(demand)
        if placement is not None or not len(self.free_N2):
            return placement or ()
        free_N2, found = self.free_N2.copy(), list[tuple[int, Resources]]()
        for each in (bundle.each for bundle in demand for _ in range(bundle.count)):
            node = int(np.argmax(free_N2[:, 1] if each.gpus > 0 else free_N2[:, 0]))
            free_N2[node] -= each
            found.append((node, each))
        return tuple(found)

    def may_hold(self, asked: Resources) -> bool:
        """Over all nodes together: cheap, and false for most jobs that do not fit."""
        cpus, gpus = self.free_N2.sum(axis=0)
        return bool(asked.cpus <= cpus + _ROUNDING and asked.gpus <= gpus + _ROUNDING)

    def has_room_for(self, placement: Placement) -> bool:
        """On the very nodes that it names."""
        needed: dict[int, list[float]] = {}
        for node, (cpus, gpus) in placement:
            held = needed.setdefault(node, [0.0, 0.0])
            held[0], held[1] = held[0] + cpus, held[1] + gpus
        free_N2 = self.free_N2
        return all(
            free_N2[node, 0] >= cpus - _ROUNDING and free_N2[node, 1] >= gpus - _ROUNDING
            for node, (cpus, gpus) in needed.items()
        )

    def take(self, *placements: Placement) -> None:
        self._change(placements, -1.0)

    def give_back(self, *placements: Placement) -> None:
        self._change(placements, 1.0)

    def _change(self, placements: Sequence[Placement], sign: float) -> None:
        parts = [part for placement in placements for part in placement]
        if parts:
            amounts_P2: Array = np.array([part for _, part in parts], dtype=np.float64)
            self.add([node for node, _ in parts], sign * amounts_P2)

    def add(self, nodes: Sequence[int], amounts_P2: Array) -> None:
        """To the node of each of P parts; a node may be named more than once."""
        np.add.at(self.free_N2, list(nodes), amounts_P2)


class Returns:
    """What becomes free as placements are given back one after another."""

    def __init__(self, space: Space, placements: Sequence[Placement]) -> None:
        self._space = space
        self._placements = placements
        self._ends = list(itertools.accumulate(map(len, placements), initial=0))
        self._nodes = [node for placement in placements for node, _ in placement]
        self._amounts_P2: Array = np.array([part for each in placements for _, part in each], dtype=np.float64)

    def after(self, count: int) -> Space:
        """When the first `count` are back."""
        space, end = self._space.copy(), self._ends[count]
        if end:
            space.add(self._nodes[:end], self._amounts_P2[:end])
        return space

    def enough_for(self, demand: Demand) -> int | None:
        """How many must be back before there is room; None: all of them are not enough."""
        if not self._fits_after(len(self._placements), demand):
            return None
        counts = range(len(self._placements) + 1)
        return bisect.bisect_left(counts, True, key=lambda count: self._fits_after(count, demand))

    def _fits_after(self, count: int, demand: Demand) -> bool:
        return self.after(count).place(demand) is not None


def shortage(nodes: Sequence[Resources], demand: Demand) -> str:
    """What an empty cluster lacks for a job, in words; empty where it lacks nothing."""
    asked, has = total(demand), total(tuple(Bundle(1, node) for node in nodes))
    if asked.cpus > has.cpus + _ROUNDING or asked.gpus > has.gpus + _ROUNDING:
        return f"it asks for {_in_words(asked)} at once; the cluster has {_in_words(has)} in all"
    space = Space(nodes)
    if space.place(demand) is not None:
        return ""
    for bundle in demand:
        rooms = int(np.minimum(_fits(space.free_N2, bundle.each), bundle.count).sum())
        if rooms < bundle.count:
            each = f"{bundle.count} × {_in_words(bundle.each)}, each on one node"
            return f"it asks for {each}; even empty, the nodes have room for {rooms}"
    return "its processes do not fit on the nodes together, even if nothing else ran there"


def _in_words(amount: Resources) -> str:
    parts = [(amount.cpus, "CPU"), (amount.gpus, "GPU")]
    words = [f"{value:g} {name}{'' if value == 1 else 's'}" for value, name in parts if value > 0]
    return " and ".join(words) or "nothing"


def _fits(free_N2: Array, each: Resources) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[N] how many such processes each node has room for."""
    needed = [(column, amount) for column, amount in enumerate(each) if amount > 0]
    if not needed:
        return np.full(len(free_N2), np.iinfo(np.int32).max, dtype=np.int64)
    rooms = [np.floor((free_N2[:, column] + _ROUNDING) / amount) for column, amount in needed]
    rooms_N: np.ndarray[Any, np.dtype[np.int64]] = np.minimum.reduce(rooms).clip(min=0).astype(np.int64)
    return rooms_N


def _fullest_first(fits_N: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Nodes with room, the least of it first: large holes stay for large jobs."""
    nodes = np.flatnonzero(fits_N)
    order = np.argsort(fits_N[nodes], kind="stable")
    found: np.ndarray[Any, np.dtype[np.int64]] = nodes[order]
    return found
