"""The shape of the code: short, typed, no broad `except`, and nothing of anybody's machine in the tree."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("cluster", "trainer", "serving")
LONGEST_FUNCTION, P95_FUNCTION, MEDIAN_FUNCTION, LONGEST_MODULE, LONGEST_DOCSTRING = 80, 40, 8, 350, 8
TREE = set("├└│ ")  # first characters of the lines that draw an error tree
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}

# Paths of a machine, and hosts that packages come from: neither belongs into a project that others clone.
FORBIDDEN = re.compile(r"/(?:work|root)/|pypi\.org|pythonhosted\.org")


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the last one, docstring included."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_functions_are_short() -> None:
    lengths = {name: length(node) for name, node in functions()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}
    assert statistics.median(lengths.values()) <= MEDIAN_FUNCTION
    assert statistics.quantiles(lengths.values(), n=20)[-1] <= P95_FUNCTION


def test_modules_are_short_and_say_why_they_exist() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in modules()}
    assert {name: n for name, text in texts.items() if (n := len(text.splitlines())) > LONGEST_MODULE} == {}
    said = {name: ast.get_docstring(ast.parse(text)) for name, text in texts.items() if text.strip()}
    assert [name for name, words in said.items() if not words] == []
    prose = {
        name: [line for line in (words or "").splitlines() if line[:1] not in TREE] for name, words in said.items()
    }
    assert [name for name, lines in prose.items() if len(lines) > LONGEST_DOCSTRING] == []


def test_no_module_has_a_vague_name() -> None:
    assert [str(path) for path in modules() if path.stem in VAGUE] == []


def test_everything_is_typed() -> None:
    def bare(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        given = node.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        return node.returns is None or any(one.annotation is None and one.arg not in {"self", "cls"} for one in named)

    assert [name for name, node in functions() if bare(node)] == []


def test_broad_excepts_raise_again_or_stand_at_a_process_boundary() -> None:
    silent = []
    for path in modules():
        lines = path.read_text("utf-8").splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.ExceptHandler) or not catches_everything(node):
                continue
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if not raises and "process boundary" not in lines[node.lineno - 1]:
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []


def catches_everything(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"}


def test_nothing_of_anybodys_machine_is_in_the_tree(tracked_files: list[Path]) -> None:
    found = []
    for path in tracked_files:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in FORBIDDEN.finditer(text)]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_actor_is_a_decorated_class(package: str) -> None:
    """`ray.remote(Worker)` at the call site: the decorator would pickle the class's body by value."""
    decorated = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and any("ray.remote" in ast.unparse(one) for one in node.decorator_list)
    ]
    assert decorated == []
