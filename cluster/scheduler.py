"""Which waiting jobs begin now, which running ones make room, and why all others wait: pure functions over a snapshot.

Reads no store and starts nothing. The order is a score: a job's priority, plus what it gains by waiting, less what its
project holds already. The first job in that order that does not fit is the *head*: lower ones may be asked to make room
for it, its start is reserved, and later jobs go before it only where that cannot delay it (EASY backfill, Lifka 1995).
Shares are dominant ones (DRF, Ghodsi et al. 2011). docs/scheduling.md tells it at length.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from cluster.capacity import Demand, Placement, Resources, Returns, Space, total

_HOUR_S = 3600.0


@dataclass(frozen=True)
class Waiting:
    """A job in the queue."""

    uid: str
    project: str
    demand: Demand
    priority: int
    since_s: float
    """When it began to wait."""
    seq: int
    """Grows with the order of creation."""
    limit_s: float = inf
    """It runs no longer than that."""


@dataclass(frozen=True)
class Running:
    """A job that holds resources."""

    uid: str
    project: str
    placement: Placement
    priority: int
    since_s: float
    """When it began to run."""
    ends_by_s: float = inf
    waited_since_s: float = inf
    """When it began to wait before it ran; what it gained by waiting protects it from those who came after."""
    can_yield: bool = True
    """It may be asked to make room: it goes on from a checkpoint later."""
    is_leaving: bool = False
    """It is on its way out already."""


@dataclass(frozen=True)
class Quota:
    """What a project may hold at once, and its weight beside other projects."""

    cpus: float = inf
    gpus: float = inf
    jobs: float = inf
    weight: float = 1.0


class Held(NamedTuple):
    """What a project holds."""

    cpus: float = 0.0
    gpus: float = 0.0
    jobs: float = 0


@dataclass(frozen=True)
class Rules:
    """Set by whoever runs the installation."""

    ageing_per_hour: float = 50.0
    """Points of priority that an hour of waiting is worth, so that nobody waits for ever."""
    share_points: float = 200.0
    """Points that a project loses which holds all of the cluster; less by its share, and by its weight."""
    max_running_jobs: float = inf
    backfill_depth: int = 100
    """Jobs behind the head that are tried in one decision."""
    preempts: bool = True
    yield_margin: int = 100
    """Points of priority (as given, without ageing) that a job must be below the head to be asked to yield."""


@dataclass(frozen=True)
class Snapshot:
    """All that a decision depends on."""

    now_s: float
    nodes: Sequence[Resources]
    """All that each node has, used or not."""
    waiting: Sequence[Waiting]
    running: Sequence[Running] = ()
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    rules: Rules = Rules()


@dataclass(frozen=True)
class Verdict:
    """What to do. `reasons` has an UPPER_SNAKE word for every job that was looked at and waits, in its order."""

    admit: tuple[str, ...]
    preempt: tuple[str, ...]
    reasons: Mapping[str, str]
    start_by_s: float = inf
    """When the head (the job with reason RESOURCES) begins at the latest; inf: nobody can tell."""
    held: Mapping[str, Held] = field(default_factory=dict)
    """What projects hold once this is done."""


def decide(snapshot: Snapshot) -> Verdict:
    """Admit in order while there is room, reserve for the first who has none, fill in behind, make room if allowed."""
    desk = _Desk(snapshot)
    behind = 0
    for job in _in_order(snapshot, desk):
        if why := desk.refusal(job):
            desk.reasons[job.uid] = why
        elif desk.head is None:
            if not desk.admit(job):
                desk.reserve(job)
        elif not desk.backfill(job):
            desk.reasons[job.uid] = "BEHIND_OTHERS"
        behind += desk.head is not None
        if behind > snapshot.rules.backfill_depth:
            break
    return Verdict(tuple(desk.admitted), tuple(desk.yielding), desk.reasons, desk.start_s, desk.held)


def queue_key(priority: int, since_s: float, seq: int, rules: Rules) -> tuple[float, int]:
    """Ascending order within a project. It does not change with time, for all gain alike by waiting."""
    return rules.ageing_per_hour * since_s / _HOUR_S - priority, seq


def _in_order(snapshot: Snapshot, desk: _Desk) -> Iterator[Waiting]:
    """By score. What a project holds changes as its jobs are admitted, so its next one is ranked after that."""
    rules, queues = snapshot.rules, defaultdict[str, list[tuple[tuple[float, int], Waiting]]](list)
    for job in snapshot.waiting:
        queues[job.project].append((queue_key(job.priority, job.since_s, job.seq, rules), job))

    def rank(project: str) -> tuple[float, int, str]:
        key, seq = queues[project][-1][0]
        return key + rules.share_points * desk.share(project), seq, project

    for queue in queues.values():
        queue.sort(key=lambda entry: entry[0], reverse=True)
    ranks = [rank(project) for project in queues]
    heapq.heapify(ranks)
    while ranks:
        *_, project = heapq.heappop(ranks)
        yield queues[project].pop()[1]
        if queues[project]:
            heapq.heappush(ranks, rank(project))


class _Desk:
    """What has been decided so far, and what is left after it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.admitted: list[str] = []
        self.yielding: list[str] = []
        self.reasons: dict[str, str] = {}
        self.head: Waiting | None = None
        self.start_s = inf
        self._snapshot = snapshot
        self._empty = Space(snapshot.nodes)
        self._space = self._empty.copy()
        self._possible: dict[Demand, bool] = {}
        self._whole = self._space.free
        self._held = defaultdict[str, list[float]](lambda: [0.0, 0.0, 0.0])
        self._ends: list[tuple[float, Placement]] = []
        self._beside: Space | None = None
        self._space.take(*(job.placement for job in snapshot.running))
        for job in snapshot.running:
            self._hold(job.project, job.placement)

    @property
    def held(self) -> dict[str, Held]:
        return {project: Held(*amounts) for project, amounts in self._held.items()}

    def share(self, project: str) -> float:
        """The largest part of any resource that the project holds, by its weight."""
        held = self._held.get(project)
        if held is None:
            return 0.0
        parts = [has / whole for has, whole in zip(held, self._whole, strict=False) if whole > 0]
        return max(parts, default=0.0) / self._quota(project).weight

    def refusal(self, job: Waiting) -> str:
        """Why it cannot begin whatever the others do; empty if it can."""
        quota, asked, held = self._quota(job.project), total(job.demand), self._held[job.project]
        if job.demand not in self._possible:
            self._possible[job.demand] = self._empty.place(job.demand) is not None
        if not self._possible[job.demand]:
            return "TOO_LARGE"
        if asked.cpus > quota.cpus or asked.gpus > quota.gpus:
            return "OVER_QUOTA"
        if len(self.admitted) + len(self._snapshot.running) >= self._snapshot.rules.max_running_jobs:
            return "RUNNING_JOBS_LIMIT"
        is_over = held[2] + 1 > quota.jobs or held[0] + asked.cpus > quota.cpus or held[1] + asked.gpus > quota.gpus
        return "QUOTA" if is_over else ""

    def admit(self, job: Waiting) -> bool:
        """If there is room now."""
        placement = self._space.place(job.demand)
        if placement is not None:
            self._begin(job, placement)
        return placement is not None

    def reserve(self, job: Waiting) -> None:
        """Who makes room for it, when it can begin at the latest, and what will be free beside it then."""
        self.head, self.reasons[job.uid] = job, "RESOURCES"
        self.yielding = [victim.uid for victim in self._victims(job)]
        ends = sorted([*self._ends, *map(self._end_of, self._snapshot.running)], key=lambda end: end[0])
        returns = Returns(self._space, [placement for end_s, placement in ends if end_s < inf])
        count = returns.enough_for(job.demand)
        if count is None:
            return
        self.start_s = ends[count - 1][0]
        self._beside = returns.after(count)
        self._beside.take(self._beside.place(job.demand) or ())

    def backfill(self, job: Waiting) -> bool:
        """Admits it if it has ended when the head begins, or fits beside the head. Without a reservation: never."""
        if self._beside is None:
            return False
        placement = self._space.place(job.demand)
        if placement is None:
            return False
        if self._snapshot.now_s + job.limit_s > self.start_s:
            if not self._beside.has_room_for(placement):
                return False
            self._beside.take(placement)
        self._begin(job, placement)
        return True

    def _victims(self, head: Waiting) -> list[Running]:
        """The lowest and youngest jobs whose resources the head needs; none, if even all of them would not do."""
        if not self._snapshot.rules.preempts:
            return []
        space = self._space.copy()
        space.give_back(*(job.placement for job in self._snapshot.running if job.is_leaving))
        lower = sorted(self._lower_than(head), key=lambda job: (job.priority, -job.since_s, job.uid))
        returns = Returns(space, [job.placement for job in lower])
        count = returns.enough_for(head.demand)
        return _needed(head.demand, returns.after(count), lower[:count]) if count else []

    def _lower_than(self, head: Waiting) -> Iterator[Running]:
        """Far below it as given, and behind it in the queue if they waited still: so nobody makes room for ever."""
        rules = self._snapshot.rules
        key = queue_key(head.priority, head.since_s, head.seq, rules)
        for job in self._snapshot.running:
            is_far_below = job.priority + rules.yield_margin <= head.priority
            is_behind = queue_key(job.priority, job.waited_since_s, 0, rules) > key
            if job.can_yield and not job.is_leaving and is_far_below and is_behind:
                yield job

    def _end_of(self, job: Running) -> tuple[float, Placement]:
        is_leaving = job.is_leaving or job.uid in self.yielding
        return self._snapshot.now_s if is_leaving else job.ends_by_s, job.placement

    def _begin(self, job: Waiting, placement: Placement) -> None:
        self._space.take(placement)
        self._hold(job.project, placement)
        self._ends.append((self._snapshot.now_s + job.limit_s, placement))
        self.admitted.append(job.uid)

    def _hold(self, project: str, placement: Placement) -> None:
        held = self._held[project]
        for _, (cpus, gpus) in placement:
            held[0] += cpus
            held[1] += gpus
        held[2] += 1

    def _quota(self, project: str) -> Quota:
        return self._snapshot.quotas.get(project, Quota())


def _needed(demand: Demand, space: Space, leaving: Sequence[Running]) -> list[Running]:
    """Who of those whose leaving made this room must really go: none without whom there is room as well."""
    nodes, chosen = _nodes(space.place(demand)), []
    for job in leaving:
        space.take(job.placement)
        if nodes.isdisjoint(_nodes(job.placement)):
            continue
        placement = space.place(demand)
        if placement is None:
            space.give_back(job.placement)
            chosen.append(job)
        else:
            nodes = _nodes(placement)
    return chosen


def _nodes(placement: Placement | None) -> set[int]:
    return {node for node, _ in placement or ()}
