"""The figures of the transfer against answers whose figures are known."""

import math

import pytest
from finished_job import distill_job, finetune_job, whole_transfer, write_answers

from trainer.transfer import outcomes, read_answers, summary


def test_a_whole_transfer(tmp_path):
    figures = summary(whole_transfer(tmp_path))
    assert figures["samples"] == 400
    assert figures["metrics"]["teacher"]["exact_match"] == pytest.approx(0.98)
    assert figures["metrics"]["student"]["exact_match"] == pytest.approx(0.95)
    assert figures["metrics"]["baseline"]["exact_match"] == pytest.approx(0.60)
    assert figures["retention"] == pytest.approx(0.95 / 0.98)
    assert figures["gain"] == pytest.approx(0.35)
    low, high = figures["gain_ci95"]
    assert 0.25 < low < 0.35 < high < 0.45
    assert figures["metrics"]["teacher"]["perplexity"] == pytest.approx(math.exp(0.02298), rel=1e-3)
    assert figures["perplexity_to_teacher"] > 1 > figures["perplexity_to_baseline"]


def test_outcomes_count_every_question_once(tmp_path):
    counted = outcomes(read_answers(whole_transfer(tmp_path).job_dir))
    assert sum(kind["samples"] for kind in counted) == 400
    assert counted[0] == {"right": {"teacher": True, "student": True, "baseline": True}, "samples": 240}
    assert [kind["samples"] for kind in counted] == sorted((kind["samples"] for kind in counted), reverse=True)


def test_a_teacher_that_is_never_right_leaves_retention_out(tmp_path):
    ctx = distill_job(tmp_path)
    write_answers(ctx, "teacher", [False] * 10)
    write_answers(ctx, "student", [True] * 10)
    figures = summary(ctx)
    assert figures["retention"] is None
    assert figures["retention_ci95"] is None


def test_one_sample(tmp_path):
    ctx = distill_job(tmp_path)
    for role in ("teacher", "student", "baseline"):
        write_answers(ctx, role, [True], nll=[1.0])
    figures = summary(ctx)
    assert figures["retention"] == 1.0
    assert figures["gain"] == 0.0
    assert figures["gain_ci95"] is None
    assert figures["metrics"]["student"]["perplexity"] == pytest.approx(math.exp(0.1))


def test_a_job_without_teacher(tmp_path):
    ctx = finetune_job(tmp_path)
    write_answers(ctx, "student", [True, False, True, True])
    figures = summary(ctx)
    assert list(figures["metrics"]) == ["student"]
    assert figures["metrics"]["student"]["exact_match"] == 0.75
    assert figures["metrics"]["student"]["perplexity"] is None
    assert figures["retention"] is None
    assert figures["gain"] is None


def test_perplexity_alone(tmp_path):
    ctx = distill_job(tmp_path)
    for role, nll in (("teacher", 1.0), ("student", 2.0)):
        path = ctx.evaluation_path(role)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f'{{"sample_id": {i}, "nll": {nll * (i + 1)}, "tokens": {i + 1}}}\n' for i in range(5)))
    figures = summary(ctx)
    assert figures["samples"] == 5
    assert figures["questions"] == 0
    assert figures["retention"] is None
    assert figures["metrics"]["student"] == {
        "exact_match": None,
        "exact_match_ci95": None,
        "perplexity": pytest.approx(math.exp(2)),
        "perplexity_ci95": pytest.approx([math.exp(2)] * 2),
    }
    assert figures["perplexity_to_teacher"] == pytest.approx(math.e)


def test_only_samples_that_every_model_answered_are_compared(tmp_path):
    ctx = distill_job(tmp_path)
    write_answers(ctx, "teacher", [True] * 4)
    write_answers(ctx, "student", [True, True, False])
    figures = summary(ctx)
    assert figures["samples"] == 3
    assert figures["retention"] == pytest.approx(2 / 3)


def test_nothing_was_evaluated(tmp_path):
    figures = summary(distill_job(tmp_path))
    assert figures["samples"] == 0
    assert figures["metrics"] == {}
    assert figures["outcomes"] == []
