"""Every job file that we hand out is a valid one."""

from pathlib import Path

import pytest
import yaml

from trainer.spec import DistillSpec, JobManifest, parse_manifest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


def load(path: Path) -> JobManifest:
    return parse_manifest(yaml.safe_load(path.read_text("utf-8")))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_it_parses_and_names_its_kind_rightly(path: Path) -> None:
    manifest = load(path)
    assert isinstance(manifest.spec, DistillSpec) == (manifest.kind == "Distill")
    assert manifest.spec.publish is not None


def test_the_banking_student_learns_from_the_banking_teacher() -> None:
    folder = ROOT / "examples/banking77"
    teacher, student = load(folder / "teacher.yaml").spec, load(folder / "student.yaml").spec
    assert isinstance(student, DistillSpec)
    assert teacher.publish is not None
    assert student.teachers[0].model == f"{teacher.publish.model}@{teacher.publish.alias}"
    assert student.data.eval == teacher.data.eval
    assert student.data.columns == teacher.data.columns
