"""From the store and the cluster's nodes to the scheduler's snapshot, and from its verdict to steps of jobs.

Decides nothing itself: that is scheduler.py's. Where on the nodes a job lies is assumed, and kept as long as it runs;
Ray may have put it elsewhere, which does not matter to what is free in all. What is remembered here can be read anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from cluster import wishes
from cluster.capacity import Placement, Resources, Space, shortage, total
from cluster.demands import Demands
from cluster.lifecycle import ACTIVE, State
from cluster.scheduler import Held, Quota, Rules, Running, Snapshot, Verdict, Waiting, decide
from cluster.standings import WORDS, Standing, moment, quota_words
from cluster.store.records import Change, QueueEntry, StoredJob
from cluster.store.store import Store

_S = 1e-6
_LOOK = 100
"""Jobs of each project's queue that are looked at at first in one decision."""
_FURTHEST_LOOK = 1600
"""At once, behind those that cannot begin: about three thousand of a project in all."""
_ITS_OWN_FAULT = frozenset({"TOO_LARGE", "QUOTA", "OVER_QUOTA"})
"""Reasons to wait that say nothing of whoever stands behind."""
_MOST_STANDINGS = 1000
_LOOK_AGAIN_US = 5_000_000
"""While jobs wait, nodes that came or went are noticed after this long."""
_LEAVING = frozenset({State.PAUSING, State.CANCELLING})

JobStep = tuple[StoredJob, Change]


@dataclass
class _Board:
    """Where the jobs that hold something are assumed to lie."""

    nodes: Sequence[Resources] = ()
    placements: dict[str, Placement] = field(default_factory=dict)

    def lay_out(self, nodes: Sequence[Resources], holding: Sequence[StoredJob], demands: Demands) -> None:
        """Those that were there stay where they were, unless the nodes are others now."""
        known = self.placements if list(nodes) == list(self.nodes) else {}
        self.nodes, self.placements = nodes, {job.uid: known[job.uid] for job in holding if job.uid in known}
        space = Space(nodes)
        space.take(*self.placements.values())
        for job in sorted(holding, key=lambda job: (job.start_time_us or inf, job.seq)):
            if job.uid not in self.placements:
                self.placements[job.uid] = space.crowd(demands.of(job.uid) or ())
                space.take(self.placements[job.uid])


