"""Is a directory one that may be served? Decided before anything of it is loaded.

A Hugging Face directory with safetensors weights; where it carries `athanor.json`, every file that would be read must
be listed there with the sha256 it has. Nothing is unpickled, no code of the model runs, no name leads out (I5).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ModelDirectoryError

MANIFEST = "athanor.json"
_READ_SUFFIXES = {".json", ".jinja", ".safetensors", ".txt", ".model"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from, as far as its manifest says."""

    job_uid: str | None = None
    teachers: tuple[str, ...] = ()
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class ModelDirectory:
    """A directory that passed."""

    path: Path
    created: int
    lineage: Lineage = field(default_factory=Lineage)


def verify(path: Path, manifest_sha256: str | None = None) -> ModelDirectory:
    """Check a model directory; ModelDirectoryError says what is wrong with it.

    `manifest_sha256`: what the registry says of `athanor.json`, which is then required and must be that file.
    """
    if not path.is_dir():
        raise ModelDirectoryError(f"there is no model directory {path}")
    root = path.resolve()
    config = root / "config.json"
    if not config.is_file():
        raise ModelDirectoryError(f"{path} has no config.json")
    _read_object(config)
    _check_weights(root)
    return ModelDirectory(root, int(config.stat().st_mtime), _check_manifest(root, manifest_sha256))


def _check_weights(root: Path) -> None:
    names = [entry.name for entry in root.iterdir()]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if Path(name).suffix in _PICKLES)
        found = f"only pickled ones ({', '.join(pickles)}), which are never loaded" if pickles else "none"
        raise ModelDirectoryError(f"{root} needs weights as .safetensors; there are {found}")
    for index in root.glob("*.safetensors.index.json"):
        for name in set(_mapping(_read_object(index), "weight_map", index).values()):
            _inside(root, name)


def _check_manifest(root: Path, expected_sha256: str | None) -> Lineage:
    """Compare the files with the manifest, if there is one or must be."""
    path = root / MANIFEST
    if not path.is_file():
        if expected_sha256 is not None:
            raise ModelDirectoryError(f"{root} has no {MANIFEST}; the registry knows one with sha256 {expected_sha256}")
        return Lineage()
    manifest_sha256 = _sha256(path)
    if expected_sha256 not in (None, manifest_sha256):
        raise ModelDirectoryError(f"{path} is not the one that was registered: its sha256 differs")
    manifest = _read_object(path)
    listed = _mapping(manifest, "files", path)
    for name, expected in listed.items():
        if _sha256(_inside(root, name)) != expected:
            raise ModelDirectoryError(f"{name} in {root} is not the file that was published: its sha256 differs")
    for name in _readable(root):
        if name not in listed and name != MANIFEST:
            raise ModelDirectoryError(f"{name} in {root} is not in {MANIFEST}; it was added after publishing")
    return _lineage(manifest, manifest_sha256)


def _readable(root: Path) -> Iterator[str]:
    """Names of all files, however deep, that loading could read; a link to a directory is one of them."""
    for directory, directories, files in os.walk(root):
        links = [name for name in directories if (Path(directory) / name).is_symlink()]
        for name in (*links, *(file for file in files if Path(file).suffix in _READ_SUFFIXES)):
            yield (Path(directory) / name).relative_to(root).as_posix()


def _lineage(manifest: Mapping[str, Any], manifest_sha256: str) -> Lineage:
    report = manifest.get("report")
    learned = report.get("lineage") if isinstance(report, dict) else None
    teacher = learned.get("teacher") if isinstance(learned, dict) else None
    job_uid = manifest.get("job")
    return Lineage(
        job_uid=job_uid if isinstance(job_uid, str) else None,
        teachers=(teacher,) if isinstance(teacher, str) else (),
        manifest_sha256=manifest_sha256,
    )


def _inside(root: Path, name: object) -> Path:
    """The file of that name, refused if the name or a link on its way leads out of `root`."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ModelDirectoryError(f"{name!r} is no file name")
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ModelDirectoryError(f"{name!r} leads out of the model directory {root}")
    if not path.is_file():
        raise ModelDirectoryError(f"{name} is missing in {root}")
    return path


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ModelDirectoryError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ModelDirectoryError(f"{path} is no JSON object")
    return document


def _mapping(document: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict):
        raise ModelDirectoryError(f"{path} has no object `{key}`")
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
