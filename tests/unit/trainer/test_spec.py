"""The job file: what is accepted, and that each wrong field is named with its value, its rule and its mend."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import jsonschema
import pytest

from trainer.spec import (
    BaselineSpec,
    DistillSpec,
    FineTuneSpec,
    SpecError,
    Violation,
    job_schema,
    parse_manifest,
    parse_spec,
)

JOB: dict[str, Any] = {
    "apiVersion": "athanor/v1",
    "kind": "Distill",
    "metadata": {"name": "support-bot", "labels": {"team": "care"}},
    "spec": {
        "teachers": [{"model": "support-teacher@champion", "shards": 2, "dtype": "bfloat16"}],
        "student": {"model": "Qwen/Qwen2.5-0.5B"},
        "data": {"train": "data/train.jsonl", "eval": "data/test.jsonl", "packing_strategy": "bfd"},
        "objective": {"temperature": 2.0, "kd_ratio": 0.9},
        "training": {"max_steps": 2000, "learning_rate": 3.0e-4},
        "resources": {"student": {"workers": 2, "gpus_per_worker": 1}},
        "evaluate": {"baseline": True},
        "publish": {"model": "support-bot", "alias": "candidate"},
        "schedule": {"max_run_duration": "10h", "retries": {"infrastructure": 5}},
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    """The job with one value set; `a.b[0].c` walks lists too."""
    document = copy.deepcopy(JOB)
    *way, last = path.replace("[", ".").replace("]", "").split(".")
    place: Any = document
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[last] = value
    return document


def refused(document: object) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_manifest(document)  # type: ignore[arg-type]
    return {violation.path: violation.message for violation in caught.value.violations}


def test_a_whole_job_is_read() -> None:
    manifest = parse_manifest(JOB)
    assert isinstance(manifest.spec, DistillSpec)
    assert manifest.spec.teachers[0].shards == 2
    assert manifest.spec.schedule.max_run_duration == timedelta(hours=10)
    assert manifest.spec.evaluate.baseline_settings == BaselineSpec()


def test_the_kind_chooses_the_model_of_the_spec() -> None:
    document = changed("kind", "FineTune")
    del document["spec"]["teachers"], document["spec"]["objective"]
    assert type(parse_manifest(document).spec) is FineTuneSpec


def test_the_resolved_spec_is_read_back_equal() -> None:
    spec = parse_manifest(JOB).spec
    assert parse_spec("Distill", spec.model_dump(mode="json")) == spec


def test_numbers_that_came_through_a_struct_are_whole_again() -> None:
    assert parse_manifest(changed("spec.training.max_steps", 2000.0)).spec.training.max_steps == 2000


WRONG = [
    ("spec.training.learning_rat", 1, "spec.training.learning_rat", "unknown key; did you mean 'learning_rate'?"),
    ("spec.learning_rate", 1, "spec.learning_rate", "it belongs to training: training.learning_rate"),
    ("spec.student.zzz", 1, "spec.student.zzz", "unknown key; known here: model, config, tokenizer"),
    ("api_version", "x", "api_version", "did you mean 'apiVersion'?"),
    (
        "spec.training.learning_rate",
        "fast",
        "spec.training.learning_rate",
        "'fast' is not a number; write for example 3.0e-4",
    ),
    ("spec.training.max_steps", True, "spec.training.max_steps", "true is not a number"),
    ("spec.evaluate.max_samples", False, "spec.evaluate.max_samples", "false is not a number"),
    ("spec.training.learning_rate", 0, "spec.training.learning_rate", "0 is too small; it must be more than 0"),
    ("spec.training.learning_rate", float("nan"), "spec.training.learning_rate", "nan is not a finite number"),
    ("spec.training.zero_stage", 7, "spec.training.zero_stage", "7 is too large; it must be at most 3"),
    ("spec.training.seed", True, "spec.training.seed", "true is not a number"),
    ("spec.training.logging_steps", 1.5, "spec.training.logging_steps", "1.5 is not a whole number"),
    ("spec.training.precision", "fp16", "spec.training.precision", "did you mean 'bf16'?"),
    ("spec.training.num_epochs", 2, "spec.training", "exactly one of max_steps and num_epochs"),
    (
        "spec.training",
        {"max_steps": 9, "lr_scheduler_type": "warmup_stable_decay", "warmup_ratio": 0.3, "decay_ratio": 0.8},
        "spec.training.decay_ratio",
        "0.8 is too large beside warmup_ratio 0.3; with warmup_stable_decay the two are at most 1 together",
    ),
    (
        "spec.training",
        {"max_steps": 9, "lr_scheduler_type": "warmup_stable_decay", "warmup_ratio": 0.95},
        "spec.training.decay_ratio",
        "0.1 is too large beside warmup_ratio 0.95",
    ),
    (
        "spec.training",
        {"max_steps": 9, "zero_stage": 0, "offload_optimizer": "cpu"},
        "spec.training.offload_optimizer",
        "cpu needs zero_stage 1, 2 or 3 and it is 0",
    ),
    ("spec.training.offload_optimizer", "nvme", "spec.training.offload_optimizer", "is not one of none, cpu"),
    ("spec.training.gradient_checkpointing", "often", "spec.training.gradient_checkpointing", "neither true nor false"),
    ("spec.teachers", {"model": "x"}, "spec.teachers", "is not a list"),
    ("spec.teachers", [], "spec.teachers", "has 0 entries; at least 1 needed"),
    ("spec.teachers[0].shards", 0, "spec.teachers[0].shards", "0 is too small; it must be at least 1"),
    ("spec.teachers[0].model", " ", "spec.teachers[0].model", "name a model"),
    ("spec.student", "gpt2", "spec.student", "'gpt2' is not a block of keys; known keys: model, config, tokenizer"),
    ("spec.student", {}, "spec.student", "give either model"),
    ("spec.student", {"config": {"hidden_size": 8}}, "spec.student", "config.model_type is missing"),
    (
        "spec.student",
        {"config": {"model_type": "llama"}, "tokenizer": {}},
        "spec.student.tokenizer",
        "takes its teacher's",
    ),
    ("spec.data.train", 7, "spec.data.train", "7 is not text"),
    ("spec.data", {"format": "chat"}, "spec.data.train", "is missing"),
    ("spec.data", {"train": "x", "format": "chats"}, "spec.data.format", "did you mean 'chat'?"),
    ("spec.evaluate.baseline", {"tran": "x"}, "spec.evaluate.baseline.tran", "did you mean 'train'?"),
    ("spec.evaluate.metrics", ["bleu"], "spec.evaluate.metrics[0]", "'bleu' is not one of perplexity, exact_match"),
    ("spec.schedule.max_run_duration", "10 moons", "spec.schedule.max_run_duration", "s, m, h or d, for example 10h"),
    ("metadata.name", "Support Bot", "metadata.name", "begin with a letter"),
    ("kind", "Destill", "kind", "'Destill' is not one of FineTune, Distill; did you mean 'Distill'?"),
    ("kind", ["Distill"], "kind", "is not one of FineTune, Distill"),
    ("kind", "FineTune", "spec.teachers", "unknown key"),
    ("spec", None, "spec", "None is not a block of keys"),
]


@pytest.mark.parametrize(("path", "value", "where", "sentence"), WRONG)
def test_a_wrong_field_is_named_with_its_mend(path: str, value: object, where: str, sentence: str) -> None:
    assert sentence in refused(changed(path, value))[where]


@pytest.mark.parametrize(
    "training",
    [
        {"lr_scheduler_type": "warmup_stable_decay", "warmup_ratio": 0.7, "decay_ratio": 0.3},
        {"lr_scheduler_type": "cosine", "warmup_ratio": 1.0},
        {"zero_stage": 0, "offload_optimizer": "none"},
        *({"zero_stage": stage, "offload_optimizer": "cpu"} for stage in (1, 2, 3)),
    ],
)
def test_settings_of_training_that_go_together_are_taken(training: dict[str, Any]) -> None:
    found = parse_manifest(changed("spec.training", {"max_steps": 9, **training})).spec.training
    assert {name: getattr(found, name) for name in training} == training


def test_text_has_no_prompts_for_a_teacher_to_complete() -> None:
    document = changed("spec.objective.seq_kd", True)
    document["spec"]["data"] = {"train": "x.jsonl", "format": "text"}
    assert "no prompts" in refused(document)["spec.objective.seq_kd"]


def test_every_wrong_field_is_told_in_one_go_and_none_twice() -> None:
    document = changed("spec.training.learning_rate", "fast")
    document["metadata"]["name"] = "A b"
    document["spec"]["teachers"][0]["shards"] = 0
    assert set(refused(document)) == {"spec.training.learning_rate", "metadata.name", "spec.teachers[0].shards"}


@pytest.mark.parametrize("document", [None, [], "kind: Distill"])
def test_a_document_that_is_no_mapping_is_refused(document: object) -> None:
    assert "a job file is a block of keys" in refused(document)[""]


@pytest.mark.parametrize("value", ["fast", None, [], {}, True, -1, 1e9, "3", float("inf")])
@pytest.mark.parametrize(
    "path", ["spec.training", "spec.training.max_grad_norm", "spec.data", "spec.evaluate.baseline"]
)
def test_whatever_is_written_the_answer_is_a_job_or_a_spec_error(path: str, value: object) -> None:
    caught: list[SpecError] = []
    try:
        parse_manifest(changed(path, value))
    except SpecError as error:
        caught.append(error)
    assert all(violation.path and violation.message for error in caught for violation in error.violations)


def test_parse_spec_names_paths_as_in_the_job_file() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("FineTune", {"student": {"model": "x"}, "data": {"train": "x"}, "training": {"max_steps": 0}})
    assert [violation.path for violation in caught.value.violations] == ["spec.training.max_steps"]
    with pytest.raises(SpecError, match="did you mean 'FineTune'"):
        parse_spec("Finetune", {})


def test_a_spec_error_crosses_process_borders() -> None:
    error = SpecError([Violation("spec.data", "is missing")])
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.violations, copied.reason, str(copied)) == (
        error.violations,
        "INVALID_SPEC",
        "spec.data: is missing",
    )


def test_the_schema_accepts_what_the_parser_accepts() -> None:
    jsonschema.validate(JOB, job_schema())
    for path, value in (("kind", "Destill"), ("spec.training.zero_stage", 7), ("spec.trainin", {})):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed(path, value), job_schema())


@pytest.mark.parametrize("module", ["trainer.spec", "trainer.preflight", "trainer.job"])
def test_submitting_loads_neither_torch_nor_transformers(
    module: str, isolated: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'ray'}"
    done = isolated(f"import sys, {module}; print(*{heavy} & set(sys.modules))")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.fixture
def isolated() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs one line of Python in a process of its own."""
    return lambda code: subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
