"""A job file as people write it, read: YAML, `--set` on top, relative paths made absolute. And written, of a job.

A relative path in the file means "beside the file", one given by --set means "from where I stand". Whether the things
are there is the server's business: it sees the cluster's storage.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import InvalidInput
from trainer.errors import SpecError
from trainer.spec import API_VERSION, parse_manifest, parse_spec

# Fields that may hold a path, "*" for any entry of a list.
_PATH_FIELDS = (
    ("spec", "data", "train"),
    ("spec", "data", "eval"),
    ("spec", "evaluate", "baseline", "train"),
    ("spec", "student", "model"),
    ("spec", "teachers", "*", "model"),
)
_DATA_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet"}

Document = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """Leaves moments as the text that they are: a job file is JSON in nature, which has none."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_job_file(path: str, assignments: Sequence[str] = ()) -> Document:
    """The whole job file, checked against its definition; `-` is stdin. InvalidInput or SpecError when it is wrong."""
    base = Path.cwd() if path == "-" else Path(path).expanduser().absolute().parent
    document = with_absolute_paths(_parse(_read(path), path), base)
    for assignment in assignments:
        document = assign(document, assignment)
    _require_json(document, path)
    parse_manifest(document)
    return document


def with_absolute_paths(document: Mapping[str, Any], base: Path) -> Document:
    """A copy in which what may be a path, and is relative, begins at `base`."""
    changed = copy.deepcopy(dict(document))
    for field in _PATH_FIELDS:
        _make_field_absolute(changed, field, base)
    return changed


def manifest_of(kind: str, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> Document:
    """The job file that makes a job like this one; what is as it is by default is left out.

    A spec of another release, which this one cannot read, is given as it is.
    """
    try:
        shown = parse_spec(kind, spec).model_dump(mode="json", exclude_defaults=True)
    except SpecError:
        shown = dict(spec)
    kept = {name: value for name, value in metadata.items() if value}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": kept, "spec": shown}


def assign(document: Document, assignment: str) -> Document:
    """A copy with one value set: `spec.training.max_steps=10`; the value is read as YAML."""
    path, separator, text = assignment.partition("=")
    if not separator or not path:
        raise InvalidInput("BAD_ASSIGNMENT", f"--set {assignment}: write key=value, e.g. spec.training.max_steps=10")
    changed = copy.deepcopy(document)
    keys = path.split(".")
    parent = _parent(changed, keys, assignment)
    value = _parse_value(text, assignment)
    if isinstance(value, str) and tuple("*" if key.isdigit() else key for key in keys) in _PATH_FIELDS:
        value = absolute(value, Path.cwd())
    if isinstance(parent, list):
        parent[_index(parent, keys[-1], assignment)] = value
    else:
        parent[keys[-1]] = value
    return changed


def looks_like_path(value: str) -> bool:
    """Whether people mean a file or directory by it, though none is there."""
    return value.startswith((".", "~", "/")) or Path(value).suffix in _DATA_SUFFIXES


def absolute(value: str, base: Path) -> str:
    """`value` as an absolute path when it is or looks like one; a hub id or a registry reference stays as it is."""
    if "@" in value:
        return value
    path = base / Path(value).expanduser()
    return str(path.resolve()) if looks_like_path(value) or path.exists() else value


def _read(path: str) -> str:
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InvalidInput("JOB_FILE_UNREADABLE", f"cannot read the job file {path}: {why}") from error


def _parse(text: str, path: str) -> Document:
    try:
        document = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InvalidInput("JOB_FILE_NOT_YAML", f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise InvalidInput(
            "JOB_FILE_NOT_YAML", f"{path} holds no job: it must begin with apiVersion, kind, metadata, spec"
        )
    return document


def _parse_value(text: str, assignment: str) -> object:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InvalidInput("BAD_ASSIGNMENT", f"--set {assignment}: the value is no valid YAML") from error


def _parent(document: Document, keys: Sequence[str], assignment: str) -> Any:
    parent: Any = document
    for key in keys[:-1]:
        if isinstance(parent, list):
            parent = parent[_index(parent, key, assignment)]
        elif isinstance(parent, dict):
            parent[key] = parent.get(key) if parent.get(key) is not None else {}
            parent = parent[key]
    if not isinstance(parent, dict | list):
        raise InvalidInput("BAD_ASSIGNMENT", f"--set {assignment}: {'.'.join(keys[:-1])} holds a value, not a block")
    return parent


def _index(entries: Sequence[object], key: str, assignment: str) -> int:
    if key.isdigit() and int(key) < len(entries):
        return int(key)
    raise InvalidInput("BAD_ASSIGNMENT", f"--set {assignment}: {key} is none of the entries 0 to {len(entries) - 1}")


def _make_field_absolute(node: Any, keys: Sequence[str], base: Path) -> None:
    key, rest = keys[0], keys[1:]
    if key == "*":
        for entry in node if isinstance(node, list) else ():
            _make_field_absolute(entry, rest, base)
    elif isinstance(node, dict) and rest:
        _make_field_absolute(node.get(key), rest, base)
    elif isinstance(node, dict) and isinstance(node.get(key), str):
        node[key] = absolute(node[key], base)


def _require_json(document: Document, path: str) -> None:
    try:
        json.dumps(document)
    except TypeError as error:
        raise InvalidInput("JOB_FILE_NOT_JSON", f"{path}: {error}; put it in quotes if it is text") from error
