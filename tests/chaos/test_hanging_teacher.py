"""A teacher shard that hangs while a student learns: after the deadline the group is started again and asked again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
import torch
from drivers import actors_of, no_actors, until

from cluster.driver.remote_teacher import RemoteTeacher
from cluster.driver.teacher_dispatch import Policy
from cluster.driver.teacher_group import TeacherPlan, start_teacher
from cluster.driver.teacher_plan import load_teacher
from cluster.ray_head import RayHead
from tests.tiny_jobs import distill_job
from trainer.atomic import sha256_file
from trainer.faculty import Faculty
from trainer.fit import fit
from trainer.job import JobContext
from trainer.listener import Silent
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.teacher import Teacher

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ANSWER_TIMEOUT_S = 5.0


@pytest.fixture
def teacher(ray_cluster: RayHead, chat_model_dir: Path) -> Iterator[Teacher]:
    ray.init(ray_cluster.address, namespace="hanging-teacher", log_to_driver=False, logging_level="WARNING")
    load = partial(load_teacher, str(chat_model_dir), "float32")
    policy = Policy(round_timeout_s=ANSWER_TIMEOUT_S)
    group = start_teacher(TeacherPlan(load, shards=2, cpus_per_shard=0.5, policy=policy))
    yield RemoteTeacher(group.gateway, timeout_s=240)
    group.stop()
    until(no_actors, "the group ended")
    ray.shutdown()


class Hangs(Silent):
    """Stops a shard, without ending it, after the second step."""

    def __init__(self) -> None:
        self.stopped: list[psutil.Process] = []

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None:
        if step == 2:
            self.stopped.append(actors_of("TeacherShard")[-1])
            self.stopped[-1].suspend()


def learned(ctx: JobContext, teacher: Teacher, listener: Silent) -> str:
    prepare(ctx)
    fit(ctx, "student", Peers.alone(), Faculty.alone(teacher), listener, engine="torch")
    return sha256_file(ctx.model_dir("student") / "model.safetensors")


def test_a_shard_that_hangs_costs_time_and_no_bit(
    teacher: Teacher, ray_cluster: RayHead, chat_model_dir: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    undisturbed = learned(distill_job(tmp_path / "undisturbed", chat_model_dir), teacher, Silent())
    hangs = Hangs()
    assert learned(distill_job(tmp_path / "disturbed", chat_model_dir), teacher, hangs) == undisturbed
    until(lambda: not hangs.stopped[0].is_running(), "the hanging shard is ended too")
    said = f"no answer within {ANSWER_TIMEOUT_S:g} s, so a shard counts as hanging"
    until(lambda: said in logs(ray_cluster), "the gateway says why")


def logs(head: RayHead) -> str:
    """What the workers of the cluster printed."""
    return "".join(path.read_text() for path in Path(head.temp_dir).glob("session_2*/logs/worker-*.err"))