class Admission:
    """One decision at a time, and only when it could be another than the last one."""

    def __init__(self, rules: Rules, store: Store) -> None:
        self._rules = rules
        self._store = store
        self._demands = Demands()
        self._board = _Board()
        self._seen: object = None
        self._decided_on: object = None
        self._due_us: float = 0.0
        self._hold_us: float = 0.0
        self._said: Mapping[str, Standing] | None = None

    def is_due(self, holding: Sequence[StoredJob], *, ray_is_seen: bool) -> bool:
        """Whether anything has changed since the last decision, or its time is over."""
        self._seen = (self._store.queue_version(), tuple(job.uid for job in holding), ray_is_seen)
        is_over = self._store.now_us() >= self._due_us or self._store.wall_us() >= self._hold_us
        return is_over or self._seen != self._decided_on

    def again(self) -> None:
        """A step that was decided on could not be made: the next round decides anew."""
        self._decided_on = None

    def round(self, nodes: Sequence[Resources] | None, holding: Sequence[StoredJob]) -> list[JobStep]:
        """The steps that follow from the scheduler's decision; where everybody stands is stored. No nodes: Ray is gone.

        `holding`: all jobs that hold something on the cluster.
        """
        self._demands.forget()
        decided_on, entries = self._seen, self._store.queue_heads(_LOOK)
        self._learn([*(entry.uid for entry in entries), *(job.uid for job in holding)])
        if nodes is None:
            steps = self._given_up(entries)
            order = sorted(_ready(entries, steps), key=lambda entry: (entry.queue_key, entry.seq))
            self._say({entry.uid: "RAY_UNREACHABLE" for entry in order}, {})
        else:
            steps = self._decided(nodes, entries, holding)
        look_again_us = self._store.now_us() + _LOOK_AGAIN_US if entries else inf
        self._decided_on, self._due_us, self._hold_us = decided_on, look_again_us, self._store.next_hold() or inf
        return steps

    def _decided(
        self, nodes: Sequence[Resources], entries: list[QueueEntry], holding: Sequence[StoredJob]
    ) -> list[JobStep]:
        """What comes of one look at the queue; of several, while those who cannot begin hide who stands behind them."""
        page = _LOOK
        while True:
            steps = self._given_up(entries)
            ready = _ready(entries, steps)
            verdict = self.decide(nodes, ready, holding)
            hidden = self._hidden(entries, verdict, holding)
            page *= 2
            if not hidden or page > _FURTHEST_LOOK:
                break
            more = self._store.queue_heads(page, hidden)
            self._learn([entry.uid for entry in more])
            entries += more
        releasing = {entry.uid: "RELEASING" for entry in entries if entry.is_releasing}
        self._say({**verdict.reasons, **releasing}, self._details(verdict, nodes, ready))
        return [*steps, *self._admitted(verdict), *self._yielding(verdict, holding)]

    def _hidden(
        self, entries: Sequence[QueueEntry], verdict: Verdict, holding: Sequence[StoredJob]
    ) -> dict[str, QueueEntry]:
        """Project -> the last one seen, where more wait behind a page of those that nothing but themselves holds up.

        A project that holds as many jobs as it may is looked at no further: nobody of it can begin.
        """
        quotas, held = self._store.quotas(), Counter(job.project for job in holding)
        found = {}
        for project, queue in _by_project(entries).items():
            stuck = sum(verdict.reasons.get(entry.uid) in _ITS_OWN_FAULT for entry in queue)
            is_shut = project in quotas and held[project] >= quotas[project].jobs
            if len(queue) >= _LOOK and len(queue) - stuck < _LOOK and not is_shut:
                found[project] = queue[-1]
        return found

    def decide(self, nodes: Sequence[Resources], ready: Sequence[QueueEntry], holding: Sequence[StoredJob]) -> Verdict:
        """The scheduler's verdict on what is stored."""
        self._board.lay_out(nodes, holding, self._demands)
        now_us = self._store.now_us()
        return decide(
            Snapshot(
                now_s=now_us * _S,
                nodes=nodes,
                waiting=[self._waiting(entry) for entry in ready],
                running=[self._running(job, now_us) for job in holding],
                quotas=self._store.quotas(),
                rules=self._rules,
            )
        )

    def _learn(self, uids: Sequence[str]) -> None:
        unknown = self._demands.unknown(uids)
        for at in range(0, len(unknown), _LOOK):
            for uid, kind, spec in self._store.specs_of(unknown[at : at + _LOOK]):
                self._demands.learn(uid, kind, spec)

    def _given_up(self, entries: Sequence[QueueEntry]) -> list[JobStep]:
        """A job that depends on one that did not succeed will never begin, nor will one that cannot be read."""
        message = "it was stored by another release, and this one cannot read its spec; submit its job file again"
        unreadable = [self._store.get_job(entry.uid) for entry in entries if self._demands.of(entry.uid) is None]
        doomed = self._store.doomed(_LOOK)
        states = self._store.states_of([uid for job in doomed for uid in job.depends_on])
        return [
            *((job, Change("SPEC_UNREADABLE", message, State.FAILED)) for job in unreadable),
            *((job, _dependency_failed(job, states)) for job in doomed),
        ]

    def _admitted(self, verdict: Verdict) -> list[JobStep]:
        """Those that still wait: whoever was paused or cancelled meanwhile gives cause for another decision."""
        jobs = [self._store.get_job(uid) for uid in verdict.admit]
        change = Change("ADMITTED", "its turn has come", State.ADMITTED)
        return [(job, change) for job in jobs if job.state is State.QUEUED]

    def _yielding(self, verdict: Verdict, holding: Sequence[StoredJob]) -> list[JobStep]:
        head = next((uid for uid, reason in verdict.reasons.items() if reason == "RESOURCES"), "")
        victims, now_us = [job for job in holding if job.uid in verdict.preempt], self._store.now_us()
        return [(job, change) for job in victims if (change := wishes.preempt(job, now_us, head)) is not None]

    def _details(self, verdict: Verdict, nodes: Sequence[Resources], ready: Sequence[QueueEntry]) -> dict[str, str]:
        """What is to be said of single jobs, beyond the words of their reason."""
        projects, quotas, found = {entry.uid: entry.project for entry in ready}, self._store.quotas(), {}
        for uid, reason in verdict.reasons.items():
            demand = self._demands.of(uid) or ()
            if reason == "TOO_LARGE":
                found[uid] = shortage(nodes, demand)
            elif reason in ("QUOTA", "OVER_QUOTA"):
                project = projects[uid]
                quota, held = quotas.get(project, Quota()), verdict.held.get(project, Held())
                found[uid] = quota_words(quota, held, total(demand))
            elif reason == "RESOURCES" and verdict.start_by_s < inf:
                by_us = max(int(verdict.start_by_s / _S), self._store.now_us())
                found[uid] = f"{WORDS[reason]}, by {moment(by_us)} at the latest"
        return found

    def _say(self, reasons: Mapping[str, str], details: Mapping[str, str]) -> None:
        said = {
            uid: Standing(at, reason, details.get(uid) or WORDS[reason])
            for at, (uid, reason) in enumerate(list(reasons.items())[:_MOST_STANDINGS], start=1)
        }
        if said != self._said:
            self._store.save_standings(said)
            self._said = said

    def _waiting(self, entry: QueueEntry) -> Waiting:
        return Waiting(
            uid=entry.uid,
            project=entry.project,
            demand=self._demands.of(entry.uid) or (),
            priority=entry.priority,
            since_s=entry.queue_since_us * _S,
            seq=entry.seq,
            limit_s=_left_s(entry.max_run_duration_us, entry.ran_us),
        )

    def _running(self, job: StoredJob, now_us: int) -> Running:
        since_us = job.running_since_us or job.update_time_us
        return Running(
            uid=job.uid,
            project=job.project,
            placement=self._board.placements[job.uid],
            priority=job.priority,
            since_s=since_us * _S,
            ends_by_s=now_us * _S + _left_s(job.max_run_duration_us, job.ran_until(now_us)),
            waited_since_s=(job.queue_since_us or job.create_time_us) * _S,
            can_yield=job.state is State.RUNNING and not _is_spent(job),
            is_leaving=job.state not in ACTIVE or job.state in _LEAVING,
        )


