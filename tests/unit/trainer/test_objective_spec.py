"""Pairs that cannot be are refused where the job is written, with field and mend; defaults are the documented ones."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.objective_spec import MatchSpec, ObjectiveSpec
from trainer.spec import DistillSpec, SpecError, parse_spec


def parse(**changes: Any) -> DistillSpec:
    spec = {
        "student": {"model": "org/student"},
        "teachers": [{"model": "org/teacher"}],
        "data": {"train": "org/data"},
        "training": {"max_steps": 1},
    }
    found = parse_spec("Distill", {**spec, **changes})
    assert isinstance(found, DistillSpec)
    return found


def refused(**changes: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse(**changes)
    return {violation.path: violation.message for violation in caught.value.violations}


def match(**fields: Any) -> dict[str, Any]:
    return {"objective": {"intermediate_matches": [fields]}}


ROUTED = {"data": {"train": "org/data", "columns": {"teacher_key": "who"}}}
MATCH = "spec.objective.intermediate_matches[0]"
PAIR = [{"model": "a/a"}, {"model": "b/b"}]
WEIGHTED = [{"model": "a/a", "weight": 2}, {"model": "b/b"}]
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"objective": {"divergence": "forward_k"}}, "spec.objective.divergence", "did you mean 'forward_kl'?"),
    ({"objective": {"beta": 1.5}}, "spec.objective.beta", "1.5 is too large; it must be at most 1"),
    ({"objective": {"skew_lambda": 1}}, "spec.objective.skew_lambda", "must be less than 1"),
    ({"objective": {"adaptive_kl_alpha": 0}}, "spec.objective.adaptive_kl_alpha", "must be more than 0"),
    ({"objective": {"temperature": 0}}, "spec.objective.temperature", "must be more than 0"),
    ({"objective": {"kd_ratio": -0.1}}, "spec.objective.kd_ratio", "must be at least 0"),
    ({"objective": {"taid_beta": 1}}, "spec.objective.taid_beta", "must be less than 1"),
    ({"objective": {"loss_top_k": 0}}, "spec.objective.loss_top_k", "must be at least 1"),
    ({"objective": {"teacher_payload": "hidden"}}, "spec.objective.teacher_payload", "did you mean 'hidden_states'?"),
    (
        {"objective": {"divergence": "taid", "taid_t_start": 0.5, "taid_t_end": 0.4}},
        "spec.objective.taid_t_end",
        "0.4 is before taid_t_start (0.5)",
    ),
    (
        {"objective": {"teacher_payload": "topk_logits", "kd_loss_mode": "averaged_logits"}},
        "spec.objective.kd_loss_mode",
        "needs the same tokens of every teacher, which topk_logits does not bring; use teacher_payload hidden_states",
    ),
    (
        {"objective": {"teacher_payload": "topk_logits", "kd_loss_mode": "select_teacher"}},
        "spec.objective.kd_loss_mode",
        "select_teacher needs the same tokens",
    ),
    (match(feature="hidden", loss="kl"), f"{MATCH}.loss", "hidden is not compared by kl; use mse or cosine"),
    (match(feature="attention", loss="cosine"), f"{MATCH}.loss", "attention is not compared by cosine; use mse or kl"),
    (match(feature="value_relation", loss="mse"), f"{MATCH}.loss", "use kl"),
    (match(feature="rkd_angle", loss="mse"), f"{MATCH}.loss", "rkd_angle is not compared by mse; leave loss out"),
    (match(feature="token_similarity", layers=[[1, 1]]), f"{MATCH}.layers", "reads the final hidden states; leave"),
    (match(feature="hidden", layers=[]), f"{MATCH}.layers", "give at least one pair of layers from 0 on"),
    (match(feature="hidden", layers=[[-1, 1]]), f"{MATCH}.layers", "give at least one pair of layers from 0 on"),
    (match(feature="attention", layers=[[1, 0]]), f"{MATCH}.layers", "give at least one pair of layers from 1 on"),
    (match(feature="hidden", weight=0), f"{MATCH}.weight", "must be more than 0"),
    (match(feature="hiden"), f"{MATCH}.feature", "did you mean 'hidden'?"),
    (
        {"teachers": [{"model": "a/a", "name": "x"}, {"model": "b/b", "name": "x"}]},
        "spec.teachers",
        "names must differ, these do not: x, x",
    ),
    (
        {"teachers": [{"model": "a/a", "name": "teacher-1"}, {"model": "b/b"}]},
        "spec.teachers",
        "names must differ, these do not: teacher-1, teacher-1",
    ),
    ({"teachers": [{"model": "a/a", "weight": 0}]}, "spec.teachers[0].weight", "must be more than 0"),
    (
        {"objective": {"kd_loss_mode": "select_teacher"}},
        "spec.objective.kd_loss_mode",
        "select_teacher joins several teachers, but one is named; leave this out",
    ),
    (
        {"teachers": [{"model": "a/a", "weight": 2}]},
        "spec.teachers[0].weight",
        "is a share of teachers that answer together, but there is no other teacher; leave this out",
    ),
    ({**ROUTED, "teachers": WEIGHTED}, "spec.teachers[0].weight", "teacher_key gives each sample one teacher; leave"),
    (
        {"teachers": WEIGHTED, "objective": {"kd_loss_mode": "select_teacher"}},
        "spec.teachers[0].weight",
        "select_teacher takes one of them at each position; leave this out",
    ),
    (
        match(feature="hidden", layers=[[1, 1]], layer_mapping="all"),
        f"{MATCH}.layer_mapping",
        "all chooses layers, but the pairs in layers say that already; leave this out",
    ),
    (
        match(feature="rkd_angle", layer_mapping="uniform"),
        f"{MATCH}.layer_mapping",
        "uniform chooses layers, but rkd_angle reads the final hidden states; leave this out",
    ),
    (
        {"training": {"max_steps": 1, "decay_ratio": 0.3}},
        "spec.training.decay_ratio",
        "is read with lr_scheduler_type warmup_stable_decay only, and that is cosine; set that, or leave this out",
    ),
    ({"teachers": [{"model": "a/a"}] * 17}, "spec.teachers", "17"),
    (
        {**ROUTED, "teachers": PAIR, "objective": {"kd_loss_mode": "averaged_logits"}},
        "spec.objective.kd_loss_mode",
        "averaged_logits joins teachers, but data.columns.teacher_key gives each sample one teacher; leave one",
    ),
    (
        {**ROUTED, "objective": {"intermediate_matches": [{"feature": "hidden"}]}},
        "spec.objective.intermediate_matches",
        "reads the first teacher for every sample, but data.columns.teacher_key gives each sample one teacher",
    ),
    (
        {**ROUTED, "objective": {"seq_kd": True}},
        "spec.objective.seq_kd",
        "the first teacher writes all completions, but data.columns.teacher_key",
    ),
    (
        {"student": {"config": {"model_type": "llama"}, "tokenizer": {}}},
        "spec.student.tokenizer",
        "a distilled student takes its teacher's tokenizer; leave this out",
    ),
]


@pytest.mark.parametrize(("changes", "path", "sentence"), WRONG)
def test_what_cannot_be_is_named_with_its_mend(changes: dict[str, Any], path: str, sentence: str) -> None:
    assert sentence in refused(**changes)[path]


@pytest.mark.parametrize("feature", ["rkd_distance", "rkd_angle"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_samples_of_a_step_must_lie_together_where_they_are_compared(feature: str, workers: int) -> None:
    """The figure that is named is the least that will do."""

    def changes(micro_batch_tokens: int) -> dict[str, Any]:
        return {
            **match(feature=feature),
            "data": {"train": "org/data", "max_length": 100},
            "training": {"max_steps": 1, "batch_tokens": 1000, "micro_batch_tokens": micro_batch_tokens},
            "resources": {"student": {"workers": workers}},
        }

    least = 1000 if workers == 1 else -(-1000 // workers) + 108
    sentence = refused(**changes(least - 1))["spec.training.micro_batch_tokens"]
    assert f"raise it to {least}, or lower batch_tokens" in sentence
    assert parse(**changes(least)).objective.compares_samples


def test_defaults_are_the_published_ones() -> None:
    weights = {name: MatchSpec(feature=name).term_weight for name in ("rkd_distance", "rkd_angle", "hidden")}
    assert weights == {"rkd_distance": 25.0, "rkd_angle": 50.0, "hidden": 1.0}
    assert MatchSpec(feature="rkd_angle", weight=2.0).term_weight == 2.0
    losses = {name: MatchSpec(feature=name).loss_name for name in ("hidden", "attention", "value_relation")}
    assert losses == {"hidden": "mse", "attention": "mse", "value_relation": "kl"}
    chosen = ObjectiveSpec()
    assert (chosen.taid_t_start, chosen.taid_t_end, chosen.taid_alpha, chosen.taid_beta) == (0.4, 1.0, 5e-4, 0.99)
    assert not chosen.compares_samples


def test_teachers_without_names_are_numbered() -> None:
    assert parse(teachers=[{"model": "a/a"}, {"model": "b/b", "name": "big"}]).teacher_names == ("teacher-0", "big")


def test_samples_may_be_dealt_out_to_teachers_and_teachers_may_be_weighted() -> None:
    spec = parse(**ROUTED, teachers=[{"model": "a/a"}, {"model": "b/b", "name": "big"}])
    assert spec.data.columns.teacher_key == "who"
    assert spec.data.columns.without_teachers().teacher_key is None
    assert [teacher.weight for teacher in parse(teachers=WEIGHTED).teachers] == [2.0, 1.0]
