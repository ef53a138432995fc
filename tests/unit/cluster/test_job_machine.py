"""I1 as a machine: whatever people wish, drivers do, Ray hides and the control plane suffers, in any order.

The real store and the real reconciler; the fake Ray fails the test when two drivers of a job live at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import FakeDriver, Killed, Mortality, World
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster import wishes
from cluster.errors import Conflict, PreconditionFailed
from cluster.lifecycle import EDGES, State
from cluster.policy import View

CPUS = 4.0
OUTCOMES = ("SUCCEEDED", "USER_ERROR", "INFRASTRUCTURE_ERROR", "CANCELLED", "PAUSED")
_MOST_ROUNDS_TO_THE_END = 60


class Jobs(RuleBasedStateMachine):
    """At most as many jobs as the fake cluster could not hold at once."""

    @initialize(attempts=st.integers(0, 3))
    def begin(self, attempts: int) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="athanor-machine-")
        self.world = World(Path(self.directory.name), max_running_jobs=None)
        self.retries = {"infrastructure": attempts, "user": 1, "preemption": 2}
        self.uids: list[str] = []

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.everything_ends()
            self.world.close()
            self.directory.cleanup()

    def _run(self, call: Callable[[], Any]) -> None:
        """One step of the control plane, which may be killed over it; what it refuses changes nothing."""
        try:
            with contextlib.suppress(PreconditionFailed, Conflict):
                call()
        except Killed:
            self.world.mortality = Mortality()
            self.world.restart()

    def _rounds(self, count: int = 1) -> None:
        self._run(lambda: asyncio.run(self.world.rounds(count)))

    def _drivers(self) -> list[FakeDriver]:
        ray = self.world.ray
        return [FakeDriver(self.world, one) for one in ray.submissions if ray.views[one.ray_job_id] is View.ALIVE]

    # People

    @precondition(lambda self: len(self.uids) < 6)
    @rule(
        cpus=st.sampled_from([1.0, 2.0, 4.0]),
        workers=st.integers(1, 2),
        priority=st.sampled_from([100, 500, 900]),
        limit=st.sampled_from([None, "60s", "1h"]),
        project=st.sampled_from("ab"),
        data=st.data(),
    )
    def create(self, cpus: float, workers: int, priority: int, limit: str | None, project: str, data: Any) -> None:
        on = [data.draw(st.sampled_from(self.uids))] if self.uids and data.draw(st.booleans()) else []
        schedule = {"priority": priority, "max_run_duration": limit, "retries": self.retries, "depends_on": on}
        student = {"workers": workers, "cpus_per_worker": cpus}
        self.uids.append(self.world.create(project=project, resources={"student": student}, schedule=schedule))

    @precondition(lambda self: self.uids)
    @rule(wish=st.sampled_from(["pause", "resume", "cancel", "update"]), data=st.data())
    def wish(self, wish: str, data: Any) -> None:
        uid = data.draw(st.sampled_from(self.uids))
        asked: dict[str, Callable[[], Any]] = {
            "pause": lambda: self.world.wish(uid, wishes.pause, "a while"),
            "resume": lambda: self.world.wish(uid, wishes.resume),
            "cancel": lambda: self.world.wish(uid, wishes.cancel, "enough", None),
            "update": lambda: self.world.wish(uid, lambda job, _: wishes.update(job, {"priority": 700})),
        }
        self._run(asked[wish])

    # The control plane and Ray

    @rule(count=st.integers(1, 3))
    def rounds(self, count: int) -> None:
        self._rounds(count)

    @rule(at=st.integers(1, 4), after=st.booleans())
    def kill(self, at: int, after: bool) -> None:
        self.world.mortality = Mortality(at, after=after)
        self.world.store.mortality = self.world.ray.mortality = self.world.mortality
        self._rounds(2)
        self.world.mortality = Mortality()
        self.world.restart()

    @rule(name=st.sampled_from(["is_reachable", "loses_replies", "hides_jobs", "hides_nodes"]), is_on=st.booleans())
    def ray(self, name: str, is_on: bool) -> None:
        setattr(self.world.ray, name, is_on)

    @rule(seconds=st.sampled_from([1, 5, 20, 120, 700]))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    # Drivers

    @precondition(lambda self: self._drivers())
    @rule(data=st.data())
    def driver_speaks(self, data: Any) -> None:
        driver = data.draw(st.sampled_from(self._drivers()))
        self._run(lambda: asyncio.run(driver.heartbeat() if data.draw(st.booleans()) else driver.progress(1)))

    @precondition(lambda self: self._drivers())
    @rule(outcome=st.sampled_from(OUTCOMES), data=st.data())
    def driver_ends(self, outcome: str, data: Any) -> None:
        """It writes its record, tells it or not, and exits now or later."""
        driver = data.draw(st.sampled_from(self._drivers()))
        if (driver.path.parent / "terminal.json").exists():
            driver.exit()
            return
        record = driver.record(outcome, reason=outcome, message="the end")
        driver.write(record)
        if data.draw(st.booleans()):
            self._run(lambda: asyncio.run(driver.report(record)))
        if data.draw(st.booleans()):
            driver.exit()

    @precondition(lambda self: self._drivers())
    @rule(data=st.data())
    def driver_is_killed(self, data: Any) -> None:
        data.draw(st.sampled_from(self._drivers())).exit()

    # What always holds

    @invariant()
    def every_acknowledged_job_is_there_with_a_whole_history(self) -> None:
        for uid in getattr(self, "uids", ()):
            job, events = self.world.job(uid), self.world.store.job_events(uid)
            states = [event.job.state for event in events]
            assert states[0] is State.QUEUED
            assert states[-1] is job.state
            for before, after in itertools.pairwise(states):
                assert before is after or after in EDGES[before]
            assert len(self.world.terminal_events(uid)) == job.is_terminal

    @invariant()
    def the_log_has_no_gap(self) -> None:
        if getattr(self, "uids", None):
            found, after = [], 0
            while page := self.world.store.changes(after, "", 500):
                found += [change.resource_version for change in page]
                after = found[-1]
            assert found == sorted(set(found))
            assert after == self.world.store.head_version()

    @invariant()
    def nobody_holds_more_than_there_is(self) -> None:
        """By what the store says; where the fake cluster had room for it."""
        held = 0.0
        for uid in getattr(self, "uids", ()):
            job = self.world.job(uid)
            student = job.spec["resources"]["student"]
            held += student["workers"] * student["cpus_per_worker"] if job.may_hold else 0.0
        assert held <= CPUS

    def everything_ends(self) -> None:
        """Once nothing disturbs them, all jobs come to an end by themselves, paused ones when they are resumed."""
        world = self.world
        world.ray.is_reachable, world.ray.hides_jobs = True, False
        world.ray.loses_replies = world.ray.hides_nodes = False
        for _ in range(_MOST_ROUNDS_TO_THE_END):
            for uid in self.uids:
                if world.state(uid) is State.PAUSED and world.job(uid).reason != "PREEMPTED":
                    self._run(lambda uid=uid: world.wish(uid, wishes.resume))
            for driver in self._drivers():
                self.end(driver)
            self._rounds()
            world.clock.advance(30)
            if all(world.job(uid).is_terminal or self._never_fits(uid) for uid in self.uids):
                break
        for uid in self.uids:
            assert world.job(uid).is_terminal or self._never_fits(uid), world.history(uid)
        assert world.store.unreleased() == []

    def end(self, driver: FakeDriver) -> None:
        """As the control plane tells it to."""
        told: list[Any] = []
        self._run(lambda: told.append(asyncio.run(driver.heartbeat())))
        if told and not (driver.path.parent / "terminal.json").exists():
            outcome = {2: "CANCELLED", 3: "PAUSED"}.get(told[0], "SUCCEEDED")
            driver.write(driver.record(outcome, reason=outcome))
        driver.exit()

    def _never_fits(self, uid: str) -> bool:
        """Or waits for one that never fits, or for one that is paused again and again."""
        job = self.world.job(uid)
        student = job.spec["resources"]["student"]
        is_large = student["workers"] * student["cpus_per_worker"] > CPUS
        return job.state is State.QUEUED and (is_large or any(map(self._never_fits, job.depends_on)))


TestJobs = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
