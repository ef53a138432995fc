"""The kinds of value a job file is made of: strict blocks, durations, references. Loads no torch."""

from __future__ import annotations

import re
from datetime import timedelta
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
)

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"
UID_PATTERN = r"^[a-z][a-z0-9-]{0,39}-[a-z0-9]{8}$"
SECRET_PATTERN = r"\$\{secret:[A-Z][A-Z0-9_]{0,63}\}"
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d)$")
_UNIONS = (Union, UnionType)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Strict(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool):
            kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{str(value).lower()} is not a number")
        return value


def _kinds(annotation: object) -> set[object]:
    """The types that an annotation is made of, without what is said about them."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    return {annotation}.union(*map(_kinds, get_args(annotation))) if get_origin(annotation) in _UNIONS else {annotation}


def _parse_duration(value: object) -> object:
    """`90s`, `15m`, `10h`, `2d`, or a number of seconds."""
    if isinstance(value, str) and (match := _DURATION.match(value.strip())):
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    if isinstance(value, bool) or (isinstance(value, str) and not value.startswith("P")):
        raise ValueError("write a duration as a number and a unit of s, m, h or d, for example 10h")
    return value


def _check_duration(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError(f"{value.total_seconds():g}s is no time at all; write one above 0, for example 15m")
    return value


def _write_duration(value: timedelta) -> str:
    return f"{value.total_seconds():g}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration, json_schema_input_type=str | float),
    AfterValidator(_check_duration),
    PlainSerializer(_write_duration, return_type=str),
]


def _check_model_reference(value: str) -> str:
    """Something is named; whether it is a path, a hub id or `name@alias` is told by `job.model_form`."""
    if not value.strip():
        raise ValueError("name a model: a directory, a hub id (org/name), or a registry reference (name@alias)")
    return value


def _check_secret_reference(text: str) -> str:
    """The text is not repeated: it may be the secret itself."""
    if not re.fullmatch(SECRET_PATTERN, text):
        raise ValueError("write ${secret:NAME}, NAME of A-Z, 0-9 and '_'; a secret itself has no place in a job file")
    return text


SecretReference = Annotated[str, AfterValidator(_check_secret_reference)]
ModelReference = Annotated[str, AfterValidator(_check_model_reference)]


def _no_mere_name(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(NAME_PATTERN, value) and not re.fullmatch(UID_PATTERN, value):
        raise ValueError(f"{value!r} is a name, and many jobs may have it; write the uid of one: athanor job list")
    return value


JobUid = Annotated[str, BeforeValidator(_no_mere_name), Field(pattern=UID_PATTERN)]
