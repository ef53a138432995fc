from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeDriver, World

from cluster.lifecycle import State
from cluster.reconciler import Reconciler
from cluster.replicas import Replicas
from cluster.settings import Settings
from cluster.store.store import Store

LEASE_S = Settings().replica_lease_s


class Pair:
    """Two control planes on one store and one Ray; the clock of both is the world's, of the second one off by a bit."""

    def __init__(self, world: World, skew_s: float = 0.0) -> None:
        self.world = world
        self.stores = [world.store, Store.open(world.settings.database_url, lambda: world.clock() + skew_s)]
        self.replicas = [
            Replicas(store, name, f"127.0.0.1:{port}", LEASE_S, clock=world.clock)
            for store, name, port in zip(self.stores, ("a", "b"), (50051, 50052), strict=True)
        ]
        self.reconcilers = [
            Reconciler(world.settings, store, world.ray, replicas)
            for store, replicas in zip(self.stores, self.replicas, strict=True)
        ]

    async def rounds(self, count: int = 1, *, alive: tuple[int, ...] = (0, 1)) -> None:
        for _ in range(count):
            self.world.clock.advance(LEASE_S / 4)
            for index in alive:
                await self.reconcilers[index].round()

    @property
    def leaders(self) -> list[str]:
        return [each.id for each in self.replicas if each.leads]

    def tending(self, uid: str) -> list[str]:
        return [each.id for each in self.replicas if each.tends(uid)]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(World(tmp_path, max_running_jobs=50))


async def test_one_leads_and_each_job_is_one_replicas(pair: Pair) -> None:
    await pair.rounds(2)
    assert pair.leaders == ["a"]
    owners = Counter(tuple(pair.tending(f"job-{number}")) for number in range(400))
    assert set(owners) == {("a",), ("b",)}
    assert min(owners.values()) > 120  # of 400, for 200 expected: eight standard deviations


async def test_who_dies_hands_on_its_own_jobs_alone(pair: Pair) -> None:
    await pair.rounds(2)
    before = {f"job-{number}": pair.tending(f"job-{number}") for number in range(100)}
    await pair.rounds(8, alive=(1,))
    assert all(pair.tending(uid) == ["b"] for uid in before)
    assert pair.leaders == ["b"]
    await pair.rounds(8)
    assert {uid: pair.tending(uid) for uid in before} == before
    assert pair.leaders == ["b"]


async def test_who_leaves_need_not_be_waited_for(pair: Pair) -> None:
    await pair.rounds(2)
    await pair.replicas[0].leave()
    await pair.rounds(2, alive=(1,))
    assert pair.leaders == ["b"]
    assert list(pair.replicas[1].addresses) == ["127.0.0.1:50052"]


async def test_who_was_killed_and_is_started_again_goes_on_at_once(pair: Pair) -> None:
    await pair.rounds(2)
    again = Replicas(pair.stores[0], "a", "127.0.0.1:50051", LEASE_S, clock=pair.world.clock)
    assert not again.leads
    await again.beat()
    assert again.leads
    assert list(again.addresses) == ["127.0.0.1:50051", "127.0.0.1:50052"]


async def test_who_cannot_say_that_it_lives_does_nothing_any_more(pair: Pair) -> None:
    await pair.rounds(2)
    pair.world.clock.advance(LEASE_S + 1)
    assert pair.leaders == []
    assert pair.tending("job-1") == []


async def test_two_share_the_work_and_one_of_them_may_die(pair: Pair) -> None:
    """FakeRay fails the test when two drivers of one job live at once."""
    world = pair.world
    world.ray.nodes_now = [world.ray.nodes_now[0]] * 5
    await pair.rounds(2)
    uids = [world.create(f"job{number}") for number in range(12)]
    await pair.rounds(4)
    assert all(world.state(uid) is State.STARTING for uid in uids)
    documents = {each.ray_job_id: FakeDriver(world, each).attempt for each in world.ray.submissions}
    assert {tuple(sorted(document["control_planes"])) for document in documents.values()} == {
        ("127.0.0.1:50051", "127.0.0.1:50052")
    }
    assert len({document["control_planes"][0] for document in documents.values()}) == 2
    drivers = [FakeDriver(world, each) for each in world.ray.submissions]
    for driver in drivers:
        await driver.heartbeat()
        driver.write(driver.record("SUCCEEDED"))
    await pair.rounds(8, alive=(1,))
    assert {uid: world.state(uid) for uid in uids} == dict.fromkeys(uids, State.SUCCEEDED)
    assert all(len(world.terminal_events(uid)) == 1 for uid in uids)


async def test_two_that_both_believe_to_lead_admit_nothing_twice(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have decided on the same snapshot before either makes a step."""
    await pair.rounds(2)
    uids = [pair.world.create(f"job{number}") for number in range(6)]
    monkeypatch.setattr(Replicas, "leads", property(lambda self: True))
    monkeypatch.setattr(Replicas, "tends", lambda self, uid: True)
    both_decided = threading.Barrier(2)
    with monkeypatch.context() as slow:
        for each in pair.reconcilers:
            slow.setattr(each._admission, "round", _then_wait(each._admission.round, both_decided))
        await asyncio.gather(*(each.round() for each in pair.reconcilers))
    await pair.rounds(2)
    begun = [uid for uid in uids if pair.world.submitted(uid)]
    assert len(begun) == 4  # as many as the node has CPUs
    for uid in begun:
        counts = Counter(pair.world.history(uid))
        assert (counts["ADMITTED"], counts["ATTEMPT_CREATED"], counts["SUBMITTED"]) == (1, 1, 1)


def _then_wait(decide: Callable[..., Any], barrier: threading.Barrier) -> Callable[..., Any]:
    def decide_and_wait(*args: Any) -> Any:
        found = decide(*args)
        barrier.wait(10)
        return found

    return decide_and_wait


@pytest.mark.parametrize("skew_s", [share * LEASE_S for share in (-3.0, -0.5, 0.5, 3.0)])
async def test_planes_whose_clocks_differ_start_nothing_twice_and_give_no_living_driver_up(
    tmp_path: Path, skew_s: float
) -> None:
    pair = Pair(World(tmp_path, max_running_jobs=50), skew_s)
    world = pair.world
    uids = [world.create() for _ in range(4)]
    for _ in range(12):
        await pair.rounds()
        drivers = [FakeDriver(world, each) for each in world.ray.submissions]
        for driver in drivers:
            await driver.heartbeat()
        assert all(len(world.ray.live(uid)) <= 1 for uid in uids)
    assert [(world.state(uid), len(world.job(uid).attempts)) for uid in uids] == [(State.RUNNING, 1)] * 4
    for driver in drivers:
        await driver.report(driver.record("SUCCEEDED"))
        driver.exit()
    await pair.rounds(8)
    assert {world.state(uid) for uid in uids} == {State.SUCCEEDED}
    assert all(len(world.terminal_events(uid)) == 1 for uid in uids)
    pair.stores[1].close()
