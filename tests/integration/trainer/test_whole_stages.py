"""A whole job by two workers: labels by the teacher, student, baseline, evaluation; stopped anywhere, done once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workers import StopAt, in_turn, run_workers

from tests.tiny_jobs import distill_job, fine_tune_job, write_chats
from trainer.job import JobContext
from trainer.listener import Silent, Stopped
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.prepared import Prepared
from trainer.transfer import read_jsonl


class Written(Silent):
    """Appends what it hears to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None:
        with self.path.open("a") as file:
            file.write(f"{stage}\n")


def stages(peers: Peers, ctx: JobContext, heard: Path) -> None:
    from trainer.faculty import Faculty
    from trainer.stages import run_stages
    from trainer.teacher import LocalTeacher, TeacherModel

    teacher = Faculty.alone(LocalTeacher(TeacherModel(ctx.teacher, dtype="float32"))) if ctx.teacher else None
    run_stages(ctx, peers, teacher, Written(heard))


def stages_with_stops(peers: Peers, ctx: JobContext, heard: Path) -> None:
    """Every attempt is stopped two questions later than the one before, until one comes through."""
    from trainer.faculty import Faculty
    from trainer.stages import run_stages
    from trainer.teacher import LocalTeacher, TeacherModel

    teacher = Faculty.alone(LocalTeacher(TeacherModel(ctx.teacher, dtype="float32")))
    for questions in range(1, 20, 2):
        try:
            run_stages(ctx, peers, teacher, StopAt(questions))
        except Stopped:
            continue
        heard.write_text(str(questions))
        return
    raise AssertionError("it never came through")


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stages")
    ctx = fine_tune_job(
        root / "teacher", data={"eval": str(write_chats(root / "eval.jsonl", 7, seed=1))}, training={"max_steps": 40}
    )
    prepare(ctx)
    assert run_workers(stages, 2, root, ctx, root / "heard") == [0, 0]
    lines = read_jsonl(ctx.evaluation_path("student"))
    assert len(lines) == 7
    assert all({"completion", "reference", "exact_match", "nll", "tokens"} <= line.keys() for line in lines)
    return ctx.model_dir("student")


def distill(root: Path, teacher_dir: Path) -> JobContext:
    """The teacher writes the labels; the baseline learns ten labelled conversations."""
    ctx = distill_job(
        root / "distill",
        teacher_dir,
        data={
            "train": str(write_chats(root / "asked.jsonl", 20, seed=2, answered=False)),
            "eval": str(write_chats(root / "eval.jsonl", 5, seed=1)),
        },
        objective={"seq_kd": True},
        training={"max_steps": 4},
        evaluate={"baseline": {"train": str(write_chats(root / "few.jsonl", 10)), "max_steps": 3}},
    )
    prepare(ctx)
    return ctx


def test_two_workers_do_all_stages_and_a_second_call_does_nothing(teacher_dir, tmp_path):
    ctx = distill(tmp_path, teacher_dir)
    heard, again = tmp_path / "heard", tmp_path / "again"
    assert run_workers(in_turn, 2, tmp_path, [(stages, ctx, heard), (stages, ctx, again)]) == [0, 0]
    assert len(Prepared.open(ctx).train) == 20
    assert [ctx.label_path(rank).read_text().count("\n") for rank in range(2)] == [10, 10]
    assert json.loads((ctx.role_dir("student") / "done.json").read_text())["steps"] == 4
    assert json.loads((ctx.role_dir("baseline") / "done.json").read_text())["steps"] == 3
    for role in ("student", "baseline", "teacher"):
        assert len(read_jsonl(ctx.evaluation_path(role))) == 5
    told = heard.read_text().split("\n")
    assert list(dict.fromkeys(told))[:3] == ["label", "student", "baseline"]
    assert not again.exists()


def test_a_job_that_is_stopped_again_and_again_gives_the_same_model(teacher_dir, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, cut = distill(tmp_path / "a", teacher_dir), distill(tmp_path / "b", teacher_dir)
    works = [(stages, whole, tmp_path / "heard"), (stages_with_stops, cut, tmp_path / "attempts")]
    assert run_workers(in_turn, 1, tmp_path, works) == [0]
    assert int((tmp_path / "attempts").read_text()) > 4
    for role in ("student", "baseline"):
        files = [(ctx.model_dir(role) / "model.safetensors").read_bytes() for ctx in (whole, cut)]
        assert files[0] == files[1]
