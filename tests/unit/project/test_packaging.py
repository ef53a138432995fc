"""The distribution: its names are its own, its light parts stay light, and what it declares is what it uses."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
HEAVY = {"torch", "ray", "deepspeed", "transformers", "datasets", "matplotlib"}


def test_nobody_else_owns_our_names() -> None:
    owners = packages_distributions()
    ours = {name: set(owners.get(name, [])) for name in ("cluster", "trainer", "serving", "athanor")}
    assert {name: who for name, who in ours.items() if not who <= {PROJECT["name"]}} == {}


@pytest.mark.parametrize("module", ["trainer.spec", "cluster.lifecycle", "cluster.settings"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({sorted(HEAVY)!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_installed_versions_are_the_declared_ones() -> None:
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    assert [str(one) for one in wanted if version(one.name) not in one.specifier] == []


def test_every_dependency_has_its_reason() -> None:
    reasons = (ROOT / "docs/decisions/dependencies.md").read_text("utf-8")
    extras = PROJECT["optional-dependencies"]["dev"]
    names = {Requirement(line).name for line in [*PROJECT["dependencies"], *extras]}
    assert sorted(name for name in names if f"`{name}`" not in reasons) == []


def test_the_reasons_name_nothing_that_is_gone() -> None:
    reasons = (ROOT / "docs/decisions/dependencies.md").read_text("utf-8")
    extras = PROJECT["optional-dependencies"]["dev"]
    names = {Requirement(line).name for line in [*PROJECT["dependencies"], *extras]}
    assert set(re.findall(r"^\| `([^`]+)` \|", reasons, re.MULTILINE)) <= names


def test_the_licence_is_named_in_both_places() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache-2.0" in (ROOT / "README.md").read_text("utf-8")


def test_the_version_is_in_the_changelog() -> None:
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_package_of_the_wheel_says_that_it_is_typed() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = document["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [name for name in packages if not (ROOT / name / "py.typed").is_file()] == []
