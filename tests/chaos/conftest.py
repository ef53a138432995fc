"""One Ray for all chaos tests, and the job that they disturb."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import no_actors, until
from installation import installation as installation
from installation import models as models
from own_ray import ray_cluster as ray_cluster
from runs import EVERY_STEPS, SAMPLES, TOTAL_STEPS, JobRun, Table, Topology
from worker_service import ControlPlane, serving

from cluster.ray_head import RayHead
from tests.tiny_jobs import TINY_LLAMA, write_chats


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    """One row for each run; kept as Markdown where `ATHANOR_CHAOS_TABLE` says."""
    path = os.environ.get("ATHANOR_CHAOS_TABLE")
    rows = Table(Path(path) if path else None)
    yield rows
    print("", *rows.lines, sep="\n")


@pytest.fixture(scope="session")
def job_spec(tmp_path_factory: pytest.TempPathFactory, chat_model_dir: Path) -> Callable[[Topology], dict[str, Any]]:
    """A Distill job of a tiny student, long enough that kills land inside it."""
    train = write_chats(tmp_path_factory.mktemp("data") / "train.jsonl", SAMPLES)

    def spec(topology: Topology) -> dict[str, Any]:
        return {
            "teachers": [{"model": str(chat_model_dir), "shards": topology.shards, "dtype": "float32"}],
            "student": {"config": {**TINY_LLAMA, "hidden_size": 16, "intermediate_size": 24}},
            "data": {"train": str(train), "max_length": 64},
            "objective": {"temperature": 2.0, "kd_ratio": 0.7},
            "training": {
                "max_steps": TOTAL_STEPS,
                "batch_tokens": 512,
                "micro_batch_tokens": 128,
                "learning_rate": 0.01,
                "precision": "fp32",
                "zero_stage": topology.zero_stage,
                "logging_steps": 1,
                "log_sample_ids": True,
            },
            "resources": {
                "student": {"workers": topology.workers, "cpus_per_worker": 0.5},
                "teacher": {"cpus_per_worker": 0.5},
            },
            "checkpoint": {"every_steps": EVERY_STEPS},
            "publish": {"model": "bot"},
        }

    return spec


@pytest.fixture(scope="session")
def control_plane() -> Iterator[str]:
    """Takes what drivers report and orders nothing, so that they end as soon as they have told how."""
    with serving(ControlPlane()) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def job_run(ray_cluster: RayHead, control_plane: str) -> Iterator[Callable[[Path, dict[str, Any]], JobRun]]:
    """Begins jobs; drivers that still run at the end are killed."""
    begun: list[JobRun] = []

    def begin(root: Path, spec: dict[str, Any]) -> JobRun:
        begun.append(JobRun(root, spec, control_plane))
        return begun[-1]

    yield begin
    for one in begun:
        one.kill_driver()
    until(no_actors, "all actors ended")
