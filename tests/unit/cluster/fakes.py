"""Hand-written stand-ins for everything around the control plane: a clock that stands still, a Ray whose drivers a test
plays itself, and a world that puts a real store and a real reconciler between them.

`FakeRay` holds invariant I1 at every moment: it fails the test when two drivers of one job live at once.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from athanor.v1 import job_pb2, worker_service_pb2
from google.protobuf import json_format, struct_pb2

from cluster.capacity import Resources
from cluster.errors import RayRefused, RayUnreachable
from cluster.ids import new_job_uid
from cluster.launcher import RayJob, RayNode, Submission
from cluster.lifecycle import TERMINAL, State
from cluster.policy import View
from cluster.ray_state import ListedJob
from cluster.reconciler import Reconciler
from cluster.replicas import Replicas
from cluster.services.workers import WorkerService
from cluster.settings import Settings
from cluster.standings import Standing
from cluster.store.records import Change, NewJob, StoredJob
from cluster.store.store import Store
from trainer.spec import parse_spec


class Killed(BaseException):
    """The control plane's process is gone at this very moment."""


class Mortality:
    """Kills the process at its n-th effect on the world: before the effect, or after it and before its answer."""

    def __init__(self, at: int = 0, *, after: bool = False) -> None:
        self.count = 0
        self.at = at
        self.after = after

    @property
    def has_struck(self) -> bool:
        return 0 < self.at <= self.count

    def around(self, effect: Callable[[], Any]) -> Any:
        self.count += 1
        if self.count == self.at and not self.after:
            raise Killed
        result = effect()
        if self.count == self.at and self.after:
            raise Killed
        return result


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


class FakeRay:
    """Ray's job API. What happens to a job is up to the test."""

    def __init__(self) -> None:
        self.views: dict[str, View] = {}
        self.submissions: list[Submission] = []
        self.stopped: list[str] = []
        self.is_reachable = True
        self.loses_replies = False
        self.hides_jobs = False
        self.refuses_to_start = False
        self.hides_nodes = False
        self.refuses = ""
        self.nodes_asked = 0
        self.nodes_now = [RayNode("head", "127.0.0.1", Resources(4.0, 0.0), is_head=True)]
        self.mortality = Mortality()

    def _check_reachable(self) -> None:
        if not self.is_reachable:
            raise RayUnreachable("RAY_UNREACHABLE", "Ray cannot be reached: connection refused")

    def _lose_reply(self) -> None:
        if self.loses_replies:
            raise RayUnreachable("RAY_UNREACHABLE", "Ray cannot be reached: read timeout")

    async def version(self) -> str:
        self._check_reachable()
        return "2.60.0"

    async def nodes(self) -> list[RayNode]:
        self._check_reachable()
        if self.hides_nodes:
            raise RayUnreachable("RAY_UNREACHABLE", "Ray's dashboard answered 500")
        self.nodes_asked += 1
        return self.nodes_now

    async def reserved(self) -> dict[str, Resources]:
        self._check_reachable()
        return {}

    async def jobs(self) -> list[ListedJob]:
        self._check_reachable()
        known = {each.ray_job_id: each.metadata for each in self.submissions}
        return [ListedJob(each, view, known.get(each, {})) for each, view in self.views.items()]

    async def look(self, ray_job_id: str) -> RayJob:
        self._check_reachable()
        return RayJob(View.UNKNOWN if self.hides_jobs else self.views.get(ray_job_id, View.UNKNOWN))

    async def submit(self, submission: Submission) -> None:
        self._check_reachable()
        if self.refuses_to_start:
            raise RayUnreachable("RAY_UNREACHABLE", "Ray cannot be reached: connection refused")
        if self.refuses:
            raise RayRefused("RAY_REFUSED", self.refuses)
        self.mortality.around(lambda: self._start(submission))
        self._lose_reply()

    def _start(self, submission: Submission) -> None:
        if submission.ray_job_id in self.views:
            return
        job = submission.ray_job_id.rpartition("-")[0]
        assert not self.live(job), f"{submission.ray_job_id} was started while {self.live(job)} lives"
        self.views[submission.ray_job_id] = View.ALIVE
        self.submissions.append(submission)

    async def stop(self, ray_job_id: str) -> None:
        self._check_reachable()
        self.mortality.around(lambda: self._stop(ray_job_id))
        self._lose_reply()

    def _stop(self, ray_job_id: str) -> None:
        self.stopped.append(ray_job_id)
        self.end(ray_job_id)

    def end(self, ray_job_id: str) -> None:
        """The driver's process is gone, and Ray knows."""
        if ray_job_id in self.views:
            self.views[ray_job_id] = View.ENDED

    def live(self, job_uid: str) -> list[str]:
        return [each for each, view in self.views.items() if each.rpartition("-")[0] == job_uid and view is View.ALIVE]


class MortalStore(Store):
    """The real store, whose writes count as effects."""

    mortality = Mortality()

    def transition(self, job: StoredJob, change: Change, lease: Any = None) -> StoredJob:
        return self.mortality.around(lambda: Store.transition(self, job, change, lease))

    def mark_attempt(self, job: StoredJob, **values: object) -> None:
        self.mortality.around(lambda: Store.mark_attempt(self, job, **values))


