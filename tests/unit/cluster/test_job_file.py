"""Reading a job file: where relative paths point, what --set does, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import InvalidInput
from cluster.job_file import absolute, assign, manifest_of, read_job_file
from trainer.errors import SpecError
from trainer.spec import parse_spec

JOB = """
apiVersion: athanor/v1
kind: Distill
metadata: {name: bot}
spec:
  teachers: [{model: support-teacher@champion}]
  student: {model: students/small}
  data: {train: train.jsonl, eval: PolyAI/banking77}
  training: {max_steps: 3}
  evaluate: {baseline: {train: few.csv}}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "jobs" / "students" / "small").mkdir(parents=True)
    path = tmp_path / "jobs" / "job.yaml"
    path.write_text(JOB)
    return path


def test_paths_of_the_file_begin_beside_it(job_file: Path) -> None:
    spec = read_job_file(str(job_file))["spec"]
    assert spec["data"]["train"] == str(job_file.parent / "train.jsonl")
    assert spec["evaluate"]["baseline"]["train"] == str(job_file.parent / "few.csv")
    assert spec["student"]["model"] == str(job_file.parent / "students" / "small")


def test_hub_ids_and_registry_references_stay(job_file: Path) -> None:
    spec = read_job_file(str(job_file))["spec"]
    assert spec["data"]["eval"] == "PolyAI/banking77"
    assert spec["teachers"][0]["model"] == "support-teacher@champion"


def test_paths_of_set_begin_where_the_user_stands(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = read_job_file(str(job_file), ["spec.data.train=other.jsonl", "spec.teachers.0.model=./teacher"])["spec"]
    assert spec["data"]["train"] == str(tmp_path / "other.jsonl")
    assert spec["teachers"][0]["model"] == str(tmp_path / "teacher")
    assert spec["evaluate"]["baseline"]["train"] == str(job_file.parent / "few.csv")


def test_set_reads_its_value_as_yaml_and_makes_what_is_not_there(job_file: Path) -> None:
    spec = read_job_file(
        str(job_file), ["spec.training.max_steps=10", "spec.publish={model: bot}", "spec.resources.student.workers=2"]
    )["spec"]
    assert spec["training"]["max_steps"] == 10
    assert spec["publish"] == {"model": "bot"}
    assert spec["resources"]["student"]["workers"] == 2


def test_set_leaves_the_document_it_was_given_alone() -> None:
    document = {"spec": {"training": {"max_steps": 3}}}
    assert assign(document, "spec.training.max_steps=4") == {"spec": {"training": {"max_steps": 4}}}
    assert document == {"spec": {"training": {"max_steps": 3}}}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("spec.training.max_steps", "write key=value"),
        ("=3", "write key=value"),
        ("spec.data.train.x=3", "holds a value, not a block"),
        ("spec.teachers.1.model=a", "1 is none of the entries 0 to 0"),
        ("spec.training={", "no valid YAML"),
    ],
)
def test_a_wrong_set_is_explained(job_file: Path, assignment: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_job_file(str(job_file), [assignment])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "no valid YAML"),
        ("- a", "holds no job"),
        ("", "holds no job"),
        (JOB + "created: !!set {a}\n", "put it in quotes"),
    ],
)
def test_what_is_no_job_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=words):
        read_job_file(str(path))


def test_moments_need_no_quotes(job_file: Path) -> None:
    document = read_job_file(str(job_file), ["spec.schedule.hold_until=2026-11-01T08:00:00Z"])
    assert document["spec"]["schedule"]["hold_until"] == "2026-11-01T08:00:00Z"
    job_file.write_text(JOB + "  schedule: {hold_until: 2026-11-01T08:00:00Z}\n")
    assert read_job_file(str(job_file))["spec"]["schedule"]["hold_until"] == "2026-11-01T08:00:00Z"


def test_a_job_that_depends_on_a_name_is_told_to_write_a_uid(job_file: Path) -> None:
    with pytest.raises(SpecError, match=r"'teacher' is a name, .* write the uid of one: athanor job list"):
        read_job_file(str(job_file), ["spec.schedule.depends_on=[teacher]"])


def test_a_job_becomes_the_file_that_makes_it_again(job_file: Path) -> None:
    document = read_job_file(str(job_file), ["spec.schedule={max_run_duration: 90m, hold_until: 2026-11-01T08:00:00Z}"])
    stored = parse_spec("Distill", document["spec"]).model_dump(mode="json")
    made = manifest_of("Distill", {"name": "bot", "labels": {}, "project": "care"}, stored)
    assert parse_spec("Distill", made["spec"]) == parse_spec("Distill", stored)
    assert made["metadata"] == {"name": "bot", "project": "care"}
    assert list(made["spec"])[:2] == ["student", "data"]
    assert made["spec"]["training"] == {"max_steps": 3}, "what is as it is by default is left out"
    assert manifest_of("Distill", {}, {"of": "tomorrow"})["spec"] == {"of": "tomorrow"}


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"cannot read the job file none.yaml: No such file"):
        read_job_file("none.yaml")


def test_a_wrong_key_is_found_before_anything_is_sent(job_file: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'max_steps'"):
        read_job_file(str(job_file), ["spec.training.max_step=3"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("support-bot@candidate", "support-bot@candidate"),
        ("data.csv", "/base/data.csv"),
        ("../up/data.parquet", "/up/data.parquet"),
        ("./model", "/base/model"),
        ("/abs/model", "/abs/model"),
    ],
)
def test_what_looks_like_a_path_is_one(value: str, expected: str) -> None:
    assert absolute(value, Path("/base")) == expected
