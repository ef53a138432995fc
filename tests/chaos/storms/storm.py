"""Control planes as processes that die and are started again, jobs sent to them, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from athanor.v1 import job_pb2
from sim_ray import SimRay

from cluster.client import TERMINAL, AthanorClient
from cluster.lifecycle import EDGES, State
from cluster.lifecycle import TERMINAL as ENDS
from cluster.rpc import RequestFailed
from cluster.settings import Settings
from cluster.store.records import JobQuery, StoredEvent, StoredJob
from cluster.store.store import Store

DEADLINE_S = 240.0
PATIENCE_S = 60.0
EXPECTED = {"ok": State.SUCCEEDED, "flaky": State.SUCCEEDED, "dies": State.SUCCEEDED, "mute": State.SUCCEEDED}
EXPECTED["user"] = State.FAILED
_NUMBERS = itertools.count()
SEED = int(os.environ.get("ATHANOR_CHAOS_SEED", "20261122"))


class StormTable:
    """One row for each storm, as Markdown; kept where `ATHANOR_STORM_TABLE` says."""

    HEAD = ("storm", "jobs", "attempts", "disturbances", "how the jobs ended", "seconds")

    def __init__(self) -> None:
        path = os.environ.get("ATHANOR_STORM_TABLE")
        self._path = Path(path) if path else None
        self.num_jobs = 0
        self.lines = [_row(self.HEAD), _row(["---"] * len(self.HEAD))]

    def add(self, storm: str, jobs: int, attempts: int, disturbances: str, ended: str, seconds: float) -> None:
        self.num_jobs += jobs
        self.lines.append(_row((storm, jobs, attempts, disturbances, ended, f"{seconds:.0f}")))
        print(self.lines[-1])
        if self._path is not None:
            self._path.write_text("\n".join(self.lines) + "\n")


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One control plane process; what it prints is kept beside its store."""

    def __init__(self, settings: Settings, **wishes: Any) -> None:
        self.settings = settings
        self.num_starts = 0
        self._wishes = wishes
        self._process: subprocess.Popen[bytes] | None = None
        self._log = settings.home / f"server-{settings.listen.rpartition(':')[2]}.log"

    @property
    def address(self) -> str:
        return self.settings.listen

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Until it answers. One that dies before is an error here, unless it was told to die."""
        self.num_starts += 1
        document = {"settings": self.settings.model_dump(mode="json"), **self._wishes}
        with self._log.open("ab") as log:
            command = [sys.executable, str(Path(__file__).with_name("mortal_server.py")), json.dumps(document)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        with AthanorClient(self.address) as client:
            until(lambda: client.is_serving() or not self.is_alive, "the control plane answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """As a supervisor does it; it must end by itself."""
        if self.is_alive:
            assert self._process is not None
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(30) == 0, self.log[-2000:]


@contextlib.contextmanager
def supervised(*servers: Server) -> Iterator[None]:
    """Started, and started again whenever one is dead, as Kubernetes does it; ended at the end."""
    stop = threading.Event()

    def keep(server: Server) -> None:
        while not stop.is_set():
            if not server.is_alive:
                server.start()
            stop.wait(0.05)

    threads = [threading.Thread(target=keep, args=[server]) for server in servers]
    for thread in threads:
        thread.start()
    try:
        with contextlib.ExitStack() as clients:
            for server in servers:
                client = clients.enter_context(AthanorClient(server.address))
                until(client.is_serving, "the control plane answers")
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for server in servers:
            server.end()


def settings_for(home: Path, ray: SimRay, **changes: Any) -> Settings:
    """Patience cut short: leases of seconds, so that a storm is over in minutes."""
    home.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {
        "home": home,
        "listen": f"127.0.0.1:{free_port()}",
        "ray_dashboard_url": ray.url,
        "lease_s": 1.5,
        "unknown_grace_s": 1.0,
        "cancel_grace_s": 2.0,
        "pause_grace_s": 5.0,
        "teardown_grace_s": 1.0,
        "replica_lease_s": 2.0,
        "reconcile_interval_s": 0.1,
        "shutdown_grace_s": 1.0,
        "auth": "none",
    }
    return Settings.model_validate({**known, **changes})


def until(condition: Any, what: str, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not seen: {what}"
        time.sleep(0.02)


class Crowd:
    """Whoever sends jobs, and remembers each that was acknowledged."""

    def __init__(self, home: Path, address: str) -> None:
        self.acknowledged: dict[str, str] = {}
        """uid -> the name that tells what becomes of it."""
        self._train = home / "train.jsonl"
        self._train.write_text('{"prompt": "hello", "completion": "world"}\n')
        self.client = AthanorClient(address, patience_s=PATIENCE_S)

    def manifest(self, name: str, **spec: Any) -> dict[str, Any]:
        retries = {"retries": {"infrastructure": 50}}
        known = {
            "student": {"config": {"model_type": "llama", "hidden_size": 64}},
            "data": {"train": str(self._train), "format": "prompt_completion"},
            "training": {"max_steps": 5},
            "publish": {"model": "bot", "alias": "champion"},
            "schedule": retries,
        }
        return {"kind": "FineTune", "metadata": {"name": name}, "spec": {**known, **spec}}

    def send(self, kind: str, **spec: Any) -> str:
        """Repeats the request until it is acknowledged, by the id that makes it one job."""
        name = f"{kind}-{next(_NUMBERS)}"
        request_id = f"{name}-{os.getpid()}"
        uid = insist(lambda: self.client.create_job(self.manifest(name, **spec), request_id=request_id)).uid
        self.acknowledged[uid] = kind
        return uid

    def ended(self, uids: Iterable[str] | None = None) -> None:
        """Waits until they all have."""
        for uid in list(self.acknowledged if uids is None else uids):
            until(lambda uid=uid: self.job(uid).state in TERMINAL, f"{uid} has ended")

    def reaches(self, uid: str, *states: job_pb2.JobState.ValueType) -> None:
        until(lambda: self.job(uid).state in states, f"{uid} is {[job_pb2.JobState.Name(each) for each in states]}")

    def job(self, uid: str) -> job_pb2.Job:
        return insist(lambda: self.client.get_job(uid))


def insist(call: Any) -> Any:
    """The answer, however often nobody gives one."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            return call()
        except RequestFailed as failure:
            if not failure.is_uncertain or time.monotonic() > end:
                raise


