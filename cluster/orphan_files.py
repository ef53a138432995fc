"""Directories on the storage that no job and no model knows: what a crash left between a directory and its row.

A storage is read for orphans only by the installation whose mark it carries: a new, empty store that is pointed at it
must not take everything there for an orphan. Names that are not of our making are never looked into.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from cluster.ids import is_job_uid
from cluster.lifecycle import TERMINAL, State
from cluster.registry import is_name
from cluster.settings import Settings
from cluster.store.store import Store
from trainer import atomic

log = structlog.get_logger(__name__)

MARK = "installation"
"""File at the root of the storage with the id of the installation that it belongs to."""
Place = tuple[str, str]
_UNFINISHED = (".tmp", ".old")


@dataclass(frozen=True)
class Candidate:
    """A directory that may be an orphan: what wants it, if anything does, is named by `uid` or by its path."""

    path: Path
    uid: str
    is_model: bool
    is_finished: bool


class OrphanFiles:
    """On the storage of one installation."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def find(self) -> list[Path]:
        """Orphans that are older than the grace. The storage is read first, so that rows are never older than it."""
        candidates = list(find_candidates(self._settings.storage))
        states = self._store.known_jobs(sorted({each.uid for each in candidates}))
        models = {place_of(Path(path)) for path in self._store.model_paths()}
        if not self._is_ours(candidates, states, models):
            return []
        orphans = [each.path for each in candidates if not is_wanted(each, states, models)]
        before_s = self._store.now_us() / 1e6 - self._settings.orphan_files_grace_s
        return [path for path in orphans if not _changed_since(path, before_s)]

    def _is_ours(self, candidates: list[Candidate], states: dict[str, State], models: Container[Place]) -> bool:
        """By the mark; a storage without one gets ours if it is empty, or if the store knows something of it."""
        mine, mark = self._store.installation_id(), self._settings.storage / MARK
        if mark.exists():
            theirs = mark.read_text(encoding="utf-8").strip()
            if theirs != mine:
                log.warning("orphans.foreign_storage", storage=str(self._settings.storage), theirs=theirs, ours=mine)
            return theirs == mine
        if not (self._settings.storage / "jobs").is_dir():
            return False
        if candidates and not any(is_wanted(each, states, models) for each in candidates):
            log.warning("orphans.unknown_storage", storage=str(self._settings.storage), ours=mine)
            return False
        atomic.write_text(mark, f"{mine}\n")
        return True


def find_candidates(storage: Path) -> Iterator[Candidate]:
    """Directories of the forms that jobs, retries, publications and imports give them."""
    for path in _directories(storage / "jobs"):
        yield from _candidate(path, is_model=False)
    for named in _directories(storage / "models"):
        if is_name(named.name):
            for path in _directories(named):
                yield from _candidate(path, is_model=True)


def place_of(path: Path) -> Place:
    """Of a model within any storage: a storage may come to lie under another path than the one that rows tell."""
    return path.parent.name, path.name


def _directories(root: Path) -> list[Path]:
    """Not through links; none where there is no root."""
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _candidate(path: Path, *, is_model: bool) -> Iterator[Candidate]:
    is_unfinished = path.name.startswith(".") and path.suffix in _UNFINISHED
    uid = path.name[1:].removesuffix(path.suffix) if is_unfinished else path.name
    if is_job_uid(uid):
        yield Candidate(path, uid, is_model, not is_unfinished)


def is_wanted(candidate: Candidate, states: dict[str, State], models: Container[Place]) -> bool:
    """A job's directory as long as the job is known, a model's as long as a version lies there or its job may yet end.

    What is unfinished belongs to whoever writes it: a job that is not over, or nobody.
    """
    state = states.get(candidate.uid)
    is_live = state is not None and state not in TERMINAL
    if not candidate.is_finished:
        return is_live
    if candidate.is_model:
        return is_live or place_of(candidate.path) in models
    return state is not None


def _changed_since(path: Path, before_s: float) -> bool:
    """Whether anything in it was written, or came there, after that moment."""
    for directory, _, files in os.walk(path):
        for each in (directory, *(os.path.join(directory, name) for name in files)):  # noqa: PTH118  many of them
            try:
                known = os.lstat(each)
            except FileNotFoundError:
                return True
            if max(known.st_mtime, known.st_ctime) > before_s:
                return True
    return False


def remove_tree(path: Path) -> None:
    """Under a hidden name first, so that nobody ever meets half of it."""
    hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.tmp")
    if hidden != path:
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
    shutil.rmtree(hidden)
