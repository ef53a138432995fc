"""What a taught learner becomes depends neither on stops, nor on waiting, nor on how work and teachers are dealt out.

Plain torch, one worker; without a teacher the same is in test_fit.py, with several workers in tests/integration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny_jobs import TINY_LLAMA, distill_job, routed
from trainer.batch import Batch
from trainer.faculty import Faculty
from trainer.fit import fit
from trainer.job import JobContext
from trainer.listener import Silent, Stopped
from trainer.models import fresh_model, load_model, write_model
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.teacher import LocalTeacher, TeacherModel
from trainer.tokenizer import load_tokenizer, train_tokenizer
from trainer.wanted import TeacherFacts

TAID = {"divergence": "taid", "taid_alpha": 0.3, "taid_beta": 0.9, "temperature": 1.0}
RKD = {"intermediate_matches": [{"feature": "rkd_distance"}, {"feature": "rkd_angle"}, {"feature": "hidden"}]}
MATCHED = {"divergence": "jsd", "intermediate_matches": [{"feature": "hidden"}, {"feature": "token_similarity"}]}
TOP = {"teacher_payload": "topk_logits", "loss_top_k": 7}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sure of what it says, as a random model of this width is not."""
    tokenizer = train_tokenizer(["card lost top up refund pay fee limit account transfer about yes"], 320)
    model = fresh_model({**TINY_LLAMA, "initializer_range": 0.3}, tokenizer, 1)
    path = tmp_path_factory.mktemp("teacher") / "model"
    write_model(path, model, dict(model.named_parameters()), tokenizer)
    return path


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> LocalTeacher:
    return LocalTeacher(TeacherModel(str(teacher_dir), dtype="float32"))


class StopAfter(Silent):
    """Asks to stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left <= 0


def learn(ctx: JobContext, faculty: Faculty, *, stop_after: int | None = None) -> JobContext:
    prepare(ctx)
    if stop_after is not None:
        with pytest.raises(Stopped):
            fit(ctx, "student", Peers.alone(), faculty, StopAfter(stop_after), engine="torch")
    fit(ctx, "student", Peers.alone(), faculty, Silent(), engine="torch")
    return ctx


def weights(ctx: JobContext) -> dict[str, Tensor]:
    return load_file(ctx.model_dir("student") / "model.safetensors")


def figures(ctx: JobContext) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in ctx.metrics_path("student").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "loss", "terms", "grad_norm", "tokens")} for line in lines]


def assert_same_bits(one: JobContext, other: JobContext) -> None:
    assert figures(one) == figures(other)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def assert_close(one: JobContext, other: JobContext) -> None:
    """Within float32 rounding, which Adam's division lets show in the weights."""
    for line, expected in zip(figures(one), figures(other), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line["terms"] == pytest.approx(expected["terms"], rel=1e-4, abs=1e-6)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], rtol=0.0, atol=5e-5)


@pytest.mark.parametrize("objective", [TAID, RKD], ids=["taid", "rkd"])
def test_stopped_and_resumed_equals_never_stopped(objective, teacher_dir, teacher, tmp_path) -> None:
    """TAID's pace and the projections of a hidden match come through as well."""
    faculty = Faculty.alone(teacher)
    jobs = [distill_job(tmp_path / name, teacher_dir, objective=objective) for name in ("whole", "cut")]
    learn(jobs[0], faculty)
    learn(jobs[1], faculty, stop_after=3)
    assert_same_bits(jobs[1], jobs[0])
    assert len(figures(jobs[0])) == 6


@pytest.mark.parametrize("objective", [{**TAID, **TOP}, MATCHED], ids=["taid-top", "matched"])
def test_how_far_answers_are_asked_ahead_changes_no_bit(objective, teacher_dir, teacher, tmp_path) -> None:
    faculty, jobs = Faculty.alone(teacher), []
    for depth in (0, 1, 4):
        training = {"prefetch_depth": depth, "micro_batch_tokens": 96, "max_steps": 3}
        ctx = distill_job(tmp_path / str(depth), teacher_dir, objective=objective, training=training)
        jobs.append(learn(ctx, faculty))
    assert_same_bits(jobs[1], jobs[0])
    assert_same_bits(jobs[2], jobs[0])


@pytest.mark.parametrize("objective", [MATCHED, {**MATCHED, **TOP}], ids=["hidden", "top"])
def test_micro_batches_change_no_result(objective, teacher_dir, teacher, tmp_path) -> None:
    faculty = Faculty.alone(teacher)
    whole, cut = (
        distill_job(tmp_path / str(size), teacher_dir, objective=objective, training={"micro_batch_tokens": size})
        for size in (256, 48)
    )
    assert_close(learn(cut, faculty), learn(whole, faculty))


