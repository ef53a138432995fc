"""What of a report goes on: to the job, and into the published model."""

from __future__ import annotations

from typing import Any

from cluster.driver.attempt import SUCCEEDED, ended
from cluster.driver.student_group import _published, _summary

REPORT: dict[str, Any] = {
    "headline": "The student keeps 95 % of its teacher's exact match.",
    "metrics": {"student": {"exact_match": 0.9, "exact_match_ci95": (0.8, 1.0)}, "teacher": {"exact_match": 0.95}},
    "retention": 0.95,
    "retention_ci95": (0.9, 1.0),
    "gain": None,
    "gain_ci95": None,
    "parameters": {"student": 12},
    "examples": [{"prompt": "a customer's words"}],
    "spec": {"data": {"train": "/data/train.jsonl"}},
}


def test_the_job_shows_the_figures_and_what_follows_from_them() -> None:
    record = ended(SUCCEEDED)
    record.summary.update(_summary(REPORT))
    assert record.summary["student"]["exact_match"] == 0.9
    assert (record.summary["retention"], list(record.summary["retention_ci95"])) == (0.95, [0.9, 1.0])
    assert (record.summary["gain"], record.summary["headline"]) == (None, REPORT["headline"])


def test_no_text_of_the_evaluation_is_published() -> None:
    assert _published(REPORT).keys() == REPORT.keys() - {"examples", "spec"}
