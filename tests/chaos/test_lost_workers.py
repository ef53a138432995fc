"""A worker that the kernel kills, as it does when memory runs out, with no restart left: the attempt says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from drivers import no_actors, until
from runs import EVERY_STEPS, JobRun, Kill, Topology

from cluster.driver.attempt import INFRASTRUCTURE_ERROR

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_worker_lost_for_good_ends_the_attempt_with_what_ray_saw(
    job_run: Callable[[Path, dict[str, Any]], JobRun], job_spec, tmp_path: Path
) -> None:
    spec = job_spec(Topology(workers=2, zero_stage=2, shards=1)) | {"schedule": {"retries": {"infrastructure": 0}}}
    run = job_run(tmp_path, spec)
    run.next_attempt()
    run.strike(Kill("student", EVERY_STEPS + 1), Random(1))
    record = run.ended()
    assert (record.outcome, record.reason) == (INFRASTRUCTURE_ERROR, "WORKER_LOST"), run.driver.log
    assert "its worker process has died" in record.message
    publish_dir = run.driver.attempt.publish_dir
    assert publish_dir is not None
    assert not publish_dir.exists()
    until(no_actors, "all actors ended")
