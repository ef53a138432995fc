"""The scheduler by itself: 100,000 synthetic jobs on 1,000 simulated nodes, and how long a decision takes.

A replay in simulated time: jobs arrive, run for what they were drawn to run, and end; every tick is one call of
`cluster.scheduler.decide`. Beside it the same jobs in the same order without filling in and without pre-emption. Then
one decision on a busy cluster, as the queue grows: of what a real store (SQLite) shows of it, and how long that reads.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
import tempfile
import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "protos"))

from sqlalchemy import insert

from benchmarks.measure import machine, rounded, save, versions
from cluster.capacity import Bundle, Demand, Resources, Space
from cluster.scheduler import Quota, Rules, Running, Snapshot, Verdict, Waiting, decide, queue_key
from cluster.store.store import Store
from cluster.store.tables import jobs as job_table

A = TypeVar("A")
T = TypeVar("T")

NODE = Resources(64.0, 8.0)
PROJECTS = {f"team-{at:02d}": Quota(weight=1.0 + at % 3) for at in range(20)}
CLASSES: dict[str, tuple[float, int, float]] = {
    "small": (0.70, 1, 900.0),
    "middle": (0.25, 8, 3600.0),
    "large": (0.05, 64, 10_800.0),
}
"""Share of the jobs, GPUs, mean run time in seconds."""
PRIORITIES = (100, 500, 500, 500, 900)
POLICIES = {"ours": Rules(), "in order": Rules(backfill_depth=0, preempts=False)}
_ARRIVAL_LOAD = 0.95
"""Of all GPUs, what arrives in the mean."""
_BUSY = 3000
"""Jobs, the first of which fill the cluster."""
_LOOK = 100
"""Jobs of each project that a decision is shown: as many as a store would read by its index."""


@dataclass(frozen=True)
class Synthetic:
    """A job, and what only the replay knows of it."""

    waiting: Waiting
    kind: str
    runs_s: float


@dataclass
class Queues:
    """Each project's jobs in their order, as an index of a store keeps them."""

    rules: Rules
    jobs: dict[str, list[tuple[tuple[float, int], Waiting]]] = field(default_factory=dict)

    def add(self, job: Waiting) -> None:
        key = queue_key(job.priority, job.since_s, job.seq, self.rules)
        insort(self.jobs.setdefault(job.project, []), (key, job), key=lambda entry: entry[0])

    def first(self, count: int) -> list[Waiting]:
        return [job for queue in self.jobs.values() for _, job in queue[:count]]

    def remove(self, uids: set[str], count: int) -> None:
        for queue in self.jobs.values():
            queue[:count] = [entry for entry in queue[:count] if entry[1].uid not in uids]

    def __len__(self) -> int:
        return sum(map(len, self.jobs.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    parser.add_argument("--save", action="store_true", help="also under benchmarks/results/")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--tick", type=float, default=180.0, help="simulated seconds between decisions")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    jobs = draw(chosen.jobs, chosen.nodes, chosen.seed)
    document: dict[str, Any] = {"benchmark": "scheduler_sim", "jobs": chosen.jobs, "nodes": chosen.nodes}
    document["replay"] = {name: replay(jobs, chosen.nodes, chosen.tick, rules) for name, rules in POLICIES.items()}
    document["decision"] = decisions(chosen.nodes, chosen.seed)
    ours, plain = document["replay"]["ours"], document["replay"]["in order"]
    by_size = document["decision"]
    document["ratio"] = {
        "utilisation_to_in_order": rounded(ours["utilisation"] / plain["utilisation"]),
        "decision_100k_to_1k": rounded(by_size["100000"]["decide_ms"]["p50"] / by_size["1000"]["decide_ms"]["p50"]),
    }
    document |= {"tick_s": chosen.tick, "machine": machine(), "versions": versions("numpy", "sqlalchemy")}
    print(table(document), file=sys.stderr)
    if chosen.save:
        print(save("scheduler_sim", document), file=sys.stderr)
    if chosen.json:
        print(json.dumps(document))


def table(document: Mapping[str, Any]) -> str:
    """For people, and for docs/scheduling.md."""
    kinds = list(CLASSES)
    lines = [
        f"| | GPUs used | {' | '.join(f'{kind}: wait p50 / p90 / p99, min' for kind in kinds)} | made room |",
        f"|---|---|{'---|' * len(kinds)}---|",
    ]
    for name, found in document["replay"].items():
        waits = [" / ".join(f"{value:.0f}" for value in found["wait_minutes"][kind].values()) for kind in kinds]
        lines.append(f"| {name} | {100 * found['utilisation']:.1f} % | {' | '.join(waits)} | {found['yielded']} |")
    lines += ["", "| waiting jobs | read p50 / p99, ms of CPU | decide p50 / p99, ms of CPU |", "|---|---|---|"]
    for size, found in document["decision"].items():
        cells = (f"{found[name]['p50']:.1f} / {found[name]['p99']:.1f}" for name in ("read_ms", "decide_ms"))
        lines.append(f"| {int(size):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(count: int, nodes: int, seed: int) -> list[Synthetic]:
    """Poisson arrivals; run times are exponential, and limits are what people write: too long, in round numbers."""
    rng = random.Random(seed)
    mean_gpu_s = sum(share * gpus * runs for share, gpus, runs in CLASSES.values())
    gap_s = mean_gpu_s / (nodes * NODE.gpus * _ARRIVAL_LOAD)
    now_s, found = 0.0, list[Synthetic]()
    for seq in range(count):
        now_s += rng.expovariate(1.0 / gap_s)
        (kind,) = rng.choices(list(CLASSES), [share for share, _, _ in CLASSES.values()])
        _, gpus, mean_s = CLASSES[kind]
        runs_s = max(30.0, rng.expovariate(1.0 / mean_s))
        limit_s = 600.0 * (1 + int(runs_s * rng.uniform(1.1, 3.0) / 600.0))
        waiting = Waiting(
            uid=f"{kind}-{seq}",
            project=rng.choice(list(PROJECTS)),
            demand=_demand(gpus),
            priority=rng.choice(PRIORITIES),
            since_s=now_s,
            seq=seq,
            limit_s=limit_s,
        )
        found.append(Synthetic(waiting, kind, runs_s))
    return found


def _demand(gpus: int) -> Demand:
    workers = max(1, gpus // 8)
    return (Bundle(workers, Resources(8.0 * min(gpus, 8), min(gpus, 8))),)


def replay(jobs: Sequence[Synthetic], nodes: int, tick_s: float, rules: Rules) -> dict[str, Any]:
    """All of them to their end. A job that yields keeps what it has done and waits again."""
    queues, running, ends = Queues(rules), dict[str, Running](), list[tuple[float, str]]()
    by_uid, left = {one.waiting.uid: one for one in jobs}, {one.waiting.uid: one.runs_s for one in jobs}
    began, busy_gpu_s, times, now_s, at = dict[str, float](), 0.0, list[float](), 0.0, 0
    yielded = 0
    while at < len(jobs) or len(queues) or running:
        now_s += tick_s
        while at < len(jobs) and jobs[at].waiting.since_s <= now_s:
            queues.add(jobs[at].waiting)
            at += 1
        while ends and ends[0][0] <= now_s:
            end_s, uid = heapq.heappop(ends)
            if uid in running and left[uid] <= end_s - running[uid].since_s + 1e-6:
                busy_gpu_s += _gpus(running.pop(uid)) * left[uid]
        snapshot = Snapshot(now_s, [NODE] * nodes, queues.first(_LOOK), list(running.values()), PROJECTS, rules)
        started = time.process_time()
        verdict = decide(snapshot)
        times.append(time.process_time() - started)
        queues.remove(set(verdict.admit), _LOOK)
        for one in _placed(snapshot, verdict):
            running[one.uid] = one
            began.setdefault(one.uid, now_s)
            heapq.heappush(ends, (now_s + left[one.uid], one.uid))
        for uid in verdict.preempt:
            one = running.pop(uid)
            busy_gpu_s += _gpus(one) * (now_s - one.since_s)
            left[uid] -= now_s - one.since_s
            queues.add(by_uid[uid].waiting)
            yielded += 1
    waits = {
        kind: [began[one.waiting.uid] - one.waiting.since_s for one in jobs if one.kind == kind] for kind in CLASSES
    }
    return {
        "utilisation": rounded(busy_gpu_s / (nodes * NODE.gpus * now_s)),
        "hours": rounded(now_s / 3600),
        "yielded": yielded,
        "wait_minutes": {kind: _spread([wait / 60 for wait in found]) for kind, found in waits.items()},
        "decision_ms": _spread([1e3 * one for one in times]),
    }


def _placed(snapshot: Snapshot, verdict: Verdict) -> list[Running]:
    """What the cluster does with a verdict: the same packing, for it is the same function."""
    space, waiting = Space(snapshot.nodes), {job.uid: job for job in snapshot.waiting}
    space.take(*(one.placement for one in snapshot.running))
    found = []
    for uid in verdict.admit:
        job = waiting[uid]
        placement = space.place(job.demand)
        assert placement is not None
        space.take(placement)
        ends_by_s = snapshot.now_s + job.limit_s
        found.append(Running(uid, job.project, placement, job.priority, snapshot.now_s, ends_by_s, job.since_s))
    return found


def _gpus(one: Running) -> float:
    return sum(part.gpus for _, part in one.placement)


def decisions(nodes: int, seed: int) -> dict[str, Any]:
    """On a busy cluster, as the queue grows."""
    found = {}
    for size in (1000, 10_000, 100_000):
        jobs = [one.waiting for one in draw(size + _BUSY, nodes, seed)]
        before = Snapshot(0.0, [NODE] * nodes, jobs[:_BUSY], (), PROJECTS, POLICIES["in order"])
        running = _placed(before, decide(before))
        with tempfile.TemporaryDirectory() as directory:
            store = Store.open(f"sqlite:///{directory}/queue.db")
            _fill(store, jobs[_BUSY:])
            read_ms, entries = _timed(store.queue_heads, _LOOK)
            store.close()
        by_uid = {job.uid: job for job in jobs}
        waiting = [by_uid[entry.uid] for entry in entries]
        snapshot = Snapshot(jobs[-1].since_s, [NODE] * nodes, waiting, running, PROJECTS, POLICIES["ours"])
        decide_ms, _ = _timed(decide, snapshot)
        found[str(size)] = {"looked_at": len(waiting), "read_ms": read_ms, "decide_ms": decide_ms}
    return found


def _fill(store: Store, jobs: Sequence[Waiting]) -> None:
    """Rows as CreateJob would leave them, all at once."""
    empty: dict[str, Any] = {
        "kind": "FineTune",
        "labels": {},
        "spec": {},
        "resolved_models": {},
        "conditions": [],
        "depends_on": [],
    }
    empty |= dict.fromkeys(("reason", "message", "published_model", "report_path", "creator", "retry_of"), "")
    empty |= dict.fromkeys(("infrastructure_failures", "user_failures", "num_unmet", "preemptions", "ran_us"), 0)
    with store.database.write() as write:
        rows = [_row(job, at) for at, job in enumerate(jobs, start=1)]
        write.connection.execute(insert(job_table), [{**empty, **row} for row in rows])


def _row(job: Waiting, at: int) -> dict[str, Any]:
    times: dict[str, Any] = dict.fromkeys(
        ("queue_since_us", "create_time_us", "update_time_us"), int(job.since_s * 1e6)
    )
    key, _ = queue_key(job.priority, job.since_s, job.seq, Rules())
    row = {"uid": job.uid, "name": "job", "project": job.project, "priority": job.priority, "state": "QUEUED", **times}
    return {**row, "queue_key": key, "max_run_duration_us": int(job.limit_s * 1e6), "resource_version": at}


def _timed(call: Callable[[A], T], argument: A, times: int = 25) -> tuple[dict[str, float], T]:
    """Milliseconds of CPU: what else runs on the machine does not count."""
    call(argument)
    found = []
    for _ in range(times):
        started = time.process_time()
        answer = call(argument)
        found.append(1e3 * (time.process_time() - started))
    return _spread(found), answer


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values) or [inf]
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {name: rounded(ordered[min(len(ordered) - 1, int(share * len(ordered)))]) for name, share in at.items()}


if __name__ == "__main__":
    main()
