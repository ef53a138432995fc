"""Several teachers, payloads and inner values through the driver: the student that local teachers make, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from drivers import STUDENT, TRAINING, Driver, write_attempt

from cluster.driver.attempt import SUCCEEDED, Attempt
from cluster.ray_head import RayHead
from tests.integration.trainer.workers import run_workers
from tests.tiny_jobs import write_chats
from trainer.atomic import sha256_file
from trainer.job import JobContext
from trainer.listener import Silent
from trainer.models import load_model
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.tokenizer import load_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FEATURES = ("hidden", "attention", "value_relation", "token_similarity", "rkd_distance", "rkd_angle")
WAYS: dict[str, dict[str, Any]] = {
    "mixture": {
        "teachers": [{"shards": 2}, {"weight": 3.0}],
        "objective": {
            "divergence": "jsd",
            "kd_loss_mode": "averaged_logits",
            "intermediate_matches": [{"feature": feature} for feature in FEATURES],
        },
        "training": {"zero_stage": 3, "micro_batch_tokens": 256},
    },
    "routing": {
        "teachers": [{"replicas": 2}, {"shards": 2}],
        "objective": {"divergence": "taid", "teacher_payload": "topk_logits", "loss_top_k": 9},
        "data": {"packing_strategy": "bfd", "columns": {"teacher_key": "who"}},
    },
}


@pytest.fixture(scope="module")
def teachers(chat_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two that differ, and speak alike."""
    other = tmp_path_factory.mktemp("other") / "model"
    model = load_model(str(chat_model_dir), torch.float32)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(other)
    load_tokenizer(chat_model_dir).save_pretrained(other)
    return [chat_model_dir, other]


def spec_of(way: dict[str, Any], teachers: list[Path], directory: Path) -> dict[str, Any]:
    train = write_chats(directory / "train.jsonl", 40)
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    named = [{**row, "who": f"teacher-{at % 2}"} for at, row in enumerate(rows)]
    train.write_text("".join(json.dumps(row) + "\n" for row in named))
    return {
        "teachers": [
            {"model": str(model), "dtype": "float32", **one}
            for model, one in zip(teachers, way["teachers"], strict=True)
        ],
        "student": STUDENT,
        "data": {"train": str(train), "max_length": 48, **way.get("data", {})},
        "objective": way["objective"],
        "training": TRAINING | {"max_steps": 5} | way.get("training", {}),
        "resources": {"student": {"workers": 2, "cpus_per_worker": 0.5}, "teacher": {"cpus_per_worker": 0.5}},
    }


@dataclass(frozen=True)
class Way:
    """One job twice: an attempt that is there to be run, and what local teachers have made of it."""

    attempt: Attempt
    local: JobContext


@pytest.fixture(scope="module")
def ways(ray_cluster: RayHead, teachers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Way]:
    """All local ones by the same two processes, which take longer to begin than to learn."""
    root = tmp_path_factory.mktemp("ways")
    found = {}
    for name, way in WAYS.items():
        (root / name).mkdir()
        attempt = write_attempt(root / name / "ray", spec_of(way, teachers, root / name))
        found[name] = Way(attempt, JobContext(root / name / "local", "Distill", attempt.ctx.spec))
        prepare(found[name].local)
    assert run_workers(fit_locally, 2, root, [way.local for way in found.values()]) == [0, 0]
    return found


def fit_locally(peers: Peers, jobs: list[JobContext]) -> None:
    """The same jobs by teachers in each worker's own process."""
    from trainer.faculty import Faculty
    from trainer.fit import fit
    from trainer.teacher import LocalTeacher, TeacherModel

    for ctx in jobs:
        connected = [LocalTeacher(TeacherModel(path, dtype="float32")) for path in ctx.teachers]
        fit(ctx, "student", peers, Faculty.of(ctx.spec, ctx.teachers, connected.__getitem__), Silent())


def lines(ctx: JobContext) -> list[Any]:
    found = [json.loads(line) for line in ctx.metrics_path("student").read_text().splitlines()]
    return [(line["step"], line["loss"], line["terms"], line["grad_norm"]) for line in found]


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_learn_from_actors_what_they_learn_from_local_teachers(
    way: str, ways: dict[str, Way], drive: Callable[[Attempt], Driver]
) -> None:
    local = ways[way].local
    driver = drive(ways[way].attempt)
    record = driver.ended()
    assert record is not None, driver.log
    assert record.outcome == SUCCEEDED, driver.log
    ctx = driver.attempt.ctx
    assert lines(ctx) == lines(local)
    paths = [one.model_dir("student") / "model.safetensors" for one in (ctx, local)]
    assert sha256_file(paths[0]) == sha256_file(paths[1])
    if way == "mixture":
        assert {*FEATURES, "jsd"} <= lines(ctx)[0][2].keys()
