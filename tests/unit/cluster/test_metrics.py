"""What is counted is what happened, under few labels; and the dashboard asks for nothing that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from fakes import World

from cluster import metrics as metrics_module
from cluster import wishes
from cluster.errors import Conflict, StartUpError, StoreUnavailable
from cluster.lifecycle import State
from cluster.metrics import Metrics, serving
from cluster.store.job_counts import JobCount
from cluster.store.records import Change

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana-dashboard.json"
LABELS = {"service", "method", "code", "from", "to", "reason", "state", "project", "le", "deployment", "decision"}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def counted(world: World) -> Metrics:
    metrics = Metrics()
    world.store.database.on_move, world.store.database.on_write = metrics.moved, metrics.transaction
    metrics.watch_store(world.store.job_counts, world.store.now_us)
    return metrics


async def test_the_way_of_a_job_is_counted(world: World) -> None:
    metrics = counted(world)
    uid = world.create()
    assert value(metrics, "athanor_jobs", state="QUEUED", project="default") == 1
    assert value(metrics, "athanor_queue_length") == 1
    world.clock.advance(30)
    assert value(metrics, "athanor_queue_oldest_wait_seconds", project="default") == pytest.approx(30)
    await world.rounds()
    assert world.state(uid) is not State.QUEUED
    assert value(metrics, "athanor_job_transitions_total", **{"from": "QUEUED", "to": "ADMITTED"}) == 1
    assert value(metrics, "athanor_job_attempts_total") == 1
    assert value(metrics, "athanor_job_queue_wait_seconds_sum") == pytest.approx(30)
    assert value(metrics, "athanor_queue_length") == 0
    assert value(metrics, "athanor_queue_oldest_wait_seconds", project="default") is None
    assert value(metrics, "athanor_store_transaction_seconds_count") >= 2


def test_a_step_that_is_not_committed_is_not_counted(world: World) -> None:
    metrics, job = counted(world), world.job(world.create())
    step = Change("CANCEL_ASKED", "no more", State.CANCELLING)
    world.store.transition(job, step)
    with pytest.raises(Conflict):
        world.store.transition(job, step)
    assert value(metrics, "athanor_job_transitions_total", **{"from": "QUEUED", "to": "CANCELLING"}) == 1


async def test_recoveries_and_preemptions_are_told_apart(world: World) -> None:
    metrics, uid = counted(world), world.create()
    lost, made_room = "athanor_job_recoveries_total", "athanor_job_preemptions_total"
    driver = await world.running(uid)
    world.wish(uid, lambda job, now_us: wishes.preempt(job, now_us, "urgent-abcdefgh"))
    driver.write(driver.record("PAUSED"))
    driver.exit()
    await world.rounds(3)
    assert "REQUEUED" in world.history(uid)
    assert (value(metrics, lost, reason="DRIVER_LOST"), value(metrics, made_room)) == (None, 1)
    (await world.running(uid)).exit()
    world.clock.advance(world.settings.lease_s + 1)
    await world.rounds(2)
    assert (value(metrics, lost, reason="DRIVER_LOST"), value(metrics, made_room)) == (1, 1)


def test_a_store_that_is_silent_leaves_the_rest(world: World) -> None:
    def silent() -> list[JobCount]:
        raise StoreUnavailable("STORE_UNAVAILABLE", "no")

    metrics = Metrics()
    metrics.watch_store(silent, world.store.now_us)
    metrics.watch_ray(lambda: True)
    with serving(metrics, "127.0.0.1:0") as address:
        page = httpx.get(f"http://{address}/metrics", trust_env=False).text
    assert "athanor_ray_reachable 1.0" in page
    assert "athanor_jobs{" not in page


@pytest.mark.parametrize("listen", ["9464", "127.0.0.1:http", "203.0.113.7:9464"])
def test_an_address_that_cannot_be_listened_on_is_said(listen: str) -> None:
    with pytest.raises(StartUpError, match="ATHANOR_METRICS_LISTEN"), serving(Metrics(), listen):
        pass


def test_the_dashboard_asks_only_for_metrics_that_there_are() -> None:
    metrics = Metrics()
    metrics.watch_store(list, int)
    names = {
        family.name + suffix
        for family in (*metrics.registry.collect(), *metrics_module._StoredJobs(list, int).describe())
        for suffix in ("", *{"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ()))
    }
    asked = set(re.findall(r"athanor_[a-z_]+", DASHBOARD.read_text()))
    assert asked - names == set()
    plain = {family.name for family in metrics.registry.collect()}
    shown = {name.removesuffix("_bucket").removesuffix("_total") for name in asked}
    assert plain - shown == set(), "a metric that nobody sees"


def test_the_dashboard_uses_labels_that_there_are() -> None:
    text = DASHBOARD.read_text()
    used = {label for by in re.findall(r"by \(([a-z, ]+)\)", text) for label in by.split(", ")}
    assert used <= LABELS
    ids = [panel["id"] for panel in json.loads(text)["panels"]]
    assert len(ids) == len(set(ids))


def test_operations_explains_every_metric() -> None:
    metrics = Metrics()
    metrics.watch_store(list, int)
    families = [*metrics.registry.collect(), *metrics_module._StoredJobs(list, int).describe()]
    there = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    table = (DASHBOARD.parent / "operations.md").read_text().split("| metric | labels |", 1)[1].split("\n\n", 1)[0]
    assert set(re.findall(r"athanor_[a-z_]+", table)) == there
