"""The language in which lists are narrowed down and ordered: a subset of AIP-160, from text to values.

    filter     = term { AND term } | term { OR term }     (AND and OR side by side need parentheses)
    term       = [ NOT ] ( "(" filter ")" | comparison )
    comparison = field ( = | != | < | <= | > | >= | : ) value

Pure; what a filter means in SQL is store/job_lists.py's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from cluster.errors import InvalidInput, Violation
from cluster.lifecycle import State

TEXT, STATE, NUMBER, TIME, LABEL = "text", "state", "number", "time", "label"
FIELDS = {
    **dict.fromkeys(("project", "name", "uid", "kind", "creator", "reason"), TEXT),
    "state": STATE,
    "priority": NUMBER,
    "create_time": TIME,
    "end_time": TIME,
}
_KNOWN = f"{', '.join(FIELDS)} and labels.<key>"
_EQUAL, _ORDERED = ("=", "!="), ("=", "!=", "<", "<=", ">", ">=")
_SIGNS = {TEXT: _EQUAL, STATE: _EQUAL, NUMBER: _ORDERED, TIME: _ORDERED, LABEL: (*_EQUAL, ":")}
_LABELS = "labels."
_LONGEST, _MOST_TERMS, _DEEPEST = 4096, 64, 16
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<sign><=|>=|!=|[=<>:()])|(?P<word>[^\s"'<>=!:()]+))"""
)


@dataclass(frozen=True)
class Comparison:
    """`field sign value`. A state is its name, a time is microseconds; of a label `field` is the key."""

    kind: str
    field: str
    sign: str
    value: str | int


@dataclass(frozen=True)
class Not:
    part: Filter


@dataclass(frozen=True)
class All:
    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Any:
    parts: tuple[Filter, ...]


Filter = Comparison | Not | All | Any


@dataclass(frozen=True)
class Order:
    """By what a list is ordered."""

    field: str = "create_time"
    descending: bool = True


NEWEST_FIRST = Order()
ORDERS = ("create_time", "end_time", "priority", "name")


def parse_order(text: str) -> Order:
    """`field` or `field desc`; empty is the newest first. InvalidInput / INVALID_ORDER."""
    if not text.strip():
        return NEWEST_FIRST
    field, *way = text.split()
    if field in ORDERS and way in ([], ["asc"], ["desc"]):
        return Order(field, way == ["desc"])
    message = f"{text[:80]!r} is no order; it is one of {', '.join(ORDERS)}, with ' desc' for the other way"
    raise InvalidInput("INVALID_ORDER", f"order_by: {message}", [Violation("order_by", message)])


def parse_filter(text: str) -> Filter | None:
    """None for a filter that says nothing; InvalidInput / INVALID_FILTER names the place and what is known there."""
    if len(text) > _LONGEST:
        _refuse(_LONGEST + 1, f"it is longer than {_LONGEST} characters")
    reader = _Reader(_tokens(text))
    if reader.kind == "end":
        return None
    found = _filter(reader, 0)
    if reader.kind != "end":
        _refuse(reader.position, f"expected AND, OR or the end, found {reader.text!r}; quote values with signs in them")
    return found


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int
    """From 1."""


def _tokens(text: str) -> list[_Token]:
    found, at = list[_Token](), 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            _refuse(at + 1, f"cannot read {text[at : at + 20]!r}; is a quote left open?")
        kind = match.lastgroup or ""
        found.append(_Token(kind, match[kind], match.start(kind) + 1))
        at = match.end()
    return [*found, _Token("end", "the end", len(text) + 1)]