class FakeDriver:
    """A driver that does what the test says, in the words of the real contract: attempt.json, RPCs, terminal.json."""

    def __init__(self, world: World, submission: Submission) -> None:
        self.world = world
        self.ray_job_id = submission.ray_job_id
        self.path = Path(shlex.split(submission.entrypoint)[-1])
        self.attempt = json.loads(self.path.read_text())
        self.ref = worker_service_pb2.AttemptRef(
            job_uid=self.attempt["job_uid"],
            attempt=self.attempt["attempt"],
            lease_token=self.attempt["lease_token"],
        )

    async def heartbeat(self) -> worker_service_pb2.Directive.ValueType:
        request = worker_service_pb2.HeartbeatRequest(attempt=self.ref)
        return (await self.world.worker_service.Heartbeat(request, None)).directive

    async def progress(self, step: int, *events: tuple[str, str], **figures: Any) -> None:
        request = worker_service_pb2.ReportProgressRequest(
            attempt=self.ref,
            progress=job_pb2.Progress(stage="train", step=step, total_steps=10, **figures),
            events=[worker_service_pb2.WorkerEvent(reason=reason, message=message) for reason, message in events],
        )
        await self.world.worker_service.ReportProgress(request, None)

    def record(self, outcome: str, **fields: Any) -> worker_service_pb2.TerminalRecord:
        return worker_service_pb2.TerminalRecord(
            outcome=worker_service_pb2.Outcome.Value(f"OUTCOME_{outcome}"), **fields
        )

    def write(self, record: worker_service_pb2.TerminalRecord) -> None:
        """Leave the terminal record on the storage."""
        (self.path.parent / "terminal.json").write_text(json_format.MessageToJson(record))

    async def report(self, record: worker_service_pb2.TerminalRecord) -> None:
        request = worker_service_pb2.ReportTerminalRequest(attempt=self.ref, record=record)
        await self.world.worker_service.ReportTerminal(request, None)

    def exit(self) -> None:
        """The process is gone."""
        self.world.ray.end(self.ray_job_id)


SPEC: dict[str, Any] = {
    "student": {"model": "/models/base"},
    "data": {"train": "/data/train.jsonl"},
    "training": {"max_steps": 10},
    "publish": {"model": "student", "alias": "champion"},
    "schedule": {"priority": 500},
}


class World:
    """A control plane that can be killed and started again over the same store, storage and Ray."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.clock = Clock()
        self.ray = FakeRay()
        self.settings = Settings(home=directory, **{"max_running_jobs": 1, **settings})
        (self.settings.storage / "jobs").mkdir(parents=True)
        self.mortality = Mortality()
        self.start()

    def start(self) -> None:
        self.store = MortalStore.open(self.settings.database_url, self.clock)
        self.store.mortality = self.ray.mortality = self.mortality
        self.replicas = Replicas(self.store, "here", "127.0.0.1:50051", self.settings.replica_lease_s)
        self.reconciler = Reconciler(self.settings, self.store, self.ray, self.replicas)
        self.worker_service = WorkerService(self.settings, self.store, self.replicas)

    def restart(self) -> None:
        """The process dies and another one takes its place: all it knows is on disk."""
        self.store.close()
        self.start()

    def close(self) -> None:
        self.store.close()

    def create(self, name: str = "job", project: str = "default", **spec: Any) -> str:
        document = {**SPEC, **spec}
        kind = "Distill" if "teachers" in document else "FineTune"
        schedule = parse_spec(kind, document).schedule
        limit, hold = schedule.max_run_duration, schedule.hold_until
        new = NewJob(
            *(new_job_uid(name), name, kind, {}, document, schedule.priority, {}, project),
            max_run_duration_us=None if limit is None else int(limit.total_seconds() * 1e6),
            hold_until_us=None if hold is None else int(hold.timestamp() * 1e6),
            depends_on=schedule.depends_on,
        )
        return self.store.create_job(new).uid

    def wish(self, uid: str, wish: Callable[..., Change | None], *words: Any) -> StoredJob:
        """What a handler makes of somebody's wish."""
        job = self.job(uid)
        change = wish(job, self.store.now_us(), *words)
        return self.store.transition(job, change) if change else job

    def standing(self, uid: str) -> Standing:
        return self.store.standings_of([self.job(uid)])[uid]

    async def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            await self.reconciler.round()

    def job(self, uid: str) -> StoredJob:
        return self.store.get_job(uid)

    def state(self, uid: str) -> State:
        return self.job(uid).state

    def driver(self) -> FakeDriver:
        """The driver that Ray started last."""
        return FakeDriver(self, self.ray.submissions[-1])

    async def running(self, uid: str) -> FakeDriver:
        """Bring a job to RUNNING."""
        await self.rounds(2)
        driver = self.driver()
        await driver.heartbeat()
        assert self.state(uid) is State.RUNNING
        return driver

    def history(self, uid: str) -> list[str]:
        return [event.reason for event in self.store.job_events(uid)]

    def terminal_events(self, uid: str) -> list[State]:
        pairs = itertools.pairwise(event.job.state for event in self.store.job_events(uid))
        return [after for before, after in pairs if after in TERMINAL and before != after]

    def submitted(self, uid: str) -> list[Submission]:
        return [each for each in self.ray.submissions if each.ray_job_id.startswith(f"{uid}-")]


def struct(document: dict[str, Any]) -> struct_pb2.Struct:
    return json_format.ParseDict(document, struct_pb2.Struct())