@pytest.mark.parametrize("packing", [{"packing_strategy": "bfd"}, {"packing_strategy": "bfd", "max_length": 128}])
def test_packing_changes_neither_loss_nor_gradient(packing, teacher_dir, teacher, tmp_path) -> None:
    """Of one step over all data, with every feature that reads attention or samples."""
    features = ("hidden", "attention", "value_relation", "token_similarity", "rkd_distance", "rkd_angle")
    objective = {"intermediate_matches": [{"feature": feature} for feature in features]}
    training = {"max_steps": 1, "batch_tokens": 100_000, "micro_batch_tokens": 100_000}
    found = [
        figures(
            learn(
                distill_job(tmp_path / name, teacher_dir, objective=objective, training=training, data=data),
                Faculty.alone(teacher),
            )
        )[0]
        for name, data in (("plain", {}), ("packed", packing))
    ]
    assert found[1]["terms"] == pytest.approx(found[0]["terms"], rel=1e-4)
    assert found[1]["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-4)
    assert set(features) <= found[0]["terms"].keys()


def widened(source: Path, target: Path, rows: int) -> Path:
    """The same model with so many rows of vocabulary more, which would drown all others if they took part."""
    model = load_model(str(source), torch.float32)
    known = model.config.vocab_size
    model.resize_token_embeddings(known + rows, mean_resizing=False)
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight[known:] = 9.0
    model.save_pretrained(target)
    load_tokenizer(source).save_pretrained(target)
    return target


@pytest.mark.parametrize("payload", [{}, TOP, {"teacher_payload": "full_logits"}], ids=["hidden", "top", "full"])
def test_padding_of_either_vocabulary_changes_nothing(payload, teacher_dir, tmp_path) -> None:
    """As 152,064 rows for 151,936 entries: of the teacher alone, of the student alone."""
    small = fresh_model({**TINY_LLAMA, "hidden_size": 16, "intermediate_size": 24}, load_tokenizer(teacher_dir), 5)
    write_model(tmp_path / "student", small, dict(small.named_parameters()), load_tokenizer(teacher_dir))
    models = {"teacher": teacher_dir, "student": tmp_path / "student"}
    wide = {name: widened(path, tmp_path / f"wide-{name}", 64) for name, path in models.items()}
    jobs = {}
    for name in ("neither", "teacher", "student"):
        chosen = models | ({name: wide[name]} if name in wide else {})
        ctx = distill_job(
            tmp_path / name,
            chosen["teacher"],
            student={"model": str(chosen["student"])},
            objective=payload,
            training={"max_steps": 3},
        )
        teacher = LocalTeacher(TeacherModel(str(chosen["teacher"]), dtype="float32"))
        jobs[name] = learn(ctx, Faculty.alone(teacher))
    assert_same_bits(jobs["teacher"], jobs["neither"])
    for line, expected in zip(figures(jobs["student"]), figures(jobs["neither"]), strict=True):
        assert line == {**expected, "grad_norm": pytest.approx(expected["grad_norm"], rel=1e-6)}
    learned, wider = weights(jobs["neither"]), weights(jobs["student"])
    for name, tensor in learned.items():
        torch.testing.assert_close(wider[name][: len(tensor)], tensor, rtol=0.0, atol=1e-6)
    assert len(wider["lm_head.weight"]) == len(learned["lm_head.weight"]) + 64


@pytest.mark.parametrize("mode", ["sum", "averaged_logits", "select_teacher"])
def test_two_equal_teachers_are_one(mode, teacher_dir, teacher, tmp_path) -> None:
    alone = distill_job(tmp_path / "alone", teacher_dir, training={"max_steps": 3})
    named = [{"model": str(teacher_dir), "dtype": "float32", "weight": weight} for weight in (1.0, 3.0)]
    if mode == "select_teacher":
        named = [{name: one[name] for name in ("model", "dtype")} for one in named]
    joined = {"objective": {"kd_loss_mode": mode}, "training": {"max_steps": 3}, "teachers": named}
    twice = distill_job(tmp_path / "twice", teacher_dir, **joined)
    both = Faculty((teacher, teacher), (0, 1), (0.25, 0.75))
    assert_close(learn(twice, both), learn(alone, Faculty.alone(teacher)))


@pytest.mark.parametrize("data", [{}, {"packing_strategy": "bfd"}], ids=["alone", "packed"])
@pytest.mark.parametrize("payload", [{}, TOP, {"teacher_payload": "full_logits"}], ids=["hidden", "top", "full"])
def test_equal_teachers_of_different_samples_are_one(data, payload, teacher_dir, teacher, tmp_path) -> None:
    training = {"max_steps": 3, "micro_batch_tokens": 128}
    alone = distill_job(tmp_path / "alone", teacher_dir, objective=payload, training=training, data=data)
    dealt = distill_job(tmp_path / "dealt", teacher_dir, objective=payload, training=training, data=data)
    dealt = routed(dealt, [teacher_dir, teacher_dir])
    learn(dealt, Faculty((teacher, teacher), (0, 1), (0.5, 0.5), is_routed=True))
    assert_close(dealt, learn(alone, Faculty.alone(teacher)))


class LoadedWhole(LocalTeacher):
    """As a shard is whose files could not be read by slices."""

    def facts(self, batch: Batch) -> TeacherFacts:
        return replace(super().facts(batch), loaded_whole="every shard reads the whole model: it is quantised")


class Told(Silent):
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def event(self, reason: str, message: str) -> None:
        self.events.append((reason, message))


def test_what_the_answers_are_and_how_the_teacher_was_loaded_is_told(teacher_dir: Path, tmp_path: Path) -> None:
    ctx, told = distill_job(tmp_path / "job", teacher_dir, training={"max_steps": 1}), Told()
    prepare(ctx)
    teacher = LoadedWhole(TeacherModel(str(teacher_dir), dtype="float32"))
    fit(ctx, "student", Peers.alone(), Faculty.alone(teacher), told, engine="torch")
    assert told.events[0][0] == "TEACHER_PAYLOAD"
    assert told.events[0][1].startswith("student: hidden_states, ")
    assert told.events[1] == ("TEACHER_LOADED_WHOLE", "every shard reads the whole model: it is quantised")
