"""The report's JSON, its page and its table, from job directories written by hand."""

import json
import re

import pytest
from finished_job import (
    distill_job,
    finetune_job,
    whole_transfer,
    write_answers,
    write_metrics,
    write_parameters,
)

from trainer.report import build_report, count_parameters, examples, learning_curve, table_rows, training_figures
from trainer.transfer import read_answers


def test_the_document_of_a_whole_transfer(tmp_path):
    ctx = whole_transfer(tmp_path)
    report = build_report(ctx)
    document = json.loads(report.json_path.read_text())
    assert document == json.loads(json.dumps(report.document))
    assert document["job"] == ctx.uid
    assert document["kind"] == "Distill"
    assert document["headline"].startswith("The student keeps 96.9 % of its teacher's exact match with 17 % of its par")
    assert document["parameters"] == {"teacher": 10_088_608, "student": 1_748_576, "baseline": 1_748_576}
    assert document["training"]["student"]["steps"] == 1000
    assert document["lineage"]["teacher"] == {"asked": "support-teacher@champion", "version": "support-teacher@3"}
    assert document["lineage"]["data_fingerprint"]["train"] == "9f2c" * 16
    assert document["data"]["train"]["samples"] == 4000
    assert document["spec"]["evaluate"]["bootstrap_samples"] == 500


def test_the_page_holds_the_figures_and_needs_nothing_else(tmp_path):
    report = build_report(whole_transfer(tmp_path))
    page = report.html_path.read_text()
    for said in (
        "1.75\u202fM",
        "95.0\u202f%",
        "support-teacher@3",
        "9f2c9f2c",
        "4,000 samples, 25 of them cut to max_length; 10 dropped",
        "bootstrap_samples: 500",
        "8 min 20 s",
    ):
        assert said in page
    assert re.findall(r'aria-label="([A-Z][^"]*)"', page) == [
        "Exact match",
        "Perplexity (lower is better)",
        "Loss",
        "Cross-entropy",
        "Divergence from the teacher",
    ]
    for elsewhere in ("<script", "<link", "<img", "@import", "src=", 'href="http', "url(http"):
        assert elsewhere not in page


def test_no_secret_of_the_attempt_reaches_the_report(tmp_path):
    report = build_report(whole_transfer(tmp_path))
    for path in (report.html_path, report.json_path):
        assert "lease-not-for-the-page" not in path.read_text()


def test_the_same_job_has_the_same_report(tmp_path):
    ctx = whole_transfer(tmp_path)
    first = build_report(ctx).html_path.read_bytes()
    assert build_report(ctx).html_path.read_bytes() == first


def test_what_models_write_is_shown_and_not_obeyed(tmp_path):
    ctx = distill_job(tmp_path)
    attack = "</span><script>alert('owned')</script><img src=x onerror=alert(1)>{{ 7 * 6 }}"
    write_answers(ctx, "student", [False], completions=[attack], prompts=["<b>who & what</b>"])
    write_answers(ctx, "teacher", [False], completions=["\x00\ud800 half a pair"], prompts=["<b>who & what</b>"])
    page = build_report(ctx).html_path.read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(&#39;owned&#39;)" in page
    assert "&lt;b&gt;who &amp; what&lt;/b&gt;" in page
    assert "{{ 7 * 6 }}" in page
    assert "half a pair" in page


def test_a_very_long_answer_is_clipped(tmp_path):
    ctx = distill_job(tmp_path)
    write_answers(ctx, "student", [False], completions=["z" * 50_000])
    page = build_report(ctx).html_path.read_text()
    assert "z" * 701 not in page
    assert "(49,300 more characters)" in page


def test_a_job_without_teacher(tmp_path):
    ctx = finetune_job(tmp_path)
    write_answers(ctx, "student", [True] * 29 + [False])
    write_metrics(ctx, "student", [3.0, 2.0, 1.0])
    write_parameters(ctx.model_dir("student"), [(1000, 10)])
    report = build_report(ctx)
    page = report.html_path.read_text()
    assert report.document["headline"].startswith("The model answers 96.7 % of 30 questions right")
    assert "Teacher" not in page
    assert "Student" not in page
    assert page.count("<svg") == 2
    assert [row[0] for row in table_rows(report.document)] == ["model", "model"]


def test_perplexity_alone(tmp_path):
    ctx = distill_job(tmp_path, metrics=["perplexity"])
    for role, nll in (("teacher", 1.0), ("student", 2.0)):
        path = ctx.evaluation_path(role)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"sample_id": i, "nll": nll, "tokens": 2}) + "\n" for i in range(9)))
    report = build_report(ctx)
    page = report.html_path.read_text()
    assert "came out like this" not in page
    assert "Perplexity (lower is better)" in page
    assert table_rows(report.document)[2] == ("student", "–", "–", "–", "2.718", "")


