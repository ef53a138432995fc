"""Every job file that we hand out is a valid one."""

import runpy
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def methods() -> dict[str, Any]:
    """The comparison of methods, as a module's names."""
    return runpy.run_path(str(ROOT / "examples/banking77/methods.py"))


def test_every_method_of_the_comparison_is_a_valid_job_of_its_own(methods: dict[str, Any], tmp_path: Path) -> None:
    base = yaml.safe_load((ROOT / "examples/banking77/method.yaml").read_text("utf-8"))
    found = set()
    for method in methods["METHODS"]:
        manifest = methods["manifest_of"](base, method, 3, tmp_path / "train.csv", tmp_path / "test.csv")
        spec = parse_manifest(manifest).spec
        assert isinstance(spec, DistillSpec)
        assert spec.training.seed == 3
        found.add(spec.objective.model_dump_json())
    assert len(found) == len(methods["METHODS"])


def test_the_table_of_methods_has_means_and_intervals_over_seeds(methods: dict[str, Any]) -> None:
    result = methods["Result"]
    runs = [result("jsd", seed, value, 0.8, 1.5) for seed, value in enumerate((0.6, 0.7, 0.8))]
    lines = list(methods["table"]([*runs, result("alone", 0, 0.4, 0.8, 2.0)]))
    assert lines[2:] == [
        "| *teacher* | | 80.0% | | | |",
        "| alone | 1 | 40.0% | – | 50.0% | 2.000 |",
        "| jsd | 3 | 70.0% | 45.2% to 94.8% | 87.5% | 1.500 |",
    ]
