"""Strategies for any message of the contract, built from its descriptor: right values, edges, and nonsense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_DEPTH = 4
_EDGES = (0, 1, -1, 7, 2**31 - 1, -(2**31), 2**53)
_EDGES_64 = (2**63 - 1, -(2**63), 253402300800, -62135596801)
# Words that mean something somewhere, so that more is reached than the first check of each handler.
WORDS = (
    *("bot", "default", "bot@1", "bot@champion", "FineTune", "Distill", "labels", "priority", "max_run_duration"),
    *("job.labels", "*", "state=RUNNING", "create_time desc", "driver", "student", "athanor.json", "${secret:X}"),
    *("../../etc/passwd", "/etc/passwd", "a" * 300, "\0", "", "Ω", "{}", "%s", "'; DROP TABLE jobs; --"),
)


def anything(descriptor: Descriptor, words: tuple[str, ...] = WORDS) -> st.SearchStrategy[Message]:
    """Messages of this type, with any of their fields."""
    texts = st.one_of(st.sampled_from(words), st.text(st.characters(codec="utf-8"), max_size=20))
    return _message(descriptor, texts, _DEPTH)


def _message(descriptor: Descriptor, texts: st.SearchStrategy[str], depth: int) -> st.SearchStrategy[Message]:
    fields = [field for field in descriptor.fields if depth > 0 or field.message_type is None]
    if not fields:
        return st.builds(message_factory.GetMessageClass(descriptor))
    values = {field.name: _field(field, texts, depth) for field in fields}
    return st.fixed_dictionaries({}, optional=values).map(lambda found: _filled(descriptor, found))


def _filled(descriptor: Descriptor, values: dict[str, Any]) -> Message:
    message = message_factory.GetMessageClass(descriptor)()
    for name, value in values.items():
        field = descriptor.fields_by_name[name]
        if _is_map(field):
            _fill_map(getattr(message, name), field, value)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        elif field.message_type is not None:
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def _fill_map(target: Any, field: FieldDescriptor, entries: list[Message]) -> None:
    holds_messages = field.message_type.fields_by_name["value"].message_type is not None
    for entry in entries:
        if holds_messages:
            target[entry.key].CopyFrom(entry.value)
        else:
            target[entry.key] = entry.value


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _field(field: FieldDescriptor, texts: st.SearchStrategy[str], depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = st.deferred(lambda: _message(field.message_type, texts, depth - 1))
    elif field.type == FieldDescriptor.TYPE_BYTES:
        one = st.binary(max_size=20)
    elif field.enum_type is not None:
        one = st.one_of(st.sampled_from([value.number for value in field.enum_type.values]), st.just(977))
    else:
        one = _SCALARS[field.cpp_type](texts)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _integers(bits: int, edges: tuple[int, ...]) -> Callable[[Any], st.SearchStrategy[int]]:
    whole = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return lambda texts: st.one_of(st.sampled_from(edges), whole)


_SCALARS: dict[int, Callable[[Any], st.SearchStrategy[Any]]] = {
    FieldDescriptor.CPPTYPE_INT32: _integers(32, tuple(edge for edge in _EDGES if abs(edge) < 2**31)),
    FieldDescriptor.CPPTYPE_INT64: _integers(64, (*_EDGES, *_EDGES_64)),
    FieldDescriptor.CPPTYPE_DOUBLE: lambda texts: st.floats(),
    FieldDescriptor.CPPTYPE_BOOL: lambda texts: st.booleans(),
    FieldDescriptor.CPPTYPE_STRING: lambda texts: texts,
}
