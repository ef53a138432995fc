"""One taught worker or two, under the real DeepSpeed: the same student, whatever it is taught by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from workers import one_by_one, run_workers

from tests.tiny_jobs import TINY_LLAMA, distill_job, routed
from trainer.job import JobContext
from trainer.listener import Silent
from trainer.models import fresh_model, write_model
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.tokenizer import train_tokenizer

FEATURES = ("hidden", "attention", "value_relation", "token_similarity")
METHODS: dict[str, dict[str, Any]] = {
    "kl": {"objective": {"divergence": "forward_kl"}},
    "taid": {"objective": {"divergence": "taid", "taid_alpha": 0.3, "teacher_payload": "topk_logits", "loss_top_k": 9}},
    "routed": {"objective": {"divergence": "jsd"}},
    "joined": {"objective": {"divergence": "tvd", "kd_loss_mode": "averaged_logits"}},
    "relations": {"objective": {"intermediate_matches": [{"feature": "rkd_distance"}, {"feature": "rkd_angle"}]}},
    "idle": {
        "objective": {"intermediate_matches": [{"feature": f} for f in (*FEATURES, "rkd_distance", "rkd_angle")]},
        "training": {"batch_tokens": 72},  # one row or two: often the second worker has none
    },
    **{
        f"layers-{stage}": {
            "objective": {"intermediate_matches": [{"feature": feature} for feature in FEATURES]},
            "training": {"zero_stage": stage, "micro_batch_tokens": 96},
        }
        for stage in (2, 3)
    },
}


def fit_taught(peers: Peers, jobs: list[JobContext]) -> None:
    """Every job's student, by teachers in each worker's own process."""
    from trainer.faculty import Faculty
    from trainer.fit import fit
    from trainer.teacher import LocalTeacher, TeacherModel

    for ctx in one_by_one(jobs):
        distinct = list(dict.fromkeys(ctx.teachers))
        teachers = [LocalTeacher(TeacherModel(path, dtype="float32")) for path in distinct]
        faculty = Faculty.of(ctx.spec, ctx.teachers, teachers.__getitem__)
        fit(ctx, "student", peers, faculty, Silent())


def make_jobs(root: Path, teachers: list[Path]) -> dict[str, JobContext]:
    jobs = {}
    for name, method in METHODS.items():
        training = {"max_steps": 4, **method.get("training", {})}
        more = {"objective": method["objective"], "training": training}
        if name == "joined":
            more["teachers"] = [{"model": str(path), "dtype": "float32"} for path in teachers]
        jobs[name] = distill_job(root / name, teachers[0], **more)
        if name == "routed":
            jobs[name] = routed(jobs[name], teachers)
        prepare(jobs[name])
    return jobs


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, JobContext]]:
    """All methods by one worker and by two."""
    root = tmp_path_factory.mktemp("taught")
    tokenizer = train_tokenizer(["card lost top up refund pay fee limit account transfer about yes"], 320)
    teachers = [root / "teacher", root / "another"]
    for seed, path in enumerate(teachers, start=1):
        model = fresh_model({**TINY_LLAMA, "initializer_range": 0.3}, tokenizer, seed)
        write_model(path, model, dict(model.named_parameters()), tokenizer)
    found = {}
    for world in (1, 2):
        found[world] = make_jobs(root / str(world), teachers)
        assert run_workers(fit_taught, world, root, list(found[world].values())) == [0] * world
    return found


def lines(ctx: JobContext) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ctx.metrics_path("student").read_text().splitlines()]


def weights(ctx: JobContext) -> dict[str, torch.Tensor]:
    return load_file(ctx.model_dir("student") / "model.safetensors")


def assert_close(one: JobContext, other: JobContext) -> None:
    for line, expected in zip(lines(one), lines(other), strict=True):
        for name in ("loss", "grad_norm", "tokens"):
            assert line[name] == pytest.approx(expected[name], rel=2e-5), name
        assert line["terms"] == pytest.approx(expected["terms"], rel=1e-4, abs=1e-6)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], rtol=0.0, atol=5e-5)


@pytest.mark.parametrize("method", METHODS)
def test_two_workers_equal_one(learned, method: str) -> None:
    """Relations between samples take those of both workers."""
    assert_close(learned[2][method], learned[1][method])
    assert len(lines(learned[2][method])) == 4


@pytest.mark.parametrize("world", [1, 2])
def test_sharded_weights_learn_the_same_by_every_feature(learned, world: int) -> None:
    assert_close(learned[world]["layers-3"], learned[world]["layers-2"])
    assert set(FEATURES) <= lines(learned[world]["layers-3"])[0]["terms"].keys()
