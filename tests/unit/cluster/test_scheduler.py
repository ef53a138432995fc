"""What the scheduler promises, over drawn snapshots and over drawn days."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.capacity import Bundle, Demand, Placement, Resources, Space, total
from cluster.scheduler import Quota, Rules, Running, Snapshot, Verdict, Waiting, decide, queue_key

NODE = Resources(8, 2)
PROJECTS = "abc"
HOUR_S = 3600.0

parts = st.builds(Resources, st.integers(0, 8).map(float), st.integers(0, 2).map(float))
demands = st.lists(st.builds(Bundle, st.integers(1, 4), parts), min_size=1, max_size=3).map(tuple)
waiting_jobs = st.lists(
    st.builds(
        Waiting,
        uid=st.uuids().map(str),
        project=st.sampled_from(PROJECTS),
        demand=demands,
        priority=st.integers(0, 1000),
        since_s=st.integers(0, 100_000).map(float),
        seq=st.integers(1, 10_000),
        limit_s=st.sampled_from([60.0, 600.0, 6000.0, inf]),
    ),
    unique_by=lambda job: job.seq,
    max_size=20,
)
quotas = st.dictionaries(
    st.sampled_from(PROJECTS),
    st.builds(Quota, cpus=st.integers(0, 40), gpus=st.integers(0, 8), jobs=st.integers(0, 5), weight=st.floats(0.5, 4)),
)
rules = st.builds(Rules, max_running_jobs=st.sampled_from([1, 3, inf]), preempts=st.booleans())


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """A cluster of equal nodes on which some jobs run already, each where there was room."""
    nodes = [NODE] * draw(st.integers(1, 6))
    space, running = Space(nodes), list[Running]()
    for job in draw(waiting_jobs):
        placement = space.place(job.demand)
        if placement is not None:
            space.take(placement)
            ends = 100_000 + job.limit_s
            is_leaving, can_yield = draw(st.sampled_from([(False, True), (False, False), (True, False)]))
            running.append(
                Running(
                    *(job.uid, job.project, placement, job.priority, job.since_s, ends),
                    waited_since_s=job.since_s,
                    can_yield=can_yield,
                    is_leaving=is_leaving,
                )
            )
    return Snapshot(100_000.0, nodes, draw(waiting_jobs), running, draw(quotas), draw(rules))


def free(snapshot: Snapshot, *, without: tuple[str, ...] = ()) -> Space:
    space = Space(snapshot.nodes)
    for job in snapshot.running:
        if job.uid not in without:
            space.take(job.placement)
    return space


def by_uid(snapshot: Snapshot) -> dict[str, Waiting]:
    return {job.uid: job for job in snapshot.waiting}


def admitted(snapshot: Snapshot, verdict: Verdict) -> list[Waiting]:
    return [by_uid(snapshot)[uid] for uid in verdict.admit]


@given(snapshots())
def test_what_is_admitted_has_room_all_at_once_and_each_job_whole(snapshot: Snapshot) -> None:
    space = free(snapshot)
    for job in admitted(snapshot, decide(snapshot)):
        placement = space.place(job.demand)
        assert placement is not None
        assert sum(part.cpus for _, part in placement) == total(job.demand).cpus
        space.take(placement)


@given(snapshots())
def test_no_project_goes_beyond_its_quota_and_no_installation_beyond_its_jobs(snapshot: Snapshot) -> None:
    new = admitted(snapshot, decide(snapshot))
    if new:
        assert len(new) + len(snapshot.running) <= snapshot.rules.max_running_jobs
    for project in {job.project for job in new}:
        quota = snapshot.quotas.get(project, Quota())
        held = [part for job in snapshot.running if job.project == project for _, part in job.placement]
        asked = [total(job.demand) for job in new if job.project == project]
        count = sum(job.project == project for job in [*snapshot.running, *new])
        assert count <= quota.jobs
        assert sum(one.cpus for one in [*held, *asked]) <= quota.cpus
        assert sum(one.gpus for one in [*held, *asked]) <= quota.gpus


@given(snapshots())
def test_everybody_is_admitted_or_told_why_not(snapshot: Snapshot) -> None:
    verdict = decide(snapshot)
    assert {*verdict.admit, *verdict.reasons} == by_uid(snapshot).keys()
    assert not set(verdict.admit) & verdict.reasons.keys()
    assert list(verdict.reasons.values()).count("RESOURCES") <= 1


@given(snapshots())
def test_no_room_is_left_empty_for_the_first_in_line(snapshot: Snapshot) -> None:
    verdict = decide(snapshot)
    space = free(snapshot)
    for job in admitted(snapshot, verdict):
        placement = space.place(job.demand)
        assert placement is not None
        space.take(placement)
    for uid, why in verdict.reasons.items():
        if why == "RESOURCES":
            assert space.place(by_uid(snapshot)[uid].demand) is None
    if "BEHIND_OTHERS" in verdict.reasons.values():
        assert "RESOURCES" in verdict.reasons.values()


def admitted_before_the_head(snapshot: Snapshot) -> list[Waiting]:
    verdict = decide(replace(snapshot, rules=replace(snapshot.rules, backfill_depth=0)))
    return [by_uid(snapshot)[uid] for uid in verdict.admit]


@given(snapshots())
def test_jobs_yield_only_to_a_higher_one_and_only_if_that_helps(snapshot: Snapshot) -> None:
    verdict = decide(snapshot)
    if not verdict.preempt:
        return
    assert snapshot.rules.preempts
    (head,) = (by_uid(snapshot)[uid] for uid, why in verdict.reasons.items() if why == "RESOURCES")
    running = {job.uid: job for job in snapshot.running}
    for uid in verdict.preempt:
        assert running[uid].can_yield
        assert not running[uid].is_leaving
        assert running[uid].priority + snapshot.rules.yield_margin <= head.priority
    leaving = tuple(job.uid for job in snapshot.running if job.is_leaving)

    def helps(victims: tuple[str, ...]) -> bool:
        space = free(snapshot, without=(*victims, *leaving))
        for job in admitted_before_the_head(snapshot):
            space.take(space.place(job.demand) or ())
        return space.place(head.demand) is not None

    assert all(not helps(tuple(one for one in verdict.preempt if one != uid)) for uid in verdict.preempt)


@given(snapshots(), st.randoms(use_true_random=False))
def test_order_of_the_snapshot_does_not_matter(snapshot: Snapshot, random) -> None:
    mixed = list(snapshot.waiting)
    random.shuffle(mixed)
    assert decide(snapshot) == decide(replace(snapshot, waiting=mixed))


@given(waiting_jobs, st.floats(0, 1e6))
def test_the_order_within_a_project_does_not_change_by_waiting(jobs: list[Waiting], later: float) -> None:
    points = Rules().ageing_per_hour

    def score(job: Waiting, now_s: float) -> float:
        return job.priority + points * (now_s - job.since_s) / HOUR_S

    order = sorted(jobs, key=lambda job: queue_key(job.priority, job.since_s, job.seq, Rules()))
    for first, second in itertools.pairwise(order):
        assert score(first, 1e5 + later) >= score(second, 1e5 + later) - 1e-6


ONE = (Bundle(1, Resources(8, 2)),)
"""A whole node."""


def job(uid: str, demand: Demand = ONE, **fields: object) -> Waiting:
    values = {"project": "a", "priority": 500, "since_s": 0.0, "seq": 1 + sum(map(ord, uid)), **fields}
    return Waiting(uid=uid, demand=demand, **values)  # type: ignore[arg-type]


def on(node: int, uid: str, *, ends_by_s: float = inf, priority: int = 500, since_s: float = 0.0) -> Running:
    return Running(uid, "a", ((node, NODE),), priority, since_s, ends_by_s)


def test_a_later_job_goes_first_only_if_it_ends_before_the_head_can_begin() -> None:
    wide = job("wide", (Bundle(2, NODE),), priority=599)
    running = [on(0, "r", ends_by_s=1000.0)]
    short, long = job("short", limit_s=900.0), job("long", limit_s=1100.0)
    verdict = decide(Snapshot(100.0, [NODE, NODE], [wide, short, long], running))
    assert verdict.admit == ("short",)
    assert verdict.reasons == {"wide": "RESOURCES", "long": "BEHIND_OTHERS"}
    verdict = decide(Snapshot(101.0, [NODE, NODE], [wide, short], running))
    assert verdict.admit == ()


def test_a_later_job_goes_beside_the_head_for_as_long_as_it_likes() -> None:
    wide = job("wide", (Bundle(2, NODE),), priority=599)
    running = [on(0, "r", ends_by_s=1000.0)]
    verdict = decide(Snapshot(0.0, [NODE] * 3, [job("wide3", (Bundle(3, NODE),), priority=599), job("long")], running))
    assert verdict.admit == ()
    verdict = decide(Snapshot(0.0, [NODE] * 2, [wide, job("none", (Bundle(1, Resources(0)),))], running))
    assert verdict.admit == ("none",)


def test_nothing_goes_before_a_head_whose_start_nobody_can_tell() -> None:
    wide = job("wide", (Bundle(2, NODE),), priority=599)
    verdict = decide(Snapshot(0.0, [NODE] * 2, [wide, job("short", limit_s=1.0)], [on(0, "r")]))
    assert verdict.admit == ()


def test_the_lowest_and_youngest_yields_to_a_much_higher_job() -> None:
    running = [on(0, "low", priority=100), on(1, "lower", priority=50), on(2, "young", priority=50, since_s=9.0)]
    nodes = [NODE] * 3
    assert decide(Snapshot(10.0, nodes, [job("high")], running)).preempt == ("young",)
    assert decide(Snapshot(10.0, nodes, [job("two", (Bundle(2, NODE),))], running)).preempt == ("young", "lower")
    assert decide(Snapshot(10.0, nodes, [job("near", priority=149)], running)).preempt == ()
    assert decide(Snapshot(10.0, nodes, [job("high")], running, rules=Rules(preempts=False))).preempt == ()
    leaving = [running[0], running[1], replace(running[2], is_leaving=True)]
    assert decide(Snapshot(10.0, nodes, [job("high")], leaving)).preempt == ()


@pytest.mark.parametrize(("weights", "expected"), [((1.0, 1.0), 4), ((1.0, 3.0), 6)])
def test_projects_share_by_their_weights(weights: tuple[float, float], expected: int) -> None:
    """Eight nodes, everybody wants all of them."""
    queue = [
        job(f"{project}{at}", project=project, seq=at + 100 * (project == "b")) for at in range(8) for project in "ab"
    ]
    quotas = {"a": Quota(weight=weights[0]), "b": Quota(weight=weights[1])}
    verdict = decide(Snapshot(0.0, [NODE] * 8, queue, quotas=quotas))
    assert len(verdict.admit) == 8
    assert sum(uid.startswith("b") for uid in verdict.admit) == expected


def test_too_large_and_too_many_are_told_apart_and_keep_nobody_waiting() -> None:
    queue = [
        job("large", (Bundle(3, NODE),), priority=900),
        job("fat", (Bundle(1, Resources(9)),), priority=900),
        job("quota", (Bundle(2, NODE),), priority=800, project="b"),
        job("fits", priority=1),
    ]
    of_b = {"b": Quota(cpus=16)}
    verdict = decide(Snapshot(0.0, [NODE] * 2, queue, quotas={"b": Quota(cpus=15)}))
    assert verdict.admit == ("fits",)
    assert verdict.reasons == {"large": "TOO_LARGE", "fat": "TOO_LARGE", "quota": "OVER_QUOTA"}
    verdict = decide(Snapshot(0.0, [NODE] * 3, [*queue[2:], job("fills", project="b", priority=950)], quotas=of_b))
    assert verdict.reasons == {"quota": "QUOTA"}
    assert verdict.held["b"] == (8, 2, 1)


@given(snapshots())
def test_an_empty_cluster_does_not_stay_empty(snapshot: Snapshot) -> None:
    """Work-conserving: whoever may begin at all is let in where nobody is in the way."""
    verdict = decide(replace(snapshot, running=()))
    assert verdict.admit or not {"RESOURCES", "BEHIND_OTHERS"} & set(verdict.reasons.values())


@dataclass
class Day:
    """A cluster that is driven by decisions; jobs end when they said or before, or yield and wait again."""

    nodes: list[Resources]
    rules: Rules
    now_s: float = 0.0
    waiting: dict[str, Waiting] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    left_s: dict[str, float] = field(default_factory=dict)
    known: dict[str, Waiting] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    promised: dict[str, float] = field(default_factory=dict)
    yielded: int = 0

    def arrive(self, job: Waiting, runs_s: float) -> None:
        self.waiting[job.uid] = self.known[job.uid] = job
        self.left_s[job.uid] = runs_s

    def decide(self) -> None:
        """One decision, and what follows at once; nothing may ever be over-committed."""
        snapshot = Snapshot(
            self.now_s, self.nodes, list(self.waiting.values()), list(self.running.values()), rules=self.rules
        )
        verdict = decide(snapshot)
        space = free(snapshot)
        for uid in verdict.admit:
            one = self.waiting.pop(uid)
            placement: Placement | None = space.place(one.demand)
            assert placement is not None
            space.take(placement)
            self.began.setdefault(uid, self.now_s)
            ends_by_s = self.now_s + one.limit_s
            self.running[uid] = Running(
                uid, one.project, placement, one.priority, self.now_s, ends_by_s, waited_since_s=one.since_s
            )
        for uid, why in verdict.reasons.items():
            if why == "RESOURCES":
                self.promised.setdefault(uid, verdict.start_by_s)
        for uid in verdict.preempt:
            self.left_s[uid] -= self.now_s - self.running.pop(uid).since_s
            self.waiting[uid] = self.known[uid]
            self.yielded += 1

    def go_on(self, until_s: float) -> None:
        """Time passes; who is done ends."""
        for uid, one in list(self.running.items()):
            end_s = one.since_s + self.left_s[uid]
            if end_s <= until_s:
                self.ended[uid] = end_s
                del self.running[uid]
        self.now_s = until_s

    def next_end_s(self) -> float:
        return min(one.since_s + self.left_s[uid] for uid, one in self.running.items())


@pytest.mark.parametrize("preempts", [False, True])
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_everybody_ends_however_many_of_higher_priority_never_stop_coming(preempts: bool, data: st.DataObject) -> None:
    """The oldest job asks for the whole cluster at the lowest priority."""
    day = Day([NODE] * 2, Rules(preempts=preempts, ageing_per_hour=100.0))
    day.arrive(job("poor", (Bundle(2, NODE),), priority=0, limit_s=600.0), 600.0)
    for step in range(160):
        rich = job(f"rich{step}", priority=1000, since_s=day.now_s, seq=10 + step, limit_s=1200.0)
        day.arrive(rich, data.draw(st.sampled_from([300.0, 900.0, 1200.0])))
        day.decide()
        day.decide()  # whoever yielded is gone by now
        if "poor" in day.ended:
            break
        day.go_on(day.now_s + 600.0)
    assert day.ended["poor"] <= (1000 / 100 + 1) * HOUR_S + 1200.0 + 600.0


simple_jobs = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.sampled_from([Resources(2.0), Resources(8.0), Resources(1.0, 1.0), Resources(4.0, 2.0)]),
        st.integers(0, 1000),
        st.integers(1, 20),
        st.integers(1, 20),
    ),
    min_size=2,
    max_size=12,
)


@settings(deadline=None, max_examples=150)
@given(simple_jobs, st.integers(2, 4))
def test_filling_in_never_delays_the_head_beyond_what_it_was_promised(
    drawn: list[tuple[int, Resources, int, int, int]], num_nodes: int
) -> None:
    """Jobs end when they said, or before. (Of one kind of bundle each: of several, the packing may miss a place.)"""
    day = Day([NODE] * num_nodes, Rules(preempts=False))
    for at, (count, each, priority, limit, runs) in enumerate(drawn):
        one = job(f"j{at}", (Bundle(count, each),), priority=priority, seq=at, limit_s=60.0 * limit)
        day.arrive(one, 60.0 * min(runs, limit))
    day.decide()
    while day.running:
        day.go_on(day.next_end_s())
        day.decide()
    for uid, start_by_s in day.promised.items():
        assert day.began[uid] <= start_by_s
    whole = Space([NODE] * num_nodes)
    assert set(day.ended) == {uid for uid, one in day.known.items() if whole.place(one.demand) is not None}
