"""Cut streams, a clock that jumps, a store that is slow, a disk that is full: nothing acknowledged is lost by them."""

from __future__ import annotations

import itertools
import random
import resource
import threading
import time
from pathlib import Path

import psutil
import pytest
from athanor.v1 import job_pb2
from cutting_proxy import Proxy
from sim_ray import SimRay
from storm import SEED, Crowd, Follower, Server, StormTable, check_invariants, insist, settings_for, supervised, until

from cluster.client import AthanorClient
from cluster.rpc import RequestFailed
from cluster.store.store import Store

pytestmark = [pytest.mark.slow]

KINDS = ("ok", "ok", "mute", "flaky", "dies")


class Storm:
    """One server, its crowd, and the row that tells how it went."""

    def __init__(self, tmp_path: Path, ray: SimRay, table: StormTable, **wishes: object) -> None:
        self.ray = ray
        self.server = Server(settings_for(tmp_path / "home", ray), **wishes)
        self.crowd = Crowd(tmp_path, self.server.address)
        self._table = table
        self._began = time.monotonic()

    def conclude(self, storm: str, disturbances: str) -> None:
        """When all have ended and nothing runs any more."""
        store = Store.open(self.server.settings.database_url)
        try:
            ended = check_invariants(store, self.crowd, self.ray)
        finally:
            store.close()
        words = ", ".join(f"{count} {state}" for state, count in sorted(ended.items()))
        jobs, seconds = len(self.crowd.acknowledged), time.monotonic() - self._began
        self._table.add(storm, jobs, self.ray.num_started, disturbances, words, seconds)


def test_streams_that_are_cut_go_on_without_gap_or_double(
    sim_ray: SimRay, storm_table: StormTable, tmp_path: Path
) -> None:
    storm = Storm(tmp_path, sim_ray, storm_table)
    with supervised(storm.server), Proxy(storm.server.address).running() as proxy:
        follower = Follower(proxy.address)
        follower.start()
        logs: dict[str, bytes] = {}
        readers = []
        for number in range(40):
            uid = storm.crowd.send("ok")
            if number % 4 == 0:
                readers.append(threading.Thread(target=_read_log, args=[proxy.address, uid, logs]))
                readers[-1].start()
            if number % 5 == 4:
                proxy.cut_all()
        storm.crowd.ended()
        for reader in readers:
            reader.join(60)
        store = Store.open(storm.server.settings.database_url)
        told = follower.check(store, after=0)
        store.close()
        settings = storm.server.settings
        assert len(logs) == len(readers)
        for uid, data in logs.items():
            assert data == (settings.job_dir(uid) / "attempts" / "1" / "driver.log").read_bytes()
    assert proxy.num_cuts > 5
    words = f"{proxy.num_cuts} cuts, {told} events and {len(logs)} logs byte for byte"
    storm.conclude("a proxy that cuts every stream", words)


def _read_log(address: str, uid: str, logs: dict[str, bytes]) -> None:
    with AthanorClient(address, patience_s=60.0) as client:
        logs[uid] = b"".join(client.stream_logs(uid, follow=True))


def test_a_clock_that_jumps_gives_no_living_driver_up(sim_ray: SimRay, storm_table: StormTable, tmp_path: Path) -> None:
    rng, clock = random.Random(SEED), tmp_path / "off"
    clock.write_text("0")
    storm = Storm(tmp_path, sim_ray, storm_table, clock=str(clock))
    jumps = 0
    with supervised(storm.server):
        for number in range(30):
            storm.crowd.send(rng.choice(KINDS))
            if number % 5 == 4:
                clock.write_text(str(rng.choice([-7200, -30, 30, 7200])))
                jumps += 1
        clock.write_text("0")
        storm.crowd.ended()
    storm.conclude("a clock that jumps by minutes and hours", f"{jumps} jumps")


def test_a_head_that_is_lost_while_its_drivers_live(sim_ray: SimRay, storm_table: StormTable, tmp_path: Path) -> None:
    """Whoever is heard is alive, whatever Ray knows; whoever is heard no more is followed by another, and by one."""
    storm = Storm(tmp_path, sim_ray, storm_table)
    with supervised(storm.server):
        uids = [storm.crowd.send("long") for _ in range(8)]
        for uid in uids:
            storm.crowd.reaches(uid, job_pb2.JOB_STATE_RUNNING)
        sim_ray.lose_head()
        steps = {uid: storm.crowd.job(uid).progress.step for uid in uids}
        for uid in uids:  # far longer than Ray's word and a lease are waited for
            until(lambda uid=uid: storm.crowd.job(uid).progress.step > steps[uid] + 100, f"{uid} goes on")
        for uid in uids:
            job = storm.crowd.job(uid)
            assert (job.state, len(job.attempts)) == (job_pb2.JOB_STATE_RUNNING, 1)
        killed = [sim_ray.kill_lost_driver() for _ in range(3)]
        for uid in killed:
            until(lambda uid=uid: len(storm.crowd.job(uid).attempts) == 2, f"{uid} has another attempt")
        for uid in uids:
            insist(lambda uid=uid: storm.crowd.client.cancel_job(uid))
        storm.crowd.ended()
    storm.conclude(
        "a head that is lost while its drivers live", f"8 drivers live on, {len(killed)} of them killed later"
    )


def test_a_store_that_is_slow(sim_ray: SimRay, storm_table: StormTable, tmp_path: Path) -> None:
    storm = Storm(tmp_path, sim_ray, storm_table, slow_s=0.15)
    with supervised(storm.server):
        for number in range(20):
            storm.crowd.send(KINDS[number % len(KINDS)])
        storm.crowd.ended()
    storm.conclude("a database whose writes take up to 150 ms", "each write")


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(
    sim_ray: SimRay, storm_table: StormTable, tmp_path: Path
) -> None:
    """Files of the server may not grow for a while; then there is room again."""
    storm = Storm(tmp_path, sim_ray, storm_table)
    refused = itertools.count()
    with supervised(storm.server):
        for _ in range(10):
            storm.crowd.send("ok")
        process = psutil.Process(storm.server.pid)
        limits = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        with AthanorClient(storm.server.address, patience_s=0.5) as impatient:
            for number in range(3):
                with pytest.raises(RequestFailed) as caught:
                    impatient.create_job(storm.crowd.manifest(f"ok-full{number}"), request_id=f"full-{number}")
                assert caught.value.reason == "STORE_UNAVAILABLE", caught.value
                next(refused)
        process.rlimit(resource.RLIMIT_FSIZE, limits)
        until(lambda: storm.crowd.client.is_serving(), "it serves")
        for _ in range(10):
            storm.crowd.send("ok")
        storm.crowd.ended()
    storm.conclude("a disk that is full for a while", f"{next(refused)} requests refused, none acknowledged")
