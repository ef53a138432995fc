"""Model directories on the storage, read without following any link (I5): their names, their bytes, their manifest.

What somebody swaps for a link or a pipe while it is read is refused as one that was there before. Writes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cluster.errors import DataLoss, InvalidInput, StoreUnavailable, Violation
from cluster.settings import Settings
from cluster.store.records import StoredModel
from trainer.publishing import MANIFEST

PIECE = 16 * 1024 * 1024
"""Bytes that are read in one go, so that whoever waits can be told to stop."""
_NO_PLAIN_FILE = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENXIO})
_MOST_FILES = 10_000
_MOST_LEVELS = 8
_MOST_JSON_BYTES = 32 * 1024 * 1024
_TOLD = 20
"""So many files are named in one error."""


class UnsafeFile(InvalidInput):
    """A link, a pipe, a device, or a name that leads out."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__("UNSAFE_MODEL_FILE", f"{name!r} {words}")


def names_in(root: Path) -> Iterator[str]:
    """Relative paths of all files, sorted within each directory; UnsafeFile for anything that is no plain file."""
    waiting, count = [""], 0
    while waiting:
        directory = waiting.pop()
        with os.scandir(root / directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{directory}{entry.name}"
            count += 1
            if count > _MOST_FILES or name.count("/") > _MOST_LEVELS:
                raise InvalidInput(
                    "MODEL_INVALID", f"{root} holds more than {_MOST_FILES} files, or too deep ones; that is no model"
                )
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{name}/")
                continue
            if not entry.is_file(follow_symlinks=False):
                raise UnsafeFile(name, "is a link or no file at all; put a copy of the file itself there (cp -rL)")
            yield name


def open_plain(root: Path, name: str) -> BinaryIO:
    """A regular file inside `root`, no part of whose way below it is a link; UnsafeFile, FileNotFoundError."""
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise UnsafeFile(name, "is no plain relative path")
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            deeper = _open_at(here, part, os.O_DIRECTORY, name)
            os.close(here)
            here = deeper
        descriptor = _open_at(here, parts[-1], os.O_NONBLOCK, name)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafeFile(name, "is no file")
    return os.fdopen(descriptor, "rb")


def _open_at(directory: int, part: str, flags: int, name: str) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=directory)
    except OSError as error:
        if error.errno in _NO_PLAIN_FILE:
            raise UnsafeFile(name, "is a link, or lies behind one") from error
        raise


def read_plain(root: Path, name: str, most: int = _MOST_JSON_BYTES) -> bytes:
    """A small file; InvalidInput / MODEL_INVALID for one that is larger than any of its kind."""
    with closing(open_plain(root, name)) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InvalidInput("MODEL_INVALID", f"{name} is larger than {most} bytes")
    return data


def read_object(root: Path, name: str) -> dict[str, Any]:
    """A JSON object; InvalidInput / MODEL_INVALID."""
    try:
        document = json.loads(read_plain(root, name))
    except (ValueError, RecursionError) as error:
        raise InvalidInput("MODEL_INVALID", f"{name} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput("MODEL_INVALID", f"{name} is no JSON object")
    return document


@dataclass(frozen=True)
class Comparison:
    """What was read of a version that is as it was published."""

    num_files: int
    num_bytes: int


def check_storage(settings: Settings) -> None:
    """A storage that is not mounted says nothing about any model: StoreUnavailable."""
    if not (settings.storage / "models").is_dir():
        words = f"{settings.storage / 'models'} cannot be seen; is the storage mounted?"
        raise StoreUnavailable("STORAGE_UNAVAILABLE", words)


def manifest_files(model: StoredModel) -> dict[str, str]:
    """Name -> SHA-256 of every file of a version, its manifest included; DataLoss / MODEL_ALTERED."""
    root = Path(model.path)
    try:
        data = read_plain(root, MANIFEST)
        files = json.loads(data)["files"]
    except (OSError, InvalidInput, ValueError, KeyError, TypeError) as error:
        raise altered(model, {MANIFEST: "cannot be read"}) from error
    digest = hashlib.sha256(data).hexdigest()
    if not isinstance(files, dict) or model.manifest_sha256 not in ("", digest):
        raise altered(model, {MANIFEST: "altered"})
    return {**{str(name): str(sha256) for name, sha256 in sorted(files.items())}, MANIFEST: digest}


def altered(model: StoredModel, differences: Mapping[str, str]) -> DataLoss:
    """The error that names each file and what is wrong with it."""
    told = sorted((_printable(name), what) for name, what in differences.items())[:_TOLD]
    words = ", ".join(f"{name} {what}" for name, what in told)
    words += f" and {len(differences) - _TOLD} more" if len(differences) > _TOLD else ""
    violations = [Violation(name, what) for name, what in told]
    message = f"{model.reference} is not what was published: {words}; restore {model.path} from a backup or delete it"
    return DataLoss("MODEL_ALTERED", message, violations)


def _printable(name: str) -> str:
    """A file may have a name that is no text."""
    return name.encode(errors="backslashreplace").decode()[:200]


def comparing(model: StoredModel) -> Generator[None, None, Comparison]:
    """Read every file and compare it with the manifest, a piece to each step; DataLoss / MODEL_ALTERED."""
    listed, root = manifest_files(model), Path(model.path)
    differences, num_bytes = dict[str, str](), 0
    for name, expected in listed.items():
        try:
            with closing(open_plain(root, name)) as file:
                digest, size = yield from hashing(file)
        except (FileNotFoundError, UnsafeFile) as error:
            differences[name] = "missing" if isinstance(error, FileNotFoundError) else "altered"
            continue
        num_bytes += size
        if digest != expected:
            differences[name] = "altered"
    differences |= {name: "added" for name in _all_names(root) if name not in listed}
    if differences:
        raise altered(model, differences)
    return Comparison(len(listed), num_bytes)


def _all_names(root: Path) -> Iterator[str]:
    """Links too: they are told as what they are, something that was added."""
    for directory, directories, files in os.walk(root):
        links = [name for name in directories if (Path(directory) / name).is_symlink()]
        for name in (*links, *files):
            yield (Path(directory) / name).relative_to(root).as_posix()


def hashing(file: BinaryIO, target: BinaryIO | None = None) -> Generator[None, None, tuple[str, int]]:
    """SHA-256 and size of what is left of a file, copied on the way if there is a target; a piece to each step."""
    digest, size = hashlib.sha256(), 0
    while piece := file.read(PIECE):
        digest.update(piece)
        size += len(piece)
        if target is not None:
            target.write(piece)
        yield
    return digest.hexdigest(), size


def size_of(root: Path, names: list[str]) -> int:
    """Bytes of all of them together; what is gone meanwhile counts for nothing."""
    found = 0
    for name in names:
        with suppress(FileNotFoundError):
            found += (root / name).lstat().st_size
    return found
