"""What a job names and is not there is told with the path of its field, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.preflight import check_inputs
from trainer.spec import SpecError, parse_spec


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text("text,category\nwhere is it,card\n")
    (tmp_path / "empty.csv").write_text("text,category\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text("{'a': 1}\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "latin.jsonl").write_bytes('{"messages": "é"}\n'.encode("latin-1"))
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    (tmp_path / "fake.parquet").write_text("no")
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (directory / name).write_text("{}")
    return directory


def problems(data: dict[str, Any], models: dict[str, str] | None = None, **more: Any) -> dict[str, str]:
    kind = "Distill" if "teachers" in more else "FineTune"
    spec = {"student": {"config": {"model_type": "llama"}}, "training": {"max_steps": 1}, "data": data} | more
    try:
        check_inputs(parse_spec(kind, spec), models or {})
    except SpecError as error:
        return {violation.path: violation.message for violation in error.violations}
    return {}


def labelled(data: Path, **more: Any) -> dict[str, Any]:
    columns = {"prompt": "text", "completion": "category"}
    return {"train": str(data / "train.csv"), "format": "prompt_completion", "columns": columns} | more


def test_a_job_whose_things_are_there_passes(data: Path, model: Path) -> None:
    teachers = [{"model": "bot@champion"}]
    spec = labelled(data, eval=str(data / "train.csv"))
    assert problems(spec, {"bot@champion": str(model)}, teachers=teachers, evaluate={"baseline": True}) == {}
    assert problems({"train": "org/data"}, student={"model": "org/name"}) == {}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("trian.jsonl", "there is no file"),
        ("empty.csv", "holds no rows"),
        ("empty.jsonl", "holds no rows"),
        ("broken.jsonl", "line 1 is not JSON"),
        ("list.jsonl", "line 1 is not a JSON object"),
        ("latin.jsonl", "is not UTF-8 text"),
        ("fake.parquet", "is not a Parquet file"),
        ("notes.txt", "neither a .jsonl, .csv or .parquet file nor a hub id"),
        ("", "is a directory"),
    ],
)
def test_data_that_cannot_be_used_is_named(data: Path, name: str, sentence: str) -> None:
    assert sentence in problems({"train": str(data / name)})["spec.data.train"]
    assert sentence in problems({"train": "org/x", "eval": str(data / name)})["spec.data.eval"]


def test_a_slip_in_a_file_name_is_met_with_the_right_one(data: Path) -> None:
    assert "did you mean 'train.csv'?" in problems(labelled(data, train=str(data / "trian.csv")))["spec.data.train"]


def test_a_missing_column_names_those_that_are_there(data: Path) -> None:
    found = problems(labelled(data, columns={"prompt": "txt"}))
    assert "no column 'txt', only text, category; did you mean 'text'?" in found["spec.data.columns.prompt"]
    assert "data.columns.completion" in found["spec.data.columns.completion"]
    assert "spec.data.columns.messages" in problems({"train": str(data / "train.csv")})
    assert "spec.data.columns.text" in problems({"train": str(data / "chat.jsonl"), "format": "text"})


def test_completions_are_not_needed_where_the_teacher_writes_them(data: Path, model: Path) -> None:
    spec = labelled(data, columns={"prompt": "text", "completion": "answer"})
    teachers = [{"model": str(model)}]
    assert "objective.seq_kd: true" in problems(spec, teachers=teachers)["spec.data.columns.completion"]
    written = {"teachers": teachers, "objective": {"seq_kd": True}}
    assert problems(spec, **written) == {}
    found = problems(spec | {"eval": "org/x"}, **written, evaluate={"baseline": True})
    assert list(found) == ["spec.evaluate.baseline"]
    other = {"baseline": {"train": str(data / "gone.csv")}}
    assert list(problems(spec | {"eval": "org/x"}, **written, evaluate=other)) == ["spec.evaluate.baseline.train"]


def test_a_baseline_needs_something_to_be_compared_on(data: Path) -> None:
    assert list(problems(labelled(data), evaluate={"baseline": True})) == ["spec.data.eval"]


@pytest.mark.parametrize(
    ("removed", "added", "sentence"),
    [
        (["config.json"], [], "has no config.json"),
        (["model.safetensors"], ["pytorch_model.bin"], "as a pickle only"),
        (["model.safetensors"], ["weights.pt"], "as a pickle only"),
        (["model.safetensors"], [], "holds no weights"),
        (["tokenizer.json"], [], "has no tokenizer"),
    ],
)
def test_a_model_directory_is_looked_into(
    data: Path, model: Path, removed: list[str], added: list[str], sentence: str
) -> None:
    for name in removed:
        (model / name).unlink()
    for name in added:
        (model / name).write_bytes(b"")
    teachers = [{"model": "bot@champion"}]
    found = problems(labelled(data), {"bot@champion": str(model)}, teachers=teachers, student={"model": str(model)})
    assert sentence in found["spec.teachers[0].model"]
    assert sentence in found["spec.student.model"]


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("bot@champion", "not in the model registry"),
        ("/nowhere/model", "there is no directory"),
        ("what is this", "is no directory, hub id"),
        ("a/b/c", "is no directory, hub id"),
    ],
)
def test_a_reference_to_nothing_is_named(data: Path, reference: str, sentence: str) -> None:
    assert sentence in problems(labelled(data), student={"model": reference})["spec.student.model"]


def test_a_directory_that_reads_as_a_hub_id_is_asked_about(
    data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    assert "write ./model" in problems(labelled(data), student={"model": "model"})["spec.student.model"]


@pytest.mark.parametrize("config", [{"max_position_embeddings": 63}, {"n_positions": 63}])
def test_samples_longer_than_a_models_positions_are_told(data: Path, model: Path, config: dict[str, int]) -> None:
    (model / "config.json").write_text(json.dumps(config))
    spec = labelled(data, max_length=64)
    fresh = {"config": {"model_type": "llama", **config}}
    words = "63 positions are fewer than data.max_length (64)"
    assert words in problems(spec, student=fresh)["spec.student.config.max_position_embeddings"]
    assert "63 positions of" in problems(spec, student={"model": str(model)})["spec.data.max_length"]
    registered = {"teachers": [{"model": "bot@champion"}]}
    assert "bot@champion" in problems(spec, {"bot@champion": str(model)}, **registered)["spec.data.max_length"]
    assert problems(spec | {"max_length": 63}, student=fresh) == {}


def test_the_column_of_teachers_is_needed_by_the_training_data_alone(data: Path, model: Path) -> None:
    (data / "routed.csv").write_text("text,category,who\nwhere is it,card,bot\n")
    columns = {"prompt": "text", "completion": "category", "teacher_key": "who"}
    plain, routed = str(data / "train.csv"), str(data / "routed.csv")
    more = {"teachers": [{"model": str(model), "name": "bot"}], "evaluate": {"baseline": {"train": plain}}}
    assert problems(labelled(data, train=routed, eval=plain, columns=columns), **more) == {}
    told = problems(labelled(data, eval=plain, columns=columns), **more)
    assert told.keys() == {"spec.data.columns.teacher_key"}
    assert "there is no column 'who', only text, category" in told["spec.data.columns.teacher_key"]


def test_layers_that_are_not_there_are_told_before_anything_runs(data: Path, model: Path) -> None:
    (model / "config.json").write_text('{"text_config": {"num_hidden_layers": 4}}')
    student = {"config": {"model_type": "llama", "num_hidden_layers": 2}}
    matches = [
        {"feature": "hidden", "layer_mapping": "all"},
        {"feature": "rkd_angle"},
        {"feature": "attention", "layers": [[4, 2], [4, 3]]},
        {"feature": "hidden", "layer_mapping": "uniform"},
    ]
    job = {
        "teachers": [{"model": "bot@champion"}],
        "objective": {"intermediate_matches": matches},
        "training": {"max_steps": 1, "batch_tokens": 4096, "micro_batch_tokens": 4096},
    }
    models, path = {"bot@champion": str(model)}, "spec.objective.intermediate_matches"
    has = "the teacher has 4 layers and the student 2"
    assert problems(labelled(data), models, student=student, **job) == {
        f"{path}[0].layer_mapping": f"all needs as many layers on both sides, but {has}; use uniform or last, "
        "or name pairs in layers",
        f"{path}[2].layers": f"there is no pair [4, 3]: {has}; name layers that are there",
    }
    unknown = {"config": {"model_type": "llama"}}
    assert problems(labelled(data), models, student=unknown, **job) == {}


@pytest.mark.parametrize("source", ["train.csv", "./train.csv", "../train.csv", "data/train.jsonl"])
def test_a_relative_path_is_refused_and_nothing_of_the_place_is_told(
    data: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    found = problems({"train": source, "eval": source}, student={"model": "./model"})
    assert sorted(found) == ["spec.data.eval", "spec.data.train", "spec.student.model"]
    assert all("is a relative path, and nobody knows from where" in words for words in found.values())


def test_a_model_that_is_awaited_is_taken_on_trust(data: Path) -> None:
    spec = {
        "teachers": [{"model": "teacher@best"}],
        "student": {"config": {"model_type": "llama"}},
        "training": {"max_steps": 1},
        "data": labelled(data),
    }
    check_inputs(parse_spec("Distill", spec), {}, {"teacher@best"})
    assert (
        "not in the model registry"
        in problems(labelled(data), teachers=[{"model": "teacher@best"}])["spec.teachers[0].model"]
    )
