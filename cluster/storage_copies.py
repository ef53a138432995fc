"""What a repeated job takes over from the one before: its directory, without its attempts.

A copy appears whole or not at all, and before its job is stored; a mark beside it, which is touched while it is made,
says so until the job is there. What a control plane that died left behind is known by the mark, and cleared away.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from cluster.settings import Settings
from cluster.store.store import Store
from trainer.atomic import sync_directory

log = structlog.get_logger(__name__)

_LEFT_OUT = frozenset({"attempts", "train", "report", "progress.json"})
_NEVER_ALTERED = frozenset({"checkpoints", "prepared", "model"})
"""Directories whose files are only ever made and removed: two jobs may share them on the disk."""
_FORSAKEN_S = 3600.0
"""A copy that is older and has no job belongs to nobody."""


def has_progress(settings: Settings, uid: str) -> bool:
    """Whether there is anything to go on from: a checkpoint, a finished learner, or written labels."""
    found = settings.job_dir(uid)
    return any(any(found.glob(place)) for place in ("*/checkpoints/step-*", "*/done.json", "labels/part-*.jsonl"))


def copy_job(settings: Settings, old: str, new: str) -> None:
    """Large files that never change are linked, where the storage can do that."""
    root, final = settings.job_dir(old), settings.job_dir(new)
    temporary, mark = _temporary(settings, new), _mark(settings, new)
    try:
        mark.touch()
        shutil.copytree(
            root, temporary, symlinks=True, ignore=_left_out(settings, old), copy_function=_copying(root, mark)
        )
        keep_copy(settings, new)
        temporary.rename(final)
        sync_directory(final.parent)
    except OSError:
        remove_copy(settings, new)
        raise


def keep_copy(settings: Settings, new: str) -> None:
    """It is needed still. OSError when it was taken for forsaken, and is no longer there."""
    os.utime(_mark(settings, new))


def settle_copy(settings: Settings, new: str) -> None:
    """The job is stored now."""
    _mark(settings, new).unlink(missing_ok=True)


def remove_copy(settings: Settings, new: str) -> None:
    for path in (_temporary(settings, new), settings.job_dir(new), _aside(settings, new)):
        shutil.rmtree(path, ignore_errors=True)
    _mark(settings, new).unlink(missing_ok=True)


def remove_forsaken(settings: Settings, store: Store) -> list[str]:
    """Copies that nobody will use any more; the uids that they were made for."""
    removed = []
    for uid in sorted(_copied(settings)):
        if time.time() - _touched_at(settings, uid) < _FORSAKEN_S:
            continue
        if _is_stored(settings, store, uid):
            settle_copy(settings, uid)
            shutil.rmtree(_temporary(settings, uid), ignore_errors=True)
        else:
            remove_copy(settings, uid)
            removed.append(uid)
            log.info("copy.removed", job=uid)
    return removed


def _is_stored(settings: Settings, store: Store, uid: str) -> bool:
    """Asked again when the copy is out of the way: who stored the job meanwhile gets it back."""
    final, aside = settings.job_dir(uid), _aside(settings, uid)
    if not store.states_of([uid]):
        _mark(settings, uid).unlink(missing_ok=True)
        if final.exists():
            final.rename(aside)
        if not store.states_of([uid]):
            return False
    if aside.exists():
        aside.rename(final)
    return True


def _copied(settings: Settings) -> set[str]:
    """Uids of which there is a mark, or something half-way."""
    with os.scandir(settings.storage / "jobs") as entries:
        paths = [Path(entry.name) for entry in entries if entry.name.startswith(".")]
    return {path.stem[1:] for path in paths if path.suffix in (".tmp", ".copied", ".aside")}


def _touched_at(settings: Settings, uid: str) -> float:
    """A mark counts alone: what is copied keeps the times that it had."""
    for path in (_mark(settings, uid), _temporary(settings, uid), _aside(settings, uid)):
        try:
            return path.lstat().st_mtime
        except FileNotFoundError:
            continue
    return time.time()


def _aside(settings: Settings, uid: str) -> Path:
    return settings.storage / "jobs" / f".{uid}.aside"


def _temporary(settings: Settings, uid: str) -> Path:
    return settings.storage / "jobs" / f".{uid}.tmp"


def _mark(settings: Settings, uid: str) -> Path:
    return settings.storage / "jobs" / f".{uid}.copied"


def _left_out(settings: Settings, old: str) -> Callable[[str, list[str]], set[str]]:
    root = str(settings.job_dir(old))

    def ignore(directory: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.endswith(".tmp")}
        return hidden | (_LEFT_OUT.intersection(names) if directory == root else set())

    return ignore


def _copying(root: Path, mark: Path) -> Callable[[str, str], None]:
    def copy(source: str, target: str) -> None:
        os.utime(mark)
        if _NEVER_ALTERED.intersection(Path(source).relative_to(root).parts):
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:  # not on this storage
                pass
            else:
                return
        shutil.copy2(source, target, follow_symlinks=False)

    return copy