def _ready(entries: Sequence[QueueEntry], given_up: Sequence[JobStep]) -> list[QueueEntry]:
    lost = {job.uid for job, _ in given_up}
    return [entry for entry in entries if not entry.is_releasing and entry.uid not in lost]


def _by_project(entries: Sequence[QueueEntry]) -> dict[str, list[QueueEntry]]:
    found = defaultdict[str, list[QueueEntry]](list)
    for entry in entries:
        found[entry.project].append(entry)
    return found


def _dependency_failed(job: StoredJob, states: Mapping[str, State]) -> Change:
    lost = (uid for uid in job.depends_on if states.get(uid) in (None, State.FAILED, State.CANCELLED))
    uid = next(lost, "a job")
    how = f"ended as {states[uid].value}" if uid in states else "is not there any more"
    return Change("DEPENDENCY_FAILED", f"it depends on {uid}, which {how}; it was never begun", State.FAILED)


def _is_spent(job: StoredJob) -> bool:
    """Whether it has made room as often as it is willing to."""
    most = (job.spec.get("schedule") or {}).get("retries", {}).get("preemption")
    return most is not None and job.preemptions >= most


def _left_s(limit_us: int | None, ran_us: int) -> float:
    """Of the time that it may run."""
    return inf if limit_us is None else max(0, limit_us - ran_us) * _S
