"""Moments and durations that are within what they may be: protobuf itself reads any, and fails where they are used."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from cluster.errors import InvalidInput, Violation, in_words

_SECONDS = {
    "google.protobuf.Timestamp": (-62_135_596_800, 253_402_300_799),  # the years 1 to 9999
    "google.protobuf.Duration": (-315_576_000_000, 315_576_000_000),  # 10 000 years
}
_NANOS = 999_999_999


def check_times(message: Any) -> None:
    """InvalidInput / INVALID_TIME names the fields that hold no time."""
    found = list(_violations(message, "")) if _holds_times(message.DESCRIPTOR) else []
    if found:
        raise InvalidInput("INVALID_TIME", in_words(found), found)


@cache
def _holds_times(descriptor: Any, above: tuple[str, ...] = ()) -> bool:
    """Most messages hold none, and are not walked through. One that holds itself is looked at once."""
    if descriptor.full_name in _SECONDS:
        return True
    inner = [field.message_type for field in descriptor.fields if field.message_type is not None]
    path = (*above, descriptor.full_name)
    return any(_holds_times(each, path) for each in inner if each.full_name not in path)


def _violations(message: Any, path: str) -> Iterator[Violation]:
    bounds = _SECONDS.get(message.DESCRIPTOR.full_name)
    if bounds is not None:
        if not _is_time(message, *bounds):
            yield Violation(path, f"{message.seconds} s and {message.nanos} ns are no time")
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if not _holds_times(field.message_type):
            continue
        name = f"{path}.{field.name}".removeprefix(".")
        for at, one in enumerate(value if field.is_repeated else [value]):
            yield from _violations(one, f"{name}[{at}]" if field.is_repeated else name)


def _is_time(message: Any, least: int, most: int) -> bool:
    fits = least <= message.seconds <= most and abs(message.nanos) <= _NANOS
    is_moment = message.DESCRIPTOR.name == "Timestamp"
    return bool(fits and (message.nanos >= 0 if is_moment else message.seconds * message.nanos >= 0))


def check_text(message: Any) -> None:
    """InvalidInput / INVALID_TEXT names the first field that holds a NUL: no database takes one, and no path."""
    path = _nul(message, "")
    if path:
        violation = Violation(path, "holds the character NUL, which no text has; leave it out")
        raise InvalidInput("INVALID_TEXT", in_words([violation]), [violation])


def _nul(message: Any, path: str) -> str:
    for field, value in message.ListFields():
        name = f"{path}.{field.name}".removeprefix(".")
        for one in _values(field, value):
            if isinstance(one, str) and "\0" in one:
                return name
            if hasattr(one, "ListFields") and (found := _nul(one, name)):
                return found
    return ""


def _values(field: Any, value: Any) -> Iterator[Any]:
    if not field.is_repeated:
        yield value
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        yield from value.keys()
        yield from value.values()
    else:
        yield from value
