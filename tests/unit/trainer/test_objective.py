"""Which objective a learner follows, and how terms become one loss."""

import torch

from tests.tiny_jobs import distill_job, fine_tune_job
from trainer.losses import Mix
from trainer.objective import Needs, Plan, Term, combine, plan


def test_a_student_learns_from_its_teacher_and_the_baseline_from_labels(tmp_path):
    spec = distill_job(tmp_path, tmp_path / "teacher").spec
    assert plan(spec) == Plan("divergence", Needs.TEACHER, Mix(0.7, 2.0))
    assert plan(spec).needs_teacher
    assert plan(spec, "baseline").name == "cross_entropy"
    assert not plan(spec, "baseline").needs_teacher


def test_no_teacher_is_asked_where_its_share_is_nothing(tmp_path):
    spec = distill_job(tmp_path, tmp_path / "teacher", objective={"kd_ratio": 0.0}).spec
    assert plan(spec).name == "cross_entropy"
    assert plan(fine_tune_job(tmp_path).spec).name == "cross_entropy"


def test_combined_loss_is_the_weighted_sum_without_figures():
    terms = {
        "a": Term(torch.tensor(2.0)),
        "b": Term(torch.tensor(5.0), 0.5),
        "c": Term(torch.tensor(9.0), 0.0),
    }
    assert combine(terms).item() == 4.5
