"""What a repeated job takes over from the one before: its directory, without its attempts.

A copy appears whole or not at all, and before its job is stored; a mark beside it says so until the job is there. What
a control plane that died left behind is known by the mark, or by its temporary name, and cleared away.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
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
        shutil.copytree(root, temporary, symlinks=True, ignore=_left_out(settings, old), copy_function=_copying(root))
        mark.touch()
        temporary.rename(final)
        sync_directory(final.parent)
    except OSError:
        remove_copy(settings, new)
        raise


def settle_copy(settings: Settings, new: str) -> None:
    """The job is stored now."""
    _mark(settings, new).unlink(missing_ok=True)


def remove_copy(settings: Settings, new: str) -> None:
    for path in (_temporary(settings, new), settings.job_dir(new)):
        shutil.rmtree(path, ignore_errors=True)
    _mark(settings, new).unlink(missing_ok=True)


def remove_forsaken(settings: Settings, store: Store) -> list[str]:
    """Copies that nobody will use any more; the uids that they were made for."""
    removed = []
    for uid, path in _marks(settings):
        if time.time() - path.lstat().st_mtime < _FORSAKEN_S:
            continue
        if store.states_of([uid]):
            settle_copy(settings, uid)
            shutil.rmtree(_temporary(settings, uid), ignore_errors=True)
        else:
            remove_copy(settings, uid)
            removed.append(uid)
            log.info("copy.removed", job=uid)
    return removed


def _marks(settings: Settings) -> Iterator[tuple[str, Path]]:
    with os.scandir(settings.storage / "jobs") as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") and path.suffix in (".tmp", ".copied"):
                yield path.stem[1:], path


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


def _copying(root: Path) -> Callable[[str, str], None]:
    def copy(source: str, target: str) -> None:
        if _NEVER_ALTERED.intersection(Path(source).relative_to(root).parts):
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:  # not on this storage
                pass
            else:
                return
        shutil.copy2(source, target, follow_symlinks=False)

    return copy