def test_a_job_that_was_only_trained(tmp_path):
    ctx = finetune_job(tmp_path)
    write_metrics(ctx, "student", [3.0])
    report = build_report(ctx)
    assert report.document["headline"] == (
        "The model was trained for 10 steps to a loss of 3.000; it was not evaluated."
    )
    assert report.html_path.read_text().count("<svg") == 1


def test_an_empty_job_directory_still_has_a_report(tmp_path):
    report = build_report(distill_job(tmp_path))
    assert report.document["headline"] == "Nothing was measured."
    assert table_rows(report.document) == [table_rows(report.document)[0]]
    assert "<svg" not in report.html_path.read_text()


def test_the_table(tmp_path):
    rows = table_rows(build_report(whole_transfer(tmp_path)).document)
    assert rows[0] == ("model", "parameters", "exact match", "95 % interval", "perplexity", "transfer")
    assert [row[0] for row in rows[1:]] == ["teacher", "student", "baseline"]
    assert rows[2][1:3] == ("1.75 M", "95.0 %")
    assert rows[2][5].startswith("keeps 96.9 % (9")
    assert rows[3][5].startswith("student +35.0 points (")


def test_training_figures_are_those_of_the_whole_curve(tmp_path):
    ctx = finetune_job(tmp_path)
    write_metrics(ctx, "student", [3.0, 2.0, 1.0])
    curve = learning_curve(ctx, "student")
    assert [(line["step"], line["loss"]) for line in curve] == [(10, 3.0), (20, 2.0), (30, 1.0)]
    expected = {
        "steps": 30,
        "tokens": 30_000,
        "seconds": 15.0,
        "tokens_per_second": 2000.0,
        "loss": 1.0,
    }
    assert training_figures(curve, {}) == expected
    exact = {"steps": 30, "tokens": 30_000, "seconds": 20.0}
    assert training_figures(curve, exact) == expected | {"seconds": 20.0, "tokens_per_second": 1500.0}
    assert training_figures([], exact) is None


def test_parameters_are_counted_over_all_files_of_a_model(tmp_path):
    write_parameters(tmp_path / "one", [(3, 4), (5,), ()])
    assert count_parameters(tmp_path / "one") == 18
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "one" / "model-00001-of-00002.safetensors")
    write_parameters(tmp_path / "one", [(7,)])
    assert count_parameters(tmp_path / "one") == 25
    assert count_parameters(tmp_path) is None


@pytest.mark.parametrize(("right", "kinds"), [([True] * 9, 1), ([True, False] * 9, 2), ([True], 1)])
def test_examples_show_each_kind_of_outcome(tmp_path, right, kinds):
    ctx = finetune_job(tmp_path)
    write_answers(ctx, "student", right)
    shown = examples(read_answers(ctx.job_dir))
    assert len(shown) == min(6, len(right))
    assert len({example["sample_id"] for example in shown}) == len(shown)
    assert len({example["answers"]["student"]["right"] for example in shown}) == kinds
    assert {example["samples_alike"] for example in shown} == {len(right) // kinds}


def test_counts_of_written_labels_go_over_those_of_the_prompts(tmp_path):
    ctx = whole_transfer(tmp_path)
    counts = {"rows": 4000, "samples": 3997, "cut": 5, "dropped": 3}
    ctx.labels_dir.mkdir()
    (ctx.labels_dir / "done.json").write_text(json.dumps({"request": "x", "counts": counts}))
    report = build_report(ctx)
    document = json.loads((ctx.report_dir / "report.json").read_text())
    assert document["data"]["train"] == {"rows": 4010, "samples": 3997, "cut": 30, "dropped": 13}
    assert "3,997 samples, 30 of them cut to max_length; 13 dropped" in (ctx.report_dir / "report.html").read_text()
    assert report