class _Reader:
    """Where the parser is."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self.num_terms = 0

    @property
    def kind(self) -> str:
        return self._tokens[self._at].kind

    @property
    def text(self) -> str:
        return self._tokens[self._at].text

    @property
    def position(self) -> int:
        return self._tokens[self._at].position

    def is_word(self, word: str) -> bool:
        return self.kind == "word" and self.text == word

    def next(self) -> _Token:
        token = self._tokens[self._at]
        self._at += 1
        return token


def _filter(reader: _Reader, depth: int) -> Filter:
    first = _term(reader, depth)
    for word, joined in (("AND", All), ("OR", Any)):
        if not reader.is_word(word):
            continue
        parts = [first]
        while reader.is_word(word):
            reader.next()
            parts.append(_term(reader, depth))
        if reader.is_word("AND") or reader.is_word("OR"):
            _refuse(reader.position, "AND and OR side by side need parentheses")
        return joined(tuple(parts))
    return first


def _term(reader: _Reader, depth: int) -> Filter:
    reader.num_terms += 1
    if depth > _DEEPEST or reader.num_terms > _MOST_TERMS:
        _refuse(reader.position, f"at most {_MOST_TERMS} terms, and {_DEEPEST} in one another")
    if reader.is_word("NOT"):
        reader.next()
        return Not(_term(reader, depth + 1))
    if reader.kind == "sign" and reader.text == "(":
        reader.next()
        inner = _filter(reader, depth + 1)
        if reader.text != ")" or reader.kind != "sign":
            _refuse(reader.position, f"expected ')', found {reader.text!r}")
        reader.next()
        return inner
    return _comparison(reader)


def _comparison(reader: _Reader) -> Comparison:
    kind, field = _field(reader)
    sign = reader.next()
    if sign.kind != "sign" or sign.text not in _SIGNS[kind]:
        _refuse(sign.position, f"expected one of {' '.join(_SIGNS[kind])}, found {sign.text!r}")
    value = reader.next()
    if value.kind not in ("quoted", "word"):
        _refuse(value.position, f"expected a value, found {value.text!r}")
    if sign.text == ":" and value.text != "*":
        _refuse(value.position, "':' asks whether a label is there: labels.<key>:*")
    text = re.sub(r"\\(.)", r"\1", value.text[1:-1], flags=re.DOTALL) if value.kind == "quoted" else value.text
    if "\0" in text:
        _refuse(value.position, "a value holds no NUL")
    return Comparison(kind, field, sign.text, _VALUES[kind](text, value.position))


def _field(reader: _Reader) -> tuple[str, str]:
    token = reader.next()
    if token.kind == "word" and token.text in FIELDS:
        return FIELDS[token.text], token.text
    key = token.text.removeprefix(_LABELS)
    if token.kind == "word" and key and key != token.text:
        return LABEL, key
    raise _refused(token.position, f"{token.text[:80]!r} is no field; known are {_KNOWN}")


def _text(text: str, position: int) -> str:
    if "*" in text:
        _refuse(position, "there are no wildcards; '=' compares whole values")
    return text


def _state(text: str, position: int) -> str:
    name = text.removeprefix("JOB_STATE_")
    if name not in State.__members__:
        _refuse(position, f"{text[:80]!r} is no state; states are {', '.join(State)}")
    return name


def _number(text: str, position: int) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        _refuse(position, f"{text[:80]!r} is no whole number")
    return int(text)


def _time(text: str, position: int) -> int:
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return int(time.timestamp() * 1e6)
    except (ValueError, OverflowError):
        pass
    raise _refused(position, f'{text[:80]!r} is no time with a time zone, e.g. "2026-11-01T00:00:00Z"')


_VALUES: dict[str, Callable[[str, int], str | int]] = {
    TEXT: _text,
    STATE: _state,
    NUMBER: _number,
    TIME: _time,
    LABEL: lambda text, _position: text,
}


def _refuse(position: int, message: str) -> NoReturn:
    raise _refused(position, message)


def _refused(position: int, message: str) -> InvalidInput:
    words = f"at position {position}: {message}"
    return InvalidInput("INVALID_FILTER", f"filter, {words}", [Violation("filter", words)])
