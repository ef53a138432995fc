"""Files that are there whole or not at all, whatever is killed in between; and paths that stay inside their root (I5).

A directory that is replaced is away for a moment between two renames; a new one appears at once.

Written to a hidden temporary name beside the target, fsynced, renamed, and the directory fsynced.
It does not lock: one writer per path is the caller's duty.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path

from trainer.errors import UserError


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces `path` by `data`; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # of a full disk nothing may be left that fills it further
        raise
    sync_directory(path.parent)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, document: object, *, mode: int = 0o644) -> None:
    """Strict JSON: NaN and infinity raise ValueError, since other readers refuse them."""
    write_text(path, json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n", mode=mode)


def replace_directory(temporary: Path, final: Path) -> None:
    """Moves a finished directory to its name; one that is there already is put aside first, then removed."""
    for path in (temporary, *temporary.rglob("*")):
        sync_directory(path) if path.is_dir() else _sync_file(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = final.with_name(f".{final.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    if final.exists():
        final.replace(aside)
    temporary.replace(final)
    sync_directory(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_join(root: Path, relative: str) -> Path:
    """`root / relative`, refused (UserError UNSAFE_PATH) if it, or a link on its way, leads out of `root`."""
    base = root.resolve()
    parts = Path(relative).parts
    if not parts or "\0" in relative or Path(relative).is_absolute() or ".." in parts:
        raise UserError("UNSAFE_PATH", f"{relative!r} is not a plain relative path inside {root}")
    if not (base / relative).resolve().is_relative_to(base):
        raise UserError("UNSAFE_PATH", f"{relative!r} leads out of {root} through a link")
    return root / relative
