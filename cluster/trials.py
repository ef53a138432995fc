"""How a canary comes to be judged: by what, compared with whom, on which examples, and a secret for its judge.

What can be known of that is checked here, before anything is stored: the teacher in the registry, what the models are
for in their directories, the labelled examples in their file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.errors import InvalidInput, NotFound, Violation
from cluster.ids import new_lease_token
from cluster.registry import resolve
from cluster.store.deployment_records import Gate, Trial
from cluster.store.records import StoredModel
from cluster.store.store import Store
from serving.task_data import TaskDataError, read_task_data

_WRITING = ("ForCausalLM", "LMHeadModel", "ModelWithLMHead")
_READING = ("Model", "ForMaskedLM", "ForPreTraining")


def begin_trial(store: Store, gate: Gate, model: StoredModel, path: str = "gate") -> Trial:
    """InvalidInput / INVALID_GATE where the model cannot be judged so; the gate's fields are under `path`."""
    teacher = _teacher(store, gate, model, f"{path}.teacher")
    _check_tasks(model, teacher, path)
    return Trial(gate, teacher.reference, teacher.path, new_lease_token(), task_sha256=_examined(gate, path))


def _teacher(store: Store, gate: Gate, model: StoredModel, field: str) -> StoredModel:
    reference = gate.teacher or next(iter(model.teachers), "")
    if not reference:
        raise _invalid(field, f"the registry knows no teacher of {model.reference}; name the model to compare it with")
    try:
        return resolve(store, reference)
    except (NotFound, InvalidInput) as error:
        raise _invalid(field, error.message) from error


def _examined(gate: Gate, path: str) -> str:
    """The sha256 of the labelled examples; empty without any, or where only replicas can read them."""
    if not gate.task_data:
        return ""
    file = Path(gate.task_data)
    if not file.is_absolute():
        raise _invalid(f"{path}.task_data", f"{gate.task_data[:200]!r} is no absolute path; write it from / on")
    if not _is_seen(file.parent):
        return ""  # another machine's: its judge says what is wrong with it
    try:
        return read_task_data(file).sha256
    except TaskDataError as error:
        raise _invalid(f"{path}.task_data", error.message) from error


def _is_seen(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # as of one that others may look into
        return False


def _check_tasks(model: StoredModel, teacher: StoredModel, path: str) -> None:
    """A directory that cannot be read is nothing to refuse a gate for: its replicas say what is wrong with it."""
    configs = _config(model), _config(teacher)
    tasks = [task_of(config) for config in configs]
    for each, task in zip((model, teacher), tasks, strict=True):
        if task == "embed":
            words = f"{each.reference} embeds; a gate judges models that write or classify: leave it out"
            raise _invalid(path if each is model else f"{path}.teacher", words)
    if None not in tasks and tasks[0] != tasks[1]:
        verbs = {"generate": "writes", "classify": "classifies"}
        words = f"{teacher.reference} {verbs[str(tasks[1])]}, and {model.reference} {verbs[str(tasks[0])]}"
        raise _invalid(f"{path}.teacher", f"{words}; name a teacher of the same kind")
    if tasks == ["classify", "classify"] and (unlike := _unlike_labels(*configs)):
        words = f"{teacher.reference} and {model.reference} have not the same labels ({', '.join(unlike)})"
        raise _invalid(f"{path}.teacher", f"{words}; name a teacher that tells the same ones apart")


def task_of(config: dict[str, Any]) -> str | None:
    """`generate`, `classify` or `embed` by a model's config; None where that takes more than a look at names."""
    if "modules.json" in config:
        return "embed"
    found = config.get("architectures")
    names = [str(name) for name in found] if isinstance(found, list) else []
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "classify"
    if any(name.endswith(_WRITING) for name in names):
        return "generate"
    return "embed" if names and all(name.endswith(_READING) for name in names) else None


def _config(model: StoredModel) -> dict[str, Any]:
    """Its config.json; a key of its own says that sentence-transformers wrote the directory."""
    try:
        config = json.loads((Path(model.path) / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict):
        return {}
    return config | ({"modules.json": True} if (Path(model.path) / "modules.json").is_file() else {})


def _unlike_labels(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The first few labels that one of them has alone."""
    found = [config.get("id2label") for config in (one, other)]
    names = [{str(name) for name in each.values()} if isinstance(each, dict) else set() for each in found]
    return sorted(names[0] ^ names[1])[:3] if all(names) else []


def _invalid(field: str, words: str) -> InvalidInput:
    return InvalidInput("INVALID_GATE", f"{field}: {words}", [Violation(field, words)])
