"""A model directory from outside copied into the registry's place: whole or not at all, with a manifest.

Copied under a hidden name, checked as copied, fsynced, renamed. What a crash leaves is a hidden directory, or one that
no version names; orphans.py reaps both. Versions themselves are the store's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import InvalidInput, PreconditionFailed, Violation
from cluster.ids import new_job_uid
from cluster.model_check import check_model, count_parameters
from cluster.model_files import hashing, open_plain, read_object, size_of
from cluster.orphan_files import remove_tree
from cluster.settings import Settings
from trainer import atomic
from trainer.publishing import MANIFEST

_PREFIX = "import"
_ORIGIN = ("job", "kind", "report")
"""What a manifest keeps of the one that lay beside the model already: where it came from."""


@dataclass(frozen=True)
class Imported:
    """A directory that is in its place, and what is known of it."""

    path: Path
    manifest_sha256: str
    num_parameters: int


def find_source(settings: Settings, text: str) -> Path:
    """The directory that a caller named; InvalidInput / MODEL_INVALID when there is none, or it is not for models."""
    path = Path(text)
    if "\0" in text or not path.is_absolute() or ".." in path.parts:
        raise _wrong_path(f"{text[:200]!r} is no absolute path without '..'")
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _wrong_path(f"{text[:200]} cannot be seen on the cluster's storage: {str(error)[:300]}") from error
    if not found.is_dir():
        raise _wrong_path(f"{text} is no directory")
    if found == settings.storage.resolve() or settings.storage.resolve().is_relative_to(found):
        raise _wrong_path(f"{text} is, or holds, the storage itself")
    return found


def job_of(settings: Settings, source: Path) -> str:
    """Uid of the job in whose directory a source lies, "" for any other place."""
    jobs = (settings.storage / "jobs").resolve()
    return source.relative_to(jobs).parts[0] if source.is_relative_to(jobs) and source != jobs else ""


def _wrong_path(words: str) -> InvalidInput:
    return InvalidInput("MODEL_INVALID", f"path: {words}", [Violation("path", words)])


def importing(settings: Settings, name: str, source: Path, facts: Mapping[str, Any]) -> Generator[None, None, Imported]:
    """Copy a model to `<storage>/models/<name>/<unique>`, a piece to each step; closed half-way it leaves nothing.

    `facts`: what the manifest says beside the files. InvalidInput / MODEL_INVALID, UNSAFE_MODEL_FILE.
    """
    names = check_model(source)
    count_parameters(source, names)
    _check_room(settings, source, names)
    final = settings.publish_dir(name, new_job_uid(_PREFIX))
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        digests = yield from _copying(source, temporary, names)
        imported = _finish(source, temporary, final, digests, facts)
        yield from _syncing(temporary)
        temporary.rename(final)
        atomic.sync_directory(final.parent)
        atomic.sync_directory(final.parent.parent)
        return imported
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_room(settings: Settings, source: Path, names: list[str]) -> None:
    needed, free = size_of(source, names), shutil.disk_usage(settings.storage).free
    if needed > free:
        words = f"the model has {needed} bytes, {settings.storage} has room for {free}; make room for it"
        raise PreconditionFailed("STORAGE_FULL", words)


def _copying(source: Path, target: Path, names: list[str]) -> Generator[None, None, dict[str, str]]:
    """SHA-256 of each file, of the very bytes that were copied."""
    digests = dict[str, str]()
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with closing(open_plain(source, name)) as file, (target / name).open("xb") as copy:
            digests[name], _ = yield from hashing(file, copy)
    return digests


def _finish(source: Path, target: Path, final: Path, digests: dict[str, str], facts: Mapping[str, Any]) -> Imported:
    """Check the copy, for the source may have changed since it was checked, and put the manifest beside it."""
    num_parameters = count_parameters(target, check_model(target))
    origin = _origin(source, digests)
    report = {"parameters": {"student": num_parameters}}
    atomic.write_json(
        target / MANIFEST, {"job": None, **facts, "report": report, **origin, "files": dict(sorted(digests.items()))}
    )
    return Imported(final, atomic.sha256_file(target / MANIFEST), num_parameters)


def _origin(source: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    """Of a model that Athanor published before; InvalidInput / MODEL_INVALID if it was altered since."""
    try:
        manifest = read_object(source, MANIFEST)
    except FileNotFoundError:
        return {}
    listed = manifest.get("files")
    differing = [name for name in digests if not isinstance(listed, dict) or listed.get(name) != digests[name]]
    if differing:
        words = f"{differing[0]} is not the file that {MANIFEST} lists; remove {MANIFEST} if that is meant to be so"
        raise InvalidInput("MODEL_INVALID", words, [Violation("path", words)])
    return {"origin": {key: manifest[key] for key in _ORIGIN if key in manifest}}


def _syncing(root: Path) -> Generator[None, None, None]:
    for directory, _, files in os.walk(root):
        for name in files:
            with (Path(directory) / name).open("rb") as file:
                os.fsync(file.fileno())
            yield
        atomic.sync_directory(Path(directory))


def remove(settings: Settings, path: Path) -> None:
    """The directory of a version that is no more; one outside the registry's place is left alone."""
    models = settings.storage / "models"
    if ".." in path.parts or path.parent.parent != models or not path.is_dir() or path.is_symlink():
        return
    remove_tree(path)
