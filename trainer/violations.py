"""Turns what pydantic found wrong into sentences for people: field, value, rule, and how to mend it.

It knows pydantic's error types and the models' fields, and nothing of any particular field.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainer.errors import Violation

_WORDS = {
    "missing": "is missing",
    "float_parsing": "{value} is not a number; write for example 3.0e-4",
    "float_type": "{value} is not a number; write for example 3.0e-4",
    "finite_number": "{value} is not a finite number",
    "int_parsing": "{value} is not a whole number; write for example 200",
    "int_type": "{value} is not a whole number; write for example 200",
    "int_from_float": "{value} is not a whole number; write for example 200",
    "bool_parsing": "{value} is neither true nor false",
    "bool_type": "{value} is neither true nor false",
    "string_type": "{value} is not text; if it is meant as text, put it in quotes",
    "greater_than": "{value} is too small; it must be more than {gt:g}",
    "greater_than_equal": "{value} is too small; it must be at least {ge:g}",
    "less_than": "{value} is too large; it must be less than {lt:g}",
    "less_than_equal": "{value} is too large; it must be at most {le:g}",
    "string_pattern_mismatch": "{value} does not match {pattern}; begin with a letter, then a-z, 0-9 and '-'",
    "tuple_type": "{value} is not a list; write [a, b], or one line for each entry with '- ' before it",
    "dict_type": "{value} is not a block of keys",
    "too_short": "has {actual_length} entries; at least {min_length} needed",
    "too_long": "has {actual_length} entries; at most {max_length} allowed",
}
_NAMED_FIELD = re.compile(r"^([a-z_]+(?:\.[a-z_]+|\[\d+\])*): (.*)$", re.DOTALL)


def violations(error: ValidationError, model: type[BaseModel], *, prefix: str = "") -> list[Violation]:
    """One violation for each wrong field of a document that was read as `model`."""
    found: dict[str, Violation] = {}
    for detail in error.errors(include_url=False):
        violation = _violation(detail, model, prefix)
        found.setdefault(violation.path, violation)
    return [one for one in found.values() if not _holds_another(one.path, found)]


def _holds_another(path: str, paths: Iterable[str]) -> bool:
    """A block is called wrong along with what is wrong in it; only the inner sentence helps."""
    return any(other.startswith((f"{path}.", f"{path}[")) for other in paths)


def _violation(detail: ErrorDetails, model: type[BaseModel], prefix: str) -> Violation:
    names = [name for name in detail["loc"] if not _is_union_member(name)]
    message = _sentence(detail, _model_at(model, names[:-1]), model)
    if detail["type"] == "value_error" and (match := _NAMED_FIELD.match(message)):
        named, at = _names(match[1]), _model_at(model, names)
        if at is not None and named[0] in field_names(at):
            names, message = [*names, *named], match[2]
    return Violation(_path(prefix, names), message)


def _names(path: str) -> list[int | str]:
    return [int(name) if name.isdigit() else name for name in re.findall(r"[a-z_]+|\d+", path)]


def _path(prefix: str, names: list[int | str]) -> str:
    path = prefix
    for name in names:
        path += f"[{name}]" if isinstance(name, int) else f".{name}" if path else name
    return path


def _is_union_member(name: int | str) -> bool:
    """Pydantic puts the tried member of a union into the location: `evaluate.baseline.BaselineSpec.train`."""
    return isinstance(name, str) and (name == "bool" or name[:1].isupper() or "[" in name)


def _sentence(detail: ErrorDetails, model: type[BaseModel] | None, root: type[BaseModel]) -> str:
    kind, value = detail["type"], _shown(detail["input"])
    if kind == "extra_forbidden":
        return _unknown_key(str(detail["loc"][-1]), model, root)
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "literal_error":
        return _not_one_of(detail["input"], detail["ctx"]["expected"])
    if kind in ("model_type", "model_attributes_type"):
        at = _model_at(root, [name for name in detail["loc"] if not _is_union_member(name)])
        return f"{value} is not a block of keys; known keys: {', '.join(field_names(at or root))}"
    if kind in _WORDS:
        return _WORDS[kind].format(value=value, **detail.get("ctx", {}))
    return f"{value}: {detail['msg']}"


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."


def _not_one_of(value: object, expected: str) -> str:
    allowed = re.findall(r"'([^']*)'", expected)
    return f"{_shown(value)} is not one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}"


def _unknown_key(key: str, model: type[BaseModel] | None, root: type[BaseModel]) -> str:
    known = field_names(model) if model else []
    if hint := did_you_mean(key, known):
        return f"unknown key{hint}"
    if places := [path for path in _all_paths(root) if path.rpartition(".")[2] == key]:
        return f"unknown key here; it belongs to {places[0].rpartition('.')[0] or 'the top'}: {places[0]}"
    return f"unknown key; known here: {', '.join(known)}"


def did_you_mean(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, else nothing."""
    near = difflib.get_close_matches(word.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
    match = next((name for name in known if near and name.lower() == near[0]), None)
    return f"; did you mean '{match}'?" if match else ""


def field_names(model: type[BaseModel]) -> list[str]:
    """The keys people write for this model."""
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_at(model: type[BaseModel] | None, names: list[int | str]) -> type[BaseModel] | None:
    """The model whose keys lie at this place, None where the keys are free."""
    for name in names:
        if isinstance(name, str):
            fields = {info.alias or key: info for key, info in model.model_fields.items()} if model else {}
            model = _model_in(fields[name].annotation) if name in fields else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for argument in get_args(annotation) if (model := _model_in(argument))), None)


def _all_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield f"{prefix}{info.alias or name}"
        if inner := _model_in(info.annotation):
            yield from _all_paths(inner, f"{prefix}{info.alias or name}.")
