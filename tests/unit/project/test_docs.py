"""The docs: what is generated is fresh, what is named is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`((?:cluster|trainer|serving|protos|tests|k8s|docs|examples|benchmarks|scripts)/[\w./-]*\w\.\w+)`")


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_are_named_exist(page: Path) -> None:
    named = set(FILE.findall(page.read_text("utf-8")))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_reading_list_leaves_no_module_out() -> None:
    listed = set(FILE.findall((ROOT / "README.md").read_text("utf-8")))
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in ("cluster", "trainer", "serving")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and "migrations" not in path.parts
    }
    assert sorted(ours - listed) == []


def test_make_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text("utf-8"))}
    assert named <= targets


def test_reasons_that_operations_explains_are_reasons_of_the_code() -> None:
    """`NON_FINITE_LOSS` and its like; states of the lifecycle stand there without quotes."""
    explained = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", (ROOT / "docs/operations.md").read_text("utf-8")))
    code = "\n".join(path.read_text("utf-8") for name in ("cluster", "trainer") for path in (ROOT / name).rglob("*.py"))
    assert explained
    assert sorted(reason for reason in explained if f'"{reason}"' not in code) == []


def test_commands_in_the_docs_exist() -> None:
    """`athanor job watch <uid>` and its like."""
    import typer

    from cluster.cli.main import app

    top = typer.main.get_command(app)
    said = [words for page in PAGES for words in re.findall(r"\bathanor ((?:[a-z-]+ ?){1,2})", page.read_text("utf-8"))]
    assert said
    for first, *rest in (words.split() for words in said):
        if first in top.commands and rest and hasattr(top.commands[first], "commands"):
            assert rest[0] in top.commands[first].commands, f"athanor {first} {rest[0]}"
    code = [words for page in PAGES for words in re.findall(r"`athanor ([a-z][a-z-]+)", page.read_text("utf-8"))]
    assert set(code) <= top.commands.keys()
