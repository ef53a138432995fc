"""I4 for 1 and 2 workers, ZeRO 0 to 3: whatever is killed at random steps, the student is the same, bit for bit."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from drivers import until
from runs import EVERY_STEPS, SAMPLES, TOTAL_STEPS, JobRun, Kill, Table, Topology, every_step_once, random_kills

from cluster.driver.attempt import SUCCEEDED

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SEED = int(os.environ.get("ATHANOR_CHAOS_SEED", "20261122"))
TOPOLOGIES = [
    Topology(workers, stage, shards=1 + (workers + stage) % 2) for workers in (1, 2) for stage in (0, 1, 2, 3)
]
Begin = Callable[[Path, dict[str, Any]], JobRun]


def name(topology: Topology) -> str:
    return f"w{topology.workers}z{topology.zero_stage}s{topology.shards}"


@dataclass(frozen=True)
class Undisturbed:
    """A job that nothing happened to."""

    topology: Topology
    spec: dict[str, Any]
    weights: str
    samples: list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def undisturbed_of(
    job_run: Begin, job_spec, tmp_path_factory: pytest.TempPathFactory, table: Table
) -> Callable[[Topology], Undisturbed]:
    """Each of them run once."""

    @cache
    def undisturbed(topology: Topology) -> Undisturbed:
        run = job_run(tmp_path_factory.mktemp("undisturbed"), job_spec(topology))
        run.next_attempt()
        record = run.ended()
        assert record.outcome == SUCCEEDED, run.driver.log
        complete = every_step_once(run.samples, TOTAL_STEPS, SAMPLES)
        table.add(topology, run, identical=None, samples_ok=complete)
        assert complete
        return Undisturbed(topology, run.spec, run.weights, run.samples)

    return undisturbed


def check(run: JobRun, undisturbed: Undisturbed, table: Table) -> None:
    record = run.ended()
    assert record.outcome == SUCCEEDED, f"{record}\n{run.driver.log}"
    identical, samples_ok = run.weights == undisturbed.weights, run.samples == undisturbed.samples
    table.add(undisturbed.topology, run, identical=identical, samples_ok=samples_ok)
    assert all(killed.step < TOTAL_STEPS for killed in run.killed), "every kill landed inside training"
    assert identical
    assert samples_ok


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=name)
def test_whatever_is_killed_the_student_is_the_same(
    topology: Topology, undisturbed_of, job_run: Begin, tmp_path: Path, table: Table
) -> None:
    undisturbed = undisturbed_of(topology)
    rng = random.Random(f"{SEED} {topology}")
    kills = random_kills(rng, first=EVERY_STEPS + 1, last=TOTAL_STEPS * 2 // 3)
    print(f"seed {SEED}, {topology}: planned {' '.join(map(str, kills))}")
    run = job_run(tmp_path, undisturbed.spec)
    run.next_attempt()
    for planned in kills:
        run.strike(planned, rng)
    check(run, undisturbed, table)
    assert run.attempts == 1 + sum(killed.victim == "driver" for killed in run.killed)
    lost = [reached - resumed for reached, resumed in zip(run.reached, run.resumed_from, strict=True)]
    assert all(-1 <= steps <= 2 * EVERY_STEPS for steps in lost), f"what lay past the last checkpoint: {lost}"


@pytest.mark.parametrize("topology", [one for one in TOPOLOGIES if one.shards > 1], ids=name)
def test_a_lost_teacher_costs_no_student_restart(
    topology: Topology, undisturbed_of, job_run: Begin, tmp_path: Path, table: Table
) -> None:
    undisturbed = undisturbed_of(topology)
    rng = random.Random(f"{SEED} teacher {topology}")
    steps = sorted(rng.sample(range(2, TOTAL_STEPS * 2 // 3), 2))
    run = job_run(tmp_path, undisturbed.spec)
    run.next_attempt()
    run.strike(Kill("teacher", steps[0]), rng)
    students = {process.pid for process in run.processes("student")}
    run.strike(Kill("teacher", steps[1]), rng)
    until(lambda: run.has_learned(TOTAL_STEPS - 5), "the last steps")
    assert {process.pid for process in run.processes("student")} == students
    assert len(students) == topology.workers
    check(run, undisturbed, table)
    assert run.resumed_from == []
    assert run.attempts == 1
