"""docs/errors.md has a row for every reason that the code can give, with the status that the code gives it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cluster.errors
from cluster.errors import STATUS_OF, ClusterError, status_of
from cluster.lifecycle import State
from cluster.standings import WORDS

ROOT = Path(__file__).resolve().parents[3]
REASON = re.compile(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)*")
ROW = re.compile(r"^\| `([A-Z_0-9]+)` \| ([A-Z_]+|–) \| (.+) \| (.+) \|$", re.MULTILINE)
ERRORS = {name: kind for name, kind in vars(cluster.errors).items() if isinstance(kind, type)}
SAID_BY = {
    *("TrainerError", "UserError", "CheckpointError", "StorageError", "Stopped", "TeacherLost", "ShardLost"),
    *("Decision", "RequestFailed", "NotFinished", "QuickstartFailed", "unreadable"),
    *("Change", "Terminal", "ended", "event", "write_event", "_closing", "_block", "_log"),
}
CONSTANTS = {"DRIVER_TERMINATED", "PREEMPTED"}
"""Of cluster/lifecycle.py."""


def name_of(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def words_in(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and REASON.fullmatch(each.value):
            yield each.value


def said_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(reason, who says it): calls that take a reason, `reason = ...`, and `return reason, words`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name_of(node.func) in SAID_BY or name_of(node.func) in ERRORS):
            reasons = [*node.args[:3], *(key.value for key in node.keywords if key.arg == "reason")]
            literal = [part for part in reasons if isinstance(part, ast.Constant | ast.BoolOp | ast.IfExp)]
            yield from ((word, name_of(node.func)) for part in literal for word in words_in(part))
        elif isinstance(node, ast.Assign) and any(name_of(target) == "reason" for target in node.targets):
            literal = [node.value] if isinstance(node.value, ast.Constant | ast.IfExp) else []
            yield from ((word, "") for part in literal for word in words_in(part))
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and node.value.elts:
            first = node.value.elts[0]
            yield from ((word, "") for word in words_in(first) if isinstance(first, ast.Constant) and "_" in word)


@cache
def said() -> dict[str, set[str]]:
    """Every reason of the code, and who gives it."""
    found: dict[str, set[str]] = {reason: set() for reason in CONSTANTS}
    for package in ("cluster", "trainer", "serving"):
        for path in (ROOT / package).rglob("*.py"):
            for reason, who in said_in(ast.parse(path.read_text("utf-8"))):
                if who or reason not in State.__members__:
                    found.setdefault(reason, set()).add(who)
    return found


def rows() -> dict[str, str]:
    return {match[1]: match[2] for match in ROW.finditer((ROOT / "docs/errors.md").read_text("utf-8"))}


def test_the_scan_finds_reasons_of_every_kind() -> None:
    known = {"JOB_NOT_FOUND", "NON_FINITE_LOSS", "OUT_OF_MEMORY", "CHECKPOINT_SAVED", "DRIVER_SILENT", "SUCCEEDED"}
    assert known <= said().keys()
    assert len(said()) > 100


def test_every_reason_has_a_row() -> None:
    assert sorted(said().keys() - rows().keys()) == []
    assert sorted(WORDS.keys() - rows().keys()) == []


def test_every_row_is_about_a_reason_that_there_is() -> None:
    code = "\n".join(
        path.read_text("utf-8") for name in ("cluster", "trainer", "serving") for path in (ROOT / name).rglob("*.py")
    )
    assert sorted(reason for reason in rows() if f'"{reason}"' not in code) == []


def test_no_reason_has_two_rows() -> None:
    found = [match[1] for match in ROW.finditer((ROOT / "docs/errors.md").read_text("utf-8"))]
    assert sorted(reason for reason in set(found) if found.count(reason) > 1) == []


def test_rows_of_calls_have_the_status_that_the_code_gives() -> None:
    on_the_wire = {name for name, kind in ERRORS.items() if kind in STATUS_OF} - {"StartUpError"}
    page = rows()
    for reason, who in said().items():
        statuses = {status_of(ERRORS[name]("X", "")).name for name in who & on_the_wire}
        if statuses and page[reason] != "–":
            assert statuses == {page[reason]}, reason
    assert issubclass(ERRORS["InvalidInput"], ClusterError)
