"""A job of every stage, of which a shard, a student and the driver die: the same student, the same report (I4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from drivers import STUDENT, TRAINING, Driver, actors_of, kill, no_actors, until, write_attempt

from cluster.driver.attempt import SUCCEEDED, Attempt
from cluster.ray_head import RayHead
from tests.tiny_jobs import write_chats
from trainer.atomic import sha256_file

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def spec(tmp_path: Path, chat_model_dir: Path) -> dict[str, Any]:
    """Two shards of a teacher that writes labels, two students, a baseline, both metrics."""
    train, evaluation = write_chats(tmp_path / "train.jsonl", 24), write_chats(tmp_path / "eval.jsonl", 4, seed=1)
    return {
        "teachers": [{"model": str(chat_model_dir), "shards": 2, "dtype": "float32"}],
        "student": STUDENT,
        "data": {"train": str(train), "eval": str(evaluation), "max_length": 48},
        "objective": {"seq_kd": True},
        "training": TRAINING,
        "resources": {"student": {"workers": 2, "cpus_per_worker": 0.5}, "teacher": {"cpus_per_worker": 0.5}},
        "checkpoint": {"every_steps": 4},
        "evaluate": {"baseline": {"max_samples": 6}, "max_new_tokens": 8, "bootstrap_samples": 100},
        "publish": {"model": "bot"},
    }


def weights(attempt: Attempt) -> str:
    return sha256_file(attempt.ctx.model_dir("student") / "model.safetensors")


def stage(attempt: Attempt) -> str | None:
    path = attempt.ctx.progress_path
    return json.loads(path.read_text())["stage"] if path.exists() else None


def has_event(attempt: Attempt, words: str) -> bool:
    path = attempt.events_path(0)
    return path.exists() and words in path.read_text()


def test_whatever_dies_on_the_way_the_student_is_the_same(
    ray_cluster: RayHead, spec: dict[str, Any], tmp_path: Path, control_plane: str
) -> None:
    """The second attempt goes on from the last checkpoint."""
    plain = Driver(write_attempt(tmp_path / "plain", spec, control_plane=control_plane))
    undisturbed = plain.ended()
    assert undisturbed is not None, plain.log
    first = Driver(write_attempt(tmp_path / "killed", spec, control_plane=control_plane))
    first.until(lambda: actors_of("TeacherShard") and stage(first.attempt) == "prepare", "teacher and students begin")
    kill(actors_of("TeacherShard")[-1])
    first.until(lambda: has_event(first.attempt, "student: step 4"), "the first checkpoint")
    kill(actors_of("RayTrainWorker")[-1])
    first.until(lambda: has_event(first.attempt, "student: step 8"), "the second checkpoint")
    first.process.kill()
    first.process.wait()
    until(no_actors, "Ray ends what the driver started")
    second = Driver(write_attempt(tmp_path / "killed", spec, number=2, control_plane=control_plane))
    record = second.ended()
    assert record is not None, second.log
    assert record.outcome == SUCCEEDED, second.log
    assert weights(second.attempt) == weights(plain.attempt)
    assert record.summary == undisturbed.summary
    until(no_actors, "all actors ended")
