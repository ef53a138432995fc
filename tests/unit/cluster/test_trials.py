"""A gate that could not judge a model is refused before anything is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import World

from cluster.errors import InvalidInput
from cluster.store.deployment_records import Gate
from cluster.store.model_rows import NewModel
from cluster.trials import begin_trial, task_of

LABELS = {"0": "arrival", "1": "top_up"}


@pytest.fixture
def publish(world: World, tmp_path: Path):
    """A version of this config."""

    def published(name: str, **config: object):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return world.store.create_model(NewModel(name, str(folder), "", 0), "", "")

    return published


def refused(world: World, gate: Gate, model) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        begin_trial(world.store, gate, model)
    assert caught.value.reason == "INVALID_GATE"
    (violation,) = caught.value.violations
    return violation.path, violation.message


def test_models_that_embed_are_judged_by_no_gate(world, publish):
    teacher = publish("teacher", architectures=["BertModel"])
    writer = publish("writer", architectures=["LlamaForCausalLM"])
    field, words = refused(world, Gate(teacher="writer@1"), teacher)
    assert (field, words) == ("gate", "teacher@1 embeds; a gate judges models that write or classify: leave it out")
    assert refused(world, Gate(teacher="teacher@1"), writer)[0] == "gate.teacher"


def test_a_teacher_of_another_kind_or_with_other_labels_is_refused(world, publish):
    classifies = ["BertForSequenceClassification"]
    publish("writer", architectures=["LlamaForCausalLM"])
    model = publish("model", architectures=classifies, id2label=LABELS)
    publish("same", architectures=classifies, id2label=LABELS)
    publish("other", architectures=classifies, id2label=LABELS | {"2": "fees"})
    assert "writer@1 writes, and model@1 classifies" in refused(world, Gate(teacher="writer@1"), model)[1]
    assert "not the same labels (fees)" in refused(world, Gate(teacher="other@1"), model)[1]
    assert begin_trial(world.store, Gate(teacher="same@1"), model).teacher == "same@1"


def test_a_model_without_a_teacher_needs_one_named(world, publish):
    field, words = refused(world, Gate(), publish("model"))
    assert (field, words) == (
        "gate.teacher",
        "the registry knows no teacher of model@1; name the model to compare it with",
    )
    assert refused(world, Gate(teacher="none@1"), publish("second"))[0] == "gate.teacher"


def test_examples_that_can_be_read_are_checked_and_remembered(world, publish, tmp_path):
    model, path = publish("model"), tmp_path / "test.jsonl"
    gate = Gate(teacher="model@1", task_data=str(path))
    assert "there is no file" in refused(world, gate, model)[1]
    path.write_text('{"prompt": "Where is it?"}\n')
    field, words = refused(world, gate, model)
    assert (field, "line 1 has no text in `completion`" in words) == ("gate.task_data", True)
    path.write_text('{"prompt": "Where is it?", "completion": "Here."}\n')
    assert len(begin_trial(world.store, gate, model).task_sha256) == 64
    assert "is no absolute path" in refused(world, Gate(teacher="model@1", task_data="test.jsonl"), model)[1]


def test_examples_on_another_machine_are_its_judges_to_check(world, publish):
    model = publish("model")
    for path in ("/not/of/this/machine/test.csv", f"/{'long' * 100}/test.csv"):
        assert begin_trial(world.store, Gate(teacher="model@1", task_data=path), model).task_sha256 == ""


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "generate"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "classify"),
        ({"architectures": ["RobertaModel"]}, "embed"),
        ({"architectures": ["LlamaForCausalLM"], "modules.json": True}, "embed"),
        ({"architectures": ["FancyForConditionalGeneration"]}, None),
        ({}, None),
        ({"architectures": 5}, None),
        ({"architectures": "LlamaForCausalLM"}, None),
    ],
)
def test_what_a_model_is_for_is_told_by_its_config_or_left_open(config, task):
    assert task_of(config) == task


@pytest.mark.parametrize("labels", [["arrival", "top_up"], "arrival", 5])
def test_labels_that_cannot_be_read_keep_nobody_from_a_trial(world, publish, labels):
    classifies = ["BertForSequenceClassification"]
    publish("teacher", architectures=classifies, id2label=LABELS)
    model = publish("model", architectures=classifies, id2label=labels)
    assert begin_trial(world.store, Gate(teacher="teacher@1"), model).teacher == "teacher@1"


def test_no_model_that_writes_is_taken_for_another():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    assert {task_of({"architectures": [name]}) for name in names} <= {"generate", None}
