"""Every `athanor ...` that a hint, an error or a page tells people to type is one that the command line takes."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster.cli.main import app

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = sorted(path for name in ("cluster", "trainer", "serving") for path in (ROOT / name).rglob("*.py"))
QUOTED = re.compile(r"`athanor ([^`]+)`")
FIRST = r"(?:job|model|serve|project|cluster|token|audit|context|up|down|doctor|queue|quickstart|version|control-plane)"
BARE = re.compile(rf"(?<![`\w/.$-])athanor ({FIRST}(?:[ ][\w@.{{}}<>=-]+)*)")
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*|<[\w-]+>|\[.*")
"""`--num-cpus N` is how people are shown where a number goes."""
USAGE_ERROR = typer.BadParameter.__mro__[1]
SHELL = re.compile(r" (?:>|\||&&|;) .*")
LINE = re.compile(r"^(?:\$ )?athanor (.+?)(?:\s+#.*)?$", re.MULTILINE)


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def refusal(words: list[str], *, is_whole: bool) -> str:
    """Why the parser does not take it; empty where it does. What is left out is no fault."""
    command, path = command_line(), list[str]()
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words[0]]
        path.append(words.pop(0))
    if hasattr(command, "commands") and (not words or PLACEHOLDER.fullmatch(words[0])):
        return ""
    if hasattr(command, "commands") and not words[0].startswith("-"):
        sets_by_default = path[-1:] == ["alias"]
        return "" if sets_by_default else f"there is no command {words[0]!r} behind {path}"
    # Prose may follow, and options of the whole command act when they are read: there only the options are looked at.
    if not is_whole or hasattr(command, "commands"):
        known = {"--help", "-h"} | {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        return next((f"no option {word}" for word in words if word.startswith("--") and word not in known), "")
    try:
        command.make_context(path[-1] if path else "athanor", [word for word in words if word != "..."])
    except USAGE_ERROR as error:
        kind = type(error).__name__
        is_short = kind == "MissingParameter" or "requires an argument" in str(error)
        is_shown = kind != "NoSuchOption" and any(PLACEHOLDER.fullmatch(word) for word in words)
        return "" if is_short or is_shown else str(error)
    return ""


def said_in(source: Path) -> Iterator[str]:
    """Every text of a module, with `x` for what is filled in."""
    tree = ast.parse(source.read_text("utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def wrong_in(text: str) -> Iterator[str]:
    for said in QUOTED.findall(text):
        if why := refusal(shlex.split(said.replace("{", "").replace("}", "")), is_whole=True):
            yield f"athanor {said}: {why}"
    for said in BARE.findall(QUOTED.sub("", text)):
        if why := refusal(said.split(), is_whole=False):
            yield f"athanor {said}: {why}"


def test_the_check_finds_what_is_wrong() -> None:
    assert list(wrong_in("`athanor job lst`"))
    assert list(wrong_in("`athanor job list --nonsense`"))
    assert list(wrong_in("then: athanor job retry {uid} --from-chekpoint"))
    assert list(wrong_in("athanor frobnicate {uid}, or `athanor frobnicate`"))
    assert list(wrong_in("`athanor job retry UID --from-checkpoint` and `athanor up --num-cpus N`")) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_the_code_tells_people_to_type(source: Path) -> None:
    assert [wrong for text in said_in(source) for wrong in wrong_in(text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_tells_people_to_type(page: Path) -> None:
    text = page.read_text("utf-8")
    lines = [line for block in BLOCK.findall(text) for line in LINE.findall(block.replace("\\\n", " "))]
    found = [
        f"athanor {line}: {why}" for line in lines if (why := refusal(shlex.split(SHELL.sub("", line)), is_whole=True))
    ]
    assert [*found, *wrong_in(BLOCK.sub("", text))] == []
