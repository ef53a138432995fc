"""Which waiting jobs begin now, which running ones make room, and why all others wait: pure functions over a snapshot.

Reads no store and starts nothing. The order is a score: a job's priority, plus what it gains by waiting, less what its
project holds already. The first job in that order that does not fit is the *head*: its start is reserved, later jobs
may go before it only where that cannot delay it (EASY backfill, Lifka 1995), and lower ones may be asked to yield.
Shares are dominant ones (DRF, Ghodsi et al. 2011).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from cluster.capacity import Demand, Placement, Resources, Space, total

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
    can_yield: bool = True
    """It may be asked to make room: it resumes from a checkpoint. False while it is on its way out already."""


@dataclass(frozen=True)
class Quota:
    """What a project may hold at once, and its weight beside other projects."""

    cpus: float = inf
    gpus: float = inf
    jobs: float = inf
    weight: float = 1.0


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
    return Verdict(tuple(desk.admitted), tuple(_victims(snapshot, desk)), desk.reasons)


def queue_key(priority: int, since_s: float, seq: int, rules: Rules) -> tuple[float, int]:
    """Ascending order within a project. It does not change with time, for all gain alike by waiting."""
    return rules.ageing_per_hour * since_s / _HOUR_S - priority, seq


def place_in_queue(priority: int, now_us: int) -> dict[str, object]:
    """What is stored of a job that begins to wait now."""
    return {"queue_since_us": now_us, "queue_key": queue_key(priority, now_us / 1e6, 0, Rules())[0]}


def _in_order(snapshot: Snapshot, desk: _Desk) -> Iterator[Waiting]:
    """By score. What a project holds changes as its jobs are admitted, so the next one is always chosen anew."""
    rules, queues = snapshot.rules, defaultdict[str, list[Waiting]](list)
    for job in snapshot.waiting:
        queues[job.project].append(job)
    for queue in queues.values():
        queue.sort(key=lambda job: queue_key(job.priority, job.since_s, job.seq, rules), reverse=True)

    def rank(project: str) -> tuple[float, int]:
        job = queues[project][-1]
        key, seq = queue_key(job.priority, job.since_s, job.seq, rules)
        return key + rules.share_points * desk.share(project), seq

    while queues:
        project = min(queues, key=rank)
        yield queues[project].pop()
        if not queues[project]:
            del queues[project]


class _Desk:
    """What has been decided so far, and what is left after it."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.admitted: list[str] = []
        self.reasons: dict[str, str] = {}
        self.head: Waiting | None = None
        self.space = Space(snapshot.nodes)
        self._snapshot = snapshot
        self._empty = self.space.copy()
        self._possible: dict[Demand, bool] = {}
        self._whole = self.space.free
        self._held = defaultdict[str, list[float]](lambda: [0.0, 0.0, 0.0])
        self._ends: list[tuple[float, Placement]] = []
        self._start_s = inf
        self._beside: Space | None = None
        for job in snapshot.running:
            self.space.take(job.placement)
            self._hold(job.project, _taken(job.placement))
            self._ends.append((job.ends_by_s, job.placement))

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
        if len(self.admitted) + len(self._snapshot.running) >= self._snapshot.rules.max_running_jobs:
            return "RUNNING_JOBS_LIMIT"
        if held[2] + 1 > quota.jobs or held[0] + asked.cpus > quota.cpus or held[1] + asked.gpus > quota.gpus:
            return "QUOTA"
        if job.demand not in self._possible:
            self._possible[job.demand] = self._empty.place(job.demand) is not None
        return "" if self._possible[job.demand] else "TOO_LARGE"

    def admit(self, job: Waiting) -> bool:
        """If there is room now."""
        placement = self.space.place(job.demand)
        if placement is not None:
            self._begin(job, placement)
        return placement is not None

    def reserve(self, job: Waiting) -> None:
        """When it can begin at the latest, and what will be free beside it then."""
        self.head, self.reasons[job.uid] = job, "RESOURCES"
        then = self.space.copy()
        for end_s, placement in sorted(self._ends, key=lambda one: one[0]):
            if end_s == inf:
                return
            then.give_back(placement)
            start = then.place(job.demand)
            if start is not None:
                then.take(start)
                self._start_s, self._beside = end_s, then
                return

    def backfill(self, job: Waiting) -> bool:
        """Admits it if it has ended when the head begins, or fits beside the head. Without a reservation: never."""
        if self._beside is None:
            return False
        placement = self.space.place(job.demand)
        if placement is None:
            return False
        if self._snapshot.now_s + job.limit_s > self._start_s:
            if not self._beside.has_room_for(placement):
                return False
            self._beside.take(placement)
        self._begin(job, placement)
        return True

    def _begin(self, job: Waiting, placement: Placement) -> None:
        self.space.take(placement)
        self._hold(job.project, _taken(placement))
        self._ends.append((self._snapshot.now_s + job.limit_s, placement))
        self.admitted.append(job.uid)

    def _hold(self, project: str, taken: Resources) -> None:
        held = self._held[project]
        held[0], held[1], held[2] = held[0] + taken.cpus, held[1] + taken.gpus, held[2] + 1

    def _quota(self, project: str) -> Quota:
        return self._snapshot.quotas.get(project, Quota())


def _victims(snapshot: Snapshot, desk: _Desk) -> list[str]:
    """The lowest and youngest jobs whose resources the head needs; none, if even all of them would not do."""
    head, rules = desk.head, snapshot.rules
    if head is None or not rules.preempts:
        return []
    leaving = [job for job in snapshot.running if not job.can_yield]
    lower = [job for job in snapshot.running if job.can_yield and job.priority + rules.yield_margin <= head.priority]
    space, chosen = desk.space.copy(), list[Running]()
    for job in leaving:
        space.give_back(job.placement)
    for job in sorted(lower, key=lambda job: (job.priority, -job.since_s, job.uid)):
        if space.place(head.demand) is not None:
            break
        space.give_back(job.placement)
        chosen.append(job)
    if space.place(head.demand) is None:
        return []
    for job in list(chosen):  # who was taken before a larger one may not be needed any more
        space.take(job.placement)
        if space.place(head.demand) is not None:
            chosen.remove(job)
        else:
            space.give_back(job.placement)
    return [job.uid for job in chosen]


def _taken(placement: Placement) -> Resources:
    return Resources(sum(part.cpus for _, part in placement), sum(part.gpus for _, part in placement))
