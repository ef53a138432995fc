"""Which objective a learner follows, and how terms become one loss."""

import torch

from tests.tiny_jobs import distill_job, fine_tune_job
from trainer.objective import (
    CrossEntropy,
    Divergence,
    Needs,
    Term,
    Together,
    combine,
    learn_tokens,
    learns_from_teacher,
)


def test_a_student_learns_from_its_teacher_and_the_baseline_from_labels(tmp_path):
    spec = distill_job(tmp_path, tmp_path / "teacher").spec
    assert learns_from_teacher(spec, "student")
    assert isinstance(learn_tokens(spec.objective, 10), Divergence)
    assert not learns_from_teacher(spec, "baseline")
    assert isinstance(learn_tokens(None, 10), CrossEntropy)


def test_no_teacher_is_asked_where_its_share_is_nothing(tmp_path):
    labels = distill_job(tmp_path, tmp_path / "teacher", objective={"kd_ratio": 0.0}).spec
    assert not learns_from_teacher(labels, "student")
    assert isinstance(learn_tokens(labels.objective, 10), CrossEntropy)
    assert not learns_from_teacher(fine_tune_job(tmp_path).spec, "student")
    inner = {"kd_ratio": 0.0, "intermediate_matches": [{"feature": "token_similarity"}]}
    assert learns_from_teacher(distill_job(tmp_path, tmp_path / "teacher", objective=inner).spec, "student")


def test_objectives_together_need_what_each_needs():
    first, second = CrossEntropy(3), CrossEntropy(3)
    first.taps, second.taps = ("hidden:1", "hidden:2"), ("hidden:2",)
    second.needs = Needs.TEACHER
    both = Together([first, second])
    assert both.taps == ("hidden:1", "hidden:2")
    assert both.needs == Needs.TEACHER


def test_combined_loss_is_the_weighted_sum_without_figures():
    terms = {
        "a": Term(torch.tensor(2.0)),
        "b": Term(torch.tensor(5.0), 0.5),
        "c": Term(torch.tensor(9.0), 0.0),
    }
    assert combine(terms).item() == 4.5
