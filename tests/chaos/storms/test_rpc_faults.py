"""Every RPC of the contract with its request lost, its connection cut in flight, or its reply lost, then said again."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest
from cutting_proxy import Cut, Proxy
from every_rpc import CASES, OK, call, methods, new_world, outcome
from sim_ray import SimRay
from storm import Crowd, Server, StormTable, all_jobs, check_invariants, settings_for, supervised

from cluster.store.store import Store

pytestmark = [pytest.mark.slow]

OPTIONS = (("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


def test_no_rpc_does_a_thing_twice_or_half(
    sim_ray: SimRay, storm_table: StormTable, tmp_path: Path, chat_model_dir: Path
) -> None:
    began = time.monotonic()
    found = {f"{method.containing_service.name}.{method.name}": method for method in methods()}
    assert set(found) == set(CASES), "each RPC of the contract has a case, and there is no other"
    settings = settings_for(tmp_path / "home", sim_ray)
    server = Server(settings)
    crowd = Crowd(tmp_path, server.address)
    world = new_world(crowd, settings.storage / "jobs", chat_model_dir)
    num_cuts = 0
    with supervised(server), Proxy(server.address).running() as proxy:
        for name, method in found.items():
            for cut in Cut:
                request = CASES[name].make(world)
                proxy.cut_next(cut)
                with grpc.insecure_channel(proxy.address, options=OPTIONS) as channel:
                    with pytest.raises(grpc.RpcError) as caught:
                        call(channel, method, request)
                    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, (name, cut, caught.value)
                num_cuts += 1
                with grpc.insecure_channel(proxy.address, options=OPTIONS) as channel:
                    said = outcome(channel, method, request)
                is_new = cut is Cut.REQUEST_LOST
                allowed = {OK} if is_new and "NOT_FOUND" not in "".join(CASES[name].again) else {OK, *CASES[name].again}
                assert said in allowed, (name, cut, said)
        for job in crowd.client.list_jobs(limit=10_000):
            if not job.HasField("end_time"):
                crowd.client.cancel_job(job.uid)
        crowd.acknowledged = {job.uid: "rpc" for job in crowd.client.list_jobs(limit=10_000)}
        crowd.ended()
    assert "Traceback" not in server.log
    assert "rpc.failed" not in server.log
    store = Store.open(settings.database_url)
    try:
        jobs = all_jobs(store)
        retried = [job.retry_of for job in jobs if job.retry_of]
        assert len(retried) == len(set(retried)) == len(Cut), "one retry made two jobs"
        ended = check_invariants(store, crowd, sim_ray, names_are_unique=False, drivers_alone_report=False)
    finally:
        store.close()
    words = ", ".join(f"{count} {state}" for state, count in sorted(ended.items()))
    disturbances = f"{num_cuts} cuts of {len(found)} RPCs"
    storm = "requests lost, replies lost, cut in flight"
    storm_table.add(storm, len(jobs), sim_ray.num_started, disturbances, words, time.monotonic() - began)
