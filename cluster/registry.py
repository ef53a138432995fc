"""References to registered models: reading them, pinning them to versions, and what a finished job publishes.

The versions and aliases themselves live in the store.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidInput, NotFound, Violation
from cluster.store.records import Publication, StoredJob, StoredModel, Terminal
from cluster.store.store import Store
from trainer.job import model_form
from trainer.spec import NAME_PATTERN, DistillSpec, FineTuneSpec

NAME_RULE = "1 to 40 of a-z, 0-9 and '-', beginning with a letter"
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_COMES_LATER = "; if a job on its way will publish it, name that job in schedule.depends_on"


def is_name(text: str) -> bool:
    """Of a job, a model, an alias or a deployment."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class ModelReference:
    """`name@alias`, `name@version`, or a bare `name` for its newest version."""

    name: str
    alias: str = ""
    version: int = 0


def parse_reference(text: str) -> ModelReference:
    """Read a reference; InvalidInput / INVALID_REFERENCE."""
    name, at, target = text.partition("@")
    if is_name(name):
        if not at:
            return ModelReference(name)
        if _VERSION.fullmatch(target):
            return ModelReference(name, version=int(target))
        if is_name(target):
            return ModelReference(name, alias=target)
    raise InvalidInput("INVALID_REFERENCE", f"{text[:200]!r} names no model; write name@alias, name@version or name")


def resolve(store: Store, text: str) -> StoredModel:
    """The version that a reference means now; NotFound / MODEL_NOT_FOUND."""
    reference = parse_reference(text)
    if reference.version:
        return store.model_version(reference.name, reference.version)
    if reference.alias:
        return store.model_alias(reference.name, reference.alias)
    return store.model_newest(reference.name)


def registry_references(spec: FineTuneSpec) -> dict[str, str]:
    """Path of the field -> registry reference in it. Directories and hub ids are left out."""
    named = {"spec.student.model": spec.student.model}
    if isinstance(spec, DistillSpec):
        named |= {f"spec.teachers[{i}].model": teacher.model for i, teacher in enumerate(spec.teachers)}
    return {path: text for path, text in named.items() if text is not None and model_form(text) == "registry"}


def pin(store: Store, spec: FineTuneSpec, known: Collection[str] = ()) -> dict[str, StoredModel]:
    """Reference -> the version it means now, for every registry reference of a spec; says which field is wrong.

    Those that are `known`, or will be, are left out.
    """
    pinned = {}
    for path, text in registry_references(spec).items():
        if text in known:
            continue
        try:
            pinned[text] = resolve(store, text)
        except (NotFound, InvalidInput) as error:
            message = f"{error.message}{_COMES_LATER if isinstance(error, NotFound) else ''}"
            raise type(error)(error.reason, message, [Violation(path, message)]) from error
    return pinned


def publication(job: StoredJob, terminal: Terminal) -> Publication | None:
    """What a finished job puts into the registry; None when it publishes nothing."""
    wish = job.spec.get("publish")
    if not wish or not terminal.model_path:
        return None
    teachers = [teacher["model"] for teacher in job.spec.get("teachers", ())]
    return Publication(
        name=wish["model"],
        alias=wish.get("alias"),
        path=terminal.model_path,
        manifest_sha256=terminal.model_manifest_sha256,
        teachers=tuple(job.resolved_models[model] for model in teachers if model in job.resolved_models),
        num_parameters=terminal.num_parameters,
        metrics=_block(terminal.summary, "student"),
    )


def _block(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}
