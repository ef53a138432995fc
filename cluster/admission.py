"""From the store and the cluster's nodes to the scheduler's snapshot, and from its verdict to steps of jobs.

Decides nothing itself: that is scheduler.py's. Jobs that hold something are packed on the nodes in the order in which
they began, as Ray would do it; where exactly they lie does not matter to what is free in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf

from cluster import wishes
from cluster.capacity import Demand, Resources, Space
from cluster.demands import Demands
from cluster.lifecycle import ACTIVE, TERMINAL, State
from cluster.scheduler import Quota, Rules, Running, Snapshot, Verdict, Waiting, decide
from cluster.store.records import Change, StoredJob
from cluster.store.store import Store

WORDS: Mapping[str, str] = {
    "RESOURCES": "it goes next, as soon as there is room for all of it at once",
    "BEHIND_OTHERS": "a job before it waits for room; with a schedule.max_run_duration it may be let in between",
    "QUOTA": "its project holds as much as it may",
    "RUNNING_JOBS_LIMIT": "as many jobs run as this installation allows",
    "TOO_LARGE": "the cluster does not have that much, even if nothing else ran on it",
    "HELD": "it is held until schedule.hold_until",
    "DEPENDENCY": "a job that it depends on has not ended yet",
    "RAY_UNREACHABLE": "Ray cannot be seen, so nobody knows what is free",
}
_S = 1e-6
_LOOK = 200
"""Jobs of each project's queue that are looked at in one round."""


class Admission:
    """Remembers only what specs ask for, and what was said last."""

    def __init__(self, rules: Rules, store: Store) -> None:
        self._rules = rules
        self._store = store
        self._demands = Demands()
        self._said: dict[str, tuple[int, str]] = {}

    def round(self, nodes: Sequence[Resources]) -> list[tuple[StoredJob, Change]]:
        """The steps that follow from the scheduler's decision on what is stored; where the others stand is stored."""
        waiting = self._store.queue_heads(_LOOK)
        if not waiting and not self._said:
            return []
        holding = [*self._store.jobs_in(ACTIVE), *self._store.unreleased()]
        now_us, states = self._store.now_us(), self._store.states_of([uid for job in waiting for uid in job.depends_on])
        steps = [(job, change) for job in waiting if (change := self._given_up(job, states))]
        ready = [job for job in waiting if all(states.get(uid) is State.SUCCEEDED for uid in job.depends_on)]
        verdict = self.decide(now_us, nodes, ready, holding, self._store.quotas())
        by_uid = {job.uid: job for job in (*waiting, *holding)}
        steps += [(by_uid[uid], Change("ADMITTED", "its turn has come", State.ADMITTED)) for uid in verdict.admit]
        head = next((uid for uid, reason in verdict.reasons.items() if reason == "RESOURCES"), "")
        for uid in verdict.preempt:
            change = wishes.preempt(by_uid[uid], now_us, head)
            steps += [(by_uid[uid], change)] if change else []
        not_ready = {job.uid: "DEPENDENCY" for job in waiting if job not in ready}
        self._say({**verdict.reasons, **not_ready})
        return steps

    def _say(self, reasons: Mapping[str, str]) -> None:
        said = {uid: (at, reason) for at, (uid, reason) in enumerate(reasons.items(), start=1)}
        if said != self._said:
            self._store.save_standings(said)
            self._said = said

    def decide(
        self,
        now_us: int,
        nodes: Sequence[Resources],
        waiting: Iterable[StoredJob],
        holding: Iterable[StoredJob],
        quotas: Mapping[str, Quota],
    ) -> Verdict:
        snapshot = Snapshot(
            now_s=now_us * _S,
            nodes=nodes,
            waiting=[self._waiting(job, demand) for job in waiting if (demand := self._demand(job)) is not None],
            running=self._running(nodes, holding),
            quotas=quotas,
            rules=self._rules,
        )
        return decide(snapshot)

    def _demand(self, job: StoredJob) -> Demand | None:
        return self._demands.of(job.uid, job.kind, job.spec)

    def _given_up(self, job: StoredJob, states: Mapping[str, State]) -> Change | None:
        """A job that depends on one that did not succeed will never begin, nor will one that cannot be read."""
        if self._demand(job) is None:
            message = "it was stored by another release, and this one cannot read its spec; submit its job file again"
            return Change("SPEC_UNREADABLE", message, State.FAILED)
        for uid in job.depends_on:
            state = states.get(uid)
            if state is None or (state in TERMINAL and state is not State.SUCCEEDED):
                how = "is not there" if state is None else f"ended as {state.value}"
                return Change("DEPENDENCY_FAILED", f"it depends on {uid}, which {how}", State.FAILED)
        return None

    def _waiting(self, job: StoredJob, demand: Demand) -> Waiting:
        return Waiting(
            uid=job.uid,
            project=job.project,
            demand=demand,
            priority=job.priority,
            since_s=(job.queue_since_us or job.create_time_us) * _S,
            seq=job.seq,
            limit_s=_seconds(job.max_run_duration_us),
        )

    def _running(self, nodes: Sequence[Resources], holding: Iterable[StoredJob]) -> list[Running]:
        """One that has no place any more, since nodes went away, counts against its quota, and against nothing else."""
        space, found = Space(nodes), list[Running]()
        for job in sorted(holding, key=lambda job: (job.start_time_us or inf, job.seq)):
            placement = space.place(self._demand(job) or ()) or ()
            space.take(placement)
            since_s = (job.start_time_us or job.update_time_us) * _S
            can_yield = job.state is State.RUNNING and not _is_spent(job)
            ends_by_s = since_s + _seconds(job.max_run_duration_us)
            found.append(Running(job.uid, job.project, placement, job.priority, since_s, ends_by_s, can_yield))
        return found


def _is_spent(job: StoredJob) -> bool:
    """Whether it has made room as often as it is willing to."""
    most = (job.spec.get("schedule") or {}).get("retries", {}).get("preemption")
    return most is not None and job.preemptions >= most


def _seconds(duration_us: int | None) -> float:
    return inf if duration_us is None else duration_us * _S
