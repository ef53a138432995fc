"""A tiny Distill job, an endless one, and drivers that are gone when their test is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers import STUDENT, TRAINING, Driver, no_actors, until

from cluster.driver.attempt import Attempt
from cluster.ray_head import RayHead

WORDS = ["card", "refund", "transfer", "limit", "fee", "pin", "address", "cash"]


def chats(words: list[str]) -> str:
    lines = [
        {"messages": [{"role": "user", "content": f"my {word}?"}, {"role": "assistant", "content": f"about {word}"}]}
        for word in words
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    (directory / "train.jsonl").write_text(chats(WORDS * 3))
    (directory / "eval.jsonl").write_text(chats(WORDS[:4]))
    return directory


@pytest.fixture(scope="session")
def distill_spec(data_dir: Path, chat_model_dir: Path) -> dict[str, Any]:
    """All there is: two shards, two students, written labels, baseline, both metrics."""
    return {
        "teachers": [{"model": str(chat_model_dir), "shards": 2, "dtype": "float32"}],
        "student": STUDENT,
        "data": {"train": str(data_dir / "train.jsonl"), "eval": str(data_dir / "eval.jsonl"), "max_length": 48},
        "objective": {"seq_kd": True},
        "training": TRAINING,
        "resources": {"student": {"workers": 2, "cpus_per_worker": 0.5}, "teacher": {"cpus_per_worker": 0.5}},
        "checkpoint": {"every_steps": 4},
        "evaluate": {"baseline": {"max_samples": 6}, "max_new_tokens": 8, "bootstrap_samples": 100},
        "publish": {"model": "bot"},
    }


@pytest.fixture
def endless_spec(data_dir: Path) -> dict[str, Any]:
    """One worker without a teacher that learns until somebody ends it."""
    return {
        "student": STUDENT,
        "data": {"train": str(data_dir / "train.jsonl"), "max_length": 48},
        "training": TRAINING | {"max_steps": 1_000_000},
        "resources": {"student": {"cpus_per_worker": 0.5}},
    }


@pytest.fixture
def drive(ray_cluster: RayHead) -> Iterator[Callable[[Attempt], Driver]]:
    """Starts drivers; those that still run are killed at the end."""
    started: list[Driver] = []

    def start(attempt: Attempt) -> Driver:
        started.append(Driver(attempt))
        return started[-1]

    yield start
    for driver in started:
        driver.process.kill()
        driver.process.wait()
    until(no_actors, "all actors ended")
