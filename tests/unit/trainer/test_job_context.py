"""Places of a job's files, and how a reference becomes something to load."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.job import JobContext, model_form
from trainer.spec import parse_spec

SPEC = {
    "teachers": [{"model": "support-teacher@champion"}],
    "student": {"config": {"model_type": "llama"}},
    "data": {"train": "x.jsonl"},
    "training": {"max_steps": 1},
}


@pytest.fixture
def ctx() -> JobContext:
    models = {"support-teacher@champion": "/models/support-teacher/a"}
    return JobContext(Path("/storage/jobs/bot-abcdefgh"), "Distill", parse_spec("Distill", SPEC), models)


@pytest.mark.parametrize(
    ("reference", "form"),
    [
        ("support-teacher@champion", "registry"),
        ("support-teacher@3", "registry"),
        ("/models/a", "directory"),
        ("./a", "directory"),
        ("../a@b", "directory"),
        ("~/a", "directory"),
        ("Qwen/Qwen2.5-0.5B", "hub"),
        ("gpt2", "hub"),
    ],
)
def test_the_form_of_a_reference_tells_what_it_is(reference: str, form: str) -> None:
    assert model_form(reference) == form


def test_references_are_resolved(ctx: JobContext) -> None:
    assert ctx.teacher == "/models/support-teacher/a"
    assert ctx.resolve_model("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert ctx.resolve_model("~/a") == str(Path.home() / "a")
    with pytest.raises(UserError, match="other@x is not among"):
        ctx.resolve_model("other@x")


def test_files_lie_where_the_layout_says(ctx: JobContext) -> None:
    job = Path("/storage/jobs/bot-abcdefgh")
    assert ctx.uid == "bot-abcdefgh"
    assert ctx.checkpoints_dir("baseline") == job / "baseline" / "checkpoints"
    assert ctx.metrics_path("student") == job / "student" / "metrics.jsonl"
    assert ctx.model_dir("student") == job / "student" / "model"
    assert ctx.evaluation_path("teacher") == job / "evaluation" / "teacher.jsonl"
    assert ctx.label_path(3) == job / "labels" / "part-3.jsonl"
    assert ctx.tokenizer_dir == job / "prepared" / "tokenizer"


def test_it_crosses_process_borders(ctx: JobContext) -> None:
    assert pickle.loads(pickle.dumps(ctx)) == ctx
