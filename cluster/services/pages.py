"""Page sizes and page tokens. A token holds where the page before ended, and is good for the same question only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence

from cluster.errors import InvalidInput, Violation

_DEFAULT_SIZE = 100
_MAX_SIZE = 1000


def page_size(wanted: int) -> int:
    """0 means 100; over 1000 is 1000; InvalidInput below 0."""
    if wanted < 0:
        raise InvalidInput("INVALID_PAGE_SIZE", "page_size is negative", [Violation("page_size", "must be at least 0")])
    return min(wanted or _DEFAULT_SIZE, _MAX_SIZE)


def _question_mark(question: Sequence[object]) -> str:
    return hashlib.sha256(repr(tuple(question)).encode()).hexdigest()[:12]


def make_token(cursor: Sequence[str | int], question: Sequence[object]) -> str:
    """A token for the page behind `cursor`."""
    return base64.urlsafe_b64encode(json.dumps([*cursor, _question_mark(question)]).encode()).decode()


def read_token(token: str, question: Sequence[object], kinds: Sequence[type]) -> list[str | int] | None:
    """The cursor in a token, None for the first page; InvalidInput when it is not one of ours for this question."""
    if not token:
        return None
    try:
        *cursor, mark = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise bad_token() from error
    if (
        mark != _question_mark(question)
        or [type(each) for each in cursor] != list(kinds)
        or not all(map(_fits, cursor))
    ):
        raise bad_token()
    return list(cursor)


def _fits(value: str | int) -> bool:
    """Whether a database takes it."""
    return "\0" not in value if isinstance(value, str) else abs(value) < 2**63


def bad_token() -> InvalidInput:
    """The error for a token that is none of ours."""
    message = "is no token of this list with these filters; begin again without one"
    return InvalidInput("INVALID_PAGE_TOKEN", f"page_token {message}", [Violation("page_token", message)])
