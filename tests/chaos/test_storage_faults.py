"""What the storage can do to a job: a checkpoint torn between two attempts, and a disk that is full for a while."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import EVERY_STEPS, JobRun, Topology

from cluster.driver.attempt import INFRASTRUCTURE_ERROR, SUCCEEDED
from trainer.checkpoint import latest_good
from trainer.listener import Silent

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = 40_000
"""Bytes: more than any log of such a job, less than its optimizer's state."""
Begin = Callable[[Path, dict[str, Any]], JobRun]


@pytest.fixture(scope="module")
def undisturbed(job_run: Begin, job_spec, tmp_path_factory) -> JobRun:
    run = job_run(tmp_path_factory.mktemp("undisturbed"), job_spec(Topology(workers=1, zero_stage=2, shards=1)))
    run.next_attempt()
    assert run.ended().outcome == SUCCEEDED, run.driver.log
    return run


def checkpoints(run: JobRun) -> list[Path]:
    return sorted(run.driver.attempt.ctx.checkpoints_dir("student").glob("step-*"))


def test_a_checkpoint_torn_between_two_attempts_is_passed_over_aloud(
    undisturbed: JobRun, job_run: Begin, tmp_path: Path
) -> None:
    run = job_run(tmp_path, undisturbed.spec)
    run.next_attempt()
    run.driver.until(lambda: len(checkpoints(run)) >= 2, "two checkpoints")
    run.stop()
    *_, before, newest = checkpoints(run)
    weights = newest / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    run.next_attempt()
    assert run.ended().outcome == SUCCEEDED, run.driver.log
    [said] = run.events("CHECKPOINT_DAMAGED")
    assert newest.name in said
    assert "the one before it is used" in said
    assert run.resumed_from == [int(before.name.removeprefix("step-"))]
    assert run.weights == undisturbed.weights
    assert run.samples == undisturbed.samples


def test_a_full_disk_ends_the_attempt_with_its_path_and_the_next_one_goes_on(
    undisturbed: JobRun, job_run: Begin, tmp_path: Path
) -> None:
    run = job_run(tmp_path, undisturbed.spec)
    run.next_attempt()
    run.driver.until(lambda: run.has_learned(EVERY_STEPS + 1), "a first checkpoint")
    [student] = run.processes("student")
    student.rlimit(psutil.RLIMIT_FSIZE, (SMALL, resource.RLIM_INFINITY))
    record = run.ended()
    directory = run.driver.attempt.ctx.checkpoints_dir("student")
    assert (record.outcome, record.reason) == (INFRASTRUCTURE_ERROR, "STORAGE_FULL"), run.driver.log
    assert record.message.startswith(f"{directory}/step-"), "the path comes first"
    assert "cannot be written: File too large" in record.message
    assert [path.name for path in directory.glob(".*")] == [], "nothing half-written fills the disk further"
    publish_dir = run.driver.attempt.publish_dir
    assert publish_dir is not None
    assert not publish_dir.exists()
    found = latest_good(directory, Silent())
    assert found is not None
    run.next_attempt()
    assert run.ended().outcome == SUCCEEDED, run.driver.log
    assert publish_dir.exists()
    assert run.resumed_from == [found.progress.step]
    assert run.weights == undisturbed.weights
    assert run.samples == undisturbed.samples
