"""SIGKILL to the control plane: at every effect that it has on the world, at random, and to one of two on a store."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from athanor.v1 import job_pb2
from sim_ray import SimRay
from storm import SEED, Crowd, Follower, Server, StormTable, check_invariants, insist, settings_for, supervised, until

from cluster.rpc import RequestFailed
from cluster.store.store import Store

pytestmark = [pytest.mark.slow]

RUNNING, CANCELLED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLED
PAUSED = job_pb2.JOB_STATE_PAUSED
Play = Callable[[Crowd], None]


def _sends(kind: str) -> Play:
    return lambda crowd: crowd.ended([crowd.send(kind)])


def _cancels(crowd: Crowd) -> None:
    uid = crowd.send("long")
    crowd.reaches(uid, RUNNING)
    insist(lambda: crowd.client.cancel_job(uid))
    crowd.ended([uid])


def _pauses(crowd: Crowd) -> None:
    uid = crowd.send("long")
    crowd.reaches(uid, RUNNING)
    insist(lambda: crowd.client.pause_job(uid))
    crowd.reaches(uid, PAUSED)
    insist(lambda: crowd.client.resume_job(uid))
    crowd.reaches(uid, RUNNING)
    insist(lambda: crowd.client.cancel_job(uid))
    crowd.ended([uid])


def _makes_room(crowd: Crowd) -> None:
    """Each asks for the whole cluster."""
    whole = {"resources": {"student": {"workers": 16}}}
    low = crowd.send("long", schedule={"priority": 0, "retries": {"infrastructure": 50}}, **whole)
    crowd.reaches(low, RUNNING)
    crowd.ended([crowd.send("ok", schedule={"priority": 900, "retries": {"infrastructure": 50}}, **whole)])
    crowd.reaches(low, RUNNING)
    insist(lambda: crowd.client.cancel_job(low))
    crowd.ended([low])


def _outlasts(crowd: Crowd) -> None:
    crowd.ended([crowd.send("long", schedule={"max_run_duration": "2s", "retries": {"infrastructure": 50}})])


def _waits_in_vain(crowd: Crowd) -> None:
    bad = crowd.send("user", schedule={"hold_until": "2999-01-01T00:00:00Z"})
    doomed = crowd.send("doomed", schedule={"depends_on": [bad]})
    try:
        insist(lambda: crowd.client.resume_job(bad))
    except RequestFailed as failure:
        if failure.reason != "JOB_ENDED":  # the answer was lost, and the job has ended by the time it is asked again
            raise
    crowd.ended([bad, doomed])
    assert crowd.job(doomed).reason == "DEPENDENCY_FAILED"


EFFECTS: dict[str, Play] = {
    "create": _sends("ok"),
    "ADMITTED": _sends("ok"),
    "ATTEMPT_CREATED": _sends("ok"),
    "mark": _sends("ok"),
    "submit": _sends("ok"),
    "SUBMITTED": _sends("ok"),
    "RUNNING": _sends("ok"),
    "SUCCEEDED": _sends("ok"),
    "DATA_EMPTY": _sends("user"),
    "WORKER_LOST": _sends("flaky"),
    "DRIVER_LOST": _sends("dies"),
    "CANCEL_ASKED": _cancels,
    "CANCELLED": _cancels,
    "PAUSE_ASKED": _pauses,
    "PAUSED": _pauses,
    "RESUMED": _pauses,
    "PREEMPTED": _makes_room,
    "REQUEUED": _makes_room,
    "MAX_RUN_DURATION": _outlasts,
    "HOLD_ENDED": _waits_in_vain,
    "DEPENDENCY_FAILED": _waits_in_vain,
}


@pytest.mark.timeout(1200)
def test_killed_at_every_edge_of_the_lifecycle(sim_ray: SimRay, storm_table: StormTable, tmp_path: Path) -> None:
    began = time.monotonic()
    points = [(effect, when) for effect in EFFECTS for when in ("before", "after")]
    deaths = [{"at": at, "when": when, "mark": str(tmp_path / f"{at}-{when}")} for at, when in points]
    for each in deaths:
        Path(each["mark"]).touch()
    server = Server(settings_for(tmp_path / "home", sim_ray), die=deaths)
    crowd = Crowd(tmp_path, server.address)
    with supervised(server):
        for effect, when in points:
            starts = server.num_starts
            (tmp_path / f"{effect}-{when}").unlink()
            EFFECTS[effect](crowd)
            assert (tmp_path / f"{effect}-{when}").exists(), f"{effect} did not come"
            until(lambda starts=starts: server.num_starts > starts, f"killed {when} {effect}")
    _conclude(storm_table, f"SIGKILL before and after {len(EFFECTS)} effects", crowd, sim_ray, [server], began)


def test_killed_at_random_while_a_crowd_sends_jobs(sim_ray: SimRay, storm_table: StormTable, tmp_path: Path) -> None:
    rng, began = random.Random(SEED), time.monotonic()
    sim_ray.loses = 0.03
    server = Server(settings_for(tmp_path / "home", sim_ray))
    crowd = Crowd(tmp_path, server.address)
    drivers_killed = 0
    with supervised(server):
        follower = Follower(server.address)
        follower.start()
        for number in range(150):
            crowd.send(rng.choice(["ok", "ok", "mute", "user", "flaky", "dies"]))
            if number % 15 == 14:
                server.kill()
            if number % 25 == 24:
                drivers_killed += bool(sim_ray.kill_driver())
            if number == 75:
                sim_ray.restart_head()
            sim_ray.is_away = 100 <= number < 110
        sim_ray.loses = 0.0
        crowd.ended()
        store = Store.open(server.settings.database_url)
        told = follower.check(store, after=0)
        store.close()
    words = f"SIGKILL at random, {drivers_killed} drivers killed, head lost, {told} events watched over cuts"
    _conclude(storm_table, words, crowd, sim_ray, [server], began)


def test_one_of_two_on_a_postgres_is_killed_again_and_again(
    sim_ray: SimRay, storm_table: StormTable, tmp_path: Path, postgres_url: str
) -> None:
    rng, began = random.Random(SEED + 1), time.monotonic()
    shared = {"database_url": postgres_url, "storage": tmp_path / "storage"}
    servers = [Server(settings_for(tmp_path / name, sim_ray, **shared)) for name in ("a", "b")]
    crowds = [Crowd(tmp_path, server.address) for server in servers]
    with supervised(*servers):
        for number in range(80):
            crowds[number % 2].send(rng.choice(["ok", "ok", "mute", "flaky", "dies"]))
            if number % 10 == 9:
                rng.choice(servers).kill()
        for crowd in crowds:
            crowd.ended()
    crowds[0].acknowledged |= crowds[1].acknowledged
    _conclude(storm_table, "two control planes on one PostgreSQL, either killed", crowds[0], sim_ray, servers, began)


def _conclude(table: StormTable, storm: str, crowd: Crowd, ray: SimRay, servers: list[Server], began: float) -> None:
    store = Store.open(servers[0].settings.database_url)
    try:
        ended = check_invariants(store, crowd, ray)
    finally:
        store.close()
    kills = sum(server.num_starts for server in servers) - len(servers)
    assert kills > 0
    words = ", ".join(f"{count} {state}" for state, count in sorted(ended.items()))
    disturbances = f"{kills} kills of a control plane"
    table.add(storm, len(crowd.acknowledged), ray.num_started, disturbances, words, time.monotonic() - began)