class Follower(threading.Thread):
    """Watches all jobs from the beginning, over every cut, and keeps what it was told."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.events: list[tuple[int, str, str]] = []
        """(resource version, uid, reason)"""
        self._client = AthanorClient(address, patience_s=DEADLINE_S)
        self._until = time.monotonic() + DEADLINE_S
        self._cursor = 0
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            for change in self._client.watch_jobs(until=self._until):
                if change.HasField("event"):
                    event = change.event
                    self.events.append((event.resource_version, event.job_uid, event.reason))
        except Exception as error:  # noqa: BLE001  told to the test, by `check`
            self.failed = error

    def check(self, store: Store, *, after: int) -> int:
        """Each stored event after a version was told once, in order; returns how many there were."""
        stored = [event for event in all_events(store) if event.resource_version > after]
        last = stored[-1].resource_version
        until(lambda: self.failed or (self.events and self.events[-1][0] >= last), "the last event")
        assert self.failed is None, self.failed
        told = [each for each in self.events if each[0] > after]
        assert told == sorted(set(told)), "an event came twice, or out of order"
        assert [version for version, _, _ in told] == [event.resource_version for event in stored]
        return len(told)


def all_events(store: Store) -> list[StoredEvent]:
    found = [event for job in all_jobs(store) for event in store.job_events(job.uid)]
    return sorted(found, key=lambda event: event.resource_version)


def all_jobs(store: Store) -> list[StoredJob]:
    return store.list_jobs(JobQuery(limit=100_000))


def check_invariants(
    store: Store, crowd: Crowd, ray: SimRay, *, names_are_unique: bool = True, drivers_alone_report: bool = True
) -> Counter[State]:
    """What may never happen, whatever died. Returns how the jobs ended."""
    assert ray.violations == []
    if drivers_alone_report:
        _check_log(store, ray)
    jobs = {job.uid: job for job in all_jobs(store)}
    assert set(crowd.acknowledged) <= set(jobs), "an acknowledged job is not there"
    if names_are_unique:
        assert len(jobs) == len({job.name for job in jobs.values()}), "one request made two jobs"
    for uid, kind in crowd.acknowledged.items():
        _check_history(jobs[uid], store.job_events(uid))
        if kind in EXPECTED and not _was_ended_by_somebody(store, uid):
            assert jobs[uid].state is EXPECTED[kind], (uid, jobs[uid].reason, jobs[uid].message)
    published = [job.published_model for job in jobs.values() if job.state is State.SUCCEEDED]
    assert sorted(int(each.split("@")[1]) for each in published) == list(range(1, len(published) + 1))
    return Counter(jobs[uid].state for uid in crowd.acknowledged)


def _check_log(store: Store, ray: SimRay) -> None:
    """Of all versions that were ever taken none is missing: each is an event, a deletion, or a report of progress."""
    head = store.head_version()
    logged = [event.resource_version for event in all_events(store)]
    logged += [gone.resource_version for gone in store.deletions_after(0, 1_000_000)]
    assert len(set(logged)) == len(logged), "one version was given twice"
    assert max([*logged, *(job.resource_version for job in all_jobs(store))]) == head, "the last one is nobody's"
    assert ray.num_heard <= head - len(logged) <= ray.num_told, "versions that no report explains, or reports forgotten"


def _check_history(job: StoredJob, events: list[StoredEvent]) -> None:
    states = [event.job.state for event in events]
    assert states[0] is State.QUEUED
    for before, after in itertools.pairwise(states):
        assert before is after or after in EDGES[before], f"{job.uid}: {before} -> {after}"
    ends = [after for before, after in itertools.pairwise(states) if after in ENDS and before is not after]
    assert len(ends) == 1, f"{job.uid} ended {len(ends)} times"
    assert states[-1] is job.state, f"{job.uid}: the history ends elsewhere"
    assert events[-1].resource_version <= job.resource_version
    assert [attempt.number for attempt in job.attempts] == list(range(1, len(job.attempts) + 1))
    assert all(not attempt.is_open for attempt in job.attempts), f"{job.uid} has ended and an attempt has not"


def _was_ended_by_somebody(store: Store, uid: str) -> bool:
    return any(event.reason == "CANCEL_ASKED" for event in store.job_events(uid))
