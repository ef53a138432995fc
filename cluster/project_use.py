"""What each project holds of the cluster now, as the scheduler counts it against its quota. Changes nothing."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.capacity import Demand, Resources, total
from cluster.demands import Demands
from cluster.lifecycle import ACTIVE
from cluster.scheduler import Quota
from cluster.store.records import StoredJob
from cluster.store.store import Store


@dataclass(frozen=True)
class ProjectUse:
    """One project."""

    name: str
    quota: Quota
    held: Resources
    running_jobs: int
    waiting_jobs: int


class Projects:
    """Of one store; remembers only what specs ask for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._demands = Demands()
        self._one_reads = threading.Lock()

    def uses(self, names: Sequence[str] | None) -> list[ProjectUse]:
        """Of these projects, None for all that have a quota or a job, by name."""
        wanted = self._store.project_names() if names is None else sorted(set(names))
        quotas, waiting = self._store.quotas(), self._store.num_waiting_of()
        holding = self._holding()
        return [
            ProjectUse(
                name=name,
                quota=quotas.get(name, Quota()),
                held=self._sum(holding.get(name, [])),
                running_jobs=len(holding.get(name, [])),
                waiting_jobs=waiting.get(name, 0),
            )
            for name in wanted
        ]

    def _holding(self) -> dict[str, list[StoredJob]]:
        """Jobs that run, and ended ones whose processes may still be there; each once, it may move in between."""
        by_uid = {job.uid: job for job in (*self._store.unreleased(), *self._store.jobs_in(ACTIVE))}
        found = defaultdict[str, list[StoredJob]](list)
        for job in by_uid.values():
            found[job.project].append(job)
        return found

    def _sum(self, jobs: Sequence[StoredJob]) -> Resources:
        """A job whose spec another release wrote counts as nothing, as it does for the scheduler."""
        with self._one_reads:
            self._demands.forget()
            asked = [total(demand) for job in jobs if (demand := self._demand(job))]
        return Resources(float(sum(each.cpus for each in asked)), float(sum(each.gpus for each in asked)))

    def _demand(self, job: StoredJob) -> Demand | None:
        if self._demands.unknown([job.uid]):
            self._demands.learn(job.uid, job.kind, job.spec)
        return self._demands.of(job.uid)
