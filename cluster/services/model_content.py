"""What of ModelService touches files: bringing a model in, forgetting one, comparing it with its manifest, sending it.

All of it runs in steps beside the event loop, two pieces of work at a time, and holds no transaction meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import structlog
from athanor.v1 import model_service_pb2 as messages

from cluster.errors import (
    AlreadyExists,
    DataLoss,
    InvalidInput,
    OutOfRange,
    ResourceExhausted,
    StoreUnavailable,
    Violation,
)
from cluster.ids import new_request_id
from cluster.model_files import Comparison, altered, check_storage, comparing, manifest_files, open_plain
from cluster.model_import import find_source, importing, job_of, remove
from cluster.registry import NAME_RULE, is_name, parse_reference, resolve
from cluster.security.caller import Caller, caller
from cluster.services.file_work import on_files
from cluster.services.submission import check_request_id
from cluster.settings import Settings
from cluster.steps import in_steps
from cluster.store.model_rows import NewModel
from cluster.store.records import StoredModel
from cluster.store.store import Store

log = structlog.get_logger(__name__)

_AT_ONCE = 2
_MOST_WAITING = 8
"""Imports of one caller that are under way or wait for their turn."""
_PIECE = 1024 * 1024
_LONGEST_DESCRIPTION = 4000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ModelContent:
    """The files of all versions."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._imports: dict[tuple[str, str], asyncio.Task[StoredModel]] = {}
        self._asked_by: dict[tuple[str, str], str] = {}

    async def create(self, request: messages.CreateModelVersionRequest) -> StoredModel:
        """The new version. Who goes away while it is copied may ask again with the same request id, and waits on."""
        _check_create(request)
        sha256 = hashlib.sha256(_without_id(request).SerializeToString(deterministic=True)).hexdigest()
        known = await asyncio.to_thread(self._store.find_model_request, request.request_id, sha256)
        if known is not None:
            return known
        key = (request.request_id or new_request_id(), sha256)
        if key not in self._imports:
            self._check_room(caller().token_id)
            task = asyncio.create_task(self._import(request, caller(), key[0], sha256))
            self._imports[key] = task
            self._asked_by[key] = caller().token_id
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(self._imports[key])

    def _check_room(self, who: str) -> None:
        """ResourceExhausted / TOO_MANY_IMPORTS: each goes on though its caller went away."""
        if Counter(self._asked_by.values())[who] >= _MOST_WAITING:
            words = f"{_MOST_WAITING} models are being brought in for you already; wait until one is there"
            raise ResourceExhausted("TOO_MANY_IMPORTS", words)

    def _forget(self, key: tuple[str, str], done: asyncio.Task[StoredModel]) -> None:
        del self._imports[key], self._asked_by[key]
        if not done.cancelled() and (error := done.exception()) is not None:
            log.warning("model.not_created", error=str(error))

    async def _import(
        self, request: messages.CreateModelVersionRequest, who: Caller, request_id: str, sha256: str
    ) -> StoredModel:
        with _storage_errors(request.path):
            await on_files(check_storage, self._settings)
            source = await on_files(self._source, request.path, who)
            facts = {"source": str(source), "description": request.description, "actor": who.name}
            async with self._room:
                found = await in_steps(importing(self._settings, request.name, source, facts))
        new = NewModel(request.name, str(found.path), found.manifest_sha256, found.num_parameters, request.description)
        try:
            model = await asyncio.to_thread(self._store.create_model, new, request_id, sha256)
        except AlreadyExists:
            await on_files(self._remove, found.path)
            raise
        if model.path != str(found.path):  # the same request, answered by another control plane meanwhile
            await on_files(self._remove, found.path)
        log.info("model.created", model=model.reference, path=model.path)
        return model

    def _source(self, path: str, who: Caller) -> Path:
        """InvalidInput for no directory; a job's is there for those alone who see the job."""
        source = find_source(self._settings, path)
        if uid := job_of(self._settings, source):
            who.check_sees_job(uid, self._store.get_job(uid).project)
        return source

    async def delete(self, text: str) -> None:
        """First the store forgets the version, then its files go; a crash in between leaves an orphan."""
        reference = parse_reference(text)
        if not reference.version:
            words = f"{text[:200]!r} names no single version; write name@version"
            raise InvalidInput("INVALID_REFERENCE", words, [Violation("reference", words)])
        model = await asyncio.to_thread(self._store.delete_model, reference.name, reference.version)
        log.info("model.deleted", model=model.reference, path=model.path)
        await asyncio.shield(on_files(self._remove, Path(model.path)))

    def _remove(self, path: Path) -> None:
        try:
            remove(self._settings, path)
        except OSError as error:
            log.warning("model.files_left", path=str(path), error=str(error))

    async def verify(self, reference: str) -> tuple[StoredModel, Comparison]:
        """DataLoss / MODEL_ALTERED with the files that differ."""
        model = await self._find(reference)
        try:
            with _storage_errors(model.path):
                async with self._room:
                    return model, await in_steps(comparing(model))
        except DataLoss:
            await self._find(model.reference)  # one that was deleted meanwhile is no loss
            raise

    async def _find(self, reference: str) -> StoredModel:
        await on_files(check_storage, self._settings)
        return await asyncio.to_thread(resolve, self._store, reference)

    async def pieces(
        self, request: messages.DownloadModelVersionRequest
    ) -> AsyncIterator[messages.DownloadModelVersionResponse]:
        """All files by name, or one from an offset on; DataLoss / MODEL_ALTERED at the end of one that differs."""
        if request.after_offset < 0 or (request.after_offset and not request.file):
            words = "is the offset in `file`, at least 0; name the file too"
            raise InvalidInput("INVALID_OFFSET", f"after_offset {words}", [Violation("after_offset", words)])
        model = await self._find(request.reference)
        listed = await on_files(manifest_files, model)
        if request.file and request.file not in listed:
            words = f"{model.reference} has no file {request.file[:200]!r}; there are: {', '.join(listed)}"[:1000]
            raise InvalidInput("MODEL_FILE_UNKNOWN", words, [Violation("file", words)])
        for name in [request.file] if request.file else sorted(listed):
            async for piece in self._pieces_of(model, name, listed[name], request.after_offset):
                yield piece

    async def _pieces_of(
        self, model: StoredModel, name: str, sha256: str, offset: int
    ) -> AsyncIterator[messages.DownloadModelVersionResponse]:
        with _storage_errors(model.path):
            file, size = await on_files(_opened, model, name)
        with contextlib.closing(file):
            if offset > size:
                raise OutOfRange("OFFSET_TOO_LARGE", f"{name} has {size} bytes, after_offset is {offset}")
            file.seek(offset)
            digest, at, is_whole = hashlib.sha256(), offset, offset == 0
            while True:
                data = await on_files(file.read, _PIECE)
                digest.update(data)
                at += len(data)
                if data or at == offset:  # an empty file is told once, too
                    yield messages.DownloadModelVersionResponse(file=name, data=data, next_offset=at, size=size)
                if not data:
                    break
        if at != size or (is_whole and digest.hexdigest() != sha256):
            raise altered(model, {name: "altered"})


def _opened(model: StoredModel, name: str) -> tuple[BinaryIO, int]:
    try:
        file = open_plain(Path(model.path), name)
    except (FileNotFoundError, InvalidInput) as error:
        raise altered(model, {name: "missing" if isinstance(error, FileNotFoundError) else "altered"}) from error
    size = file.seek(0, 2)
    return file, size


def _check_create(request: messages.CreateModelVersionRequest) -> None:
    check_request_id(request.request_id)
    if not is_name(request.name):
        words = f"{request.name[:64]!r} is no name; {NAME_RULE}"
        raise InvalidInput("INVALID_NAME", f"name: {words}", [Violation("name", words)])
    wrong = []
    if not request.path:
        wrong.append(Violation("path", "is missing; name the directory of the model on the cluster's storage"))
    if len(request.description) > _LONGEST_DESCRIPTION or "\0" in request.description:
        wrong.append(Violation("description", f"has at most {_LONGEST_DESCRIPTION} characters, and no NUL"))
    if wrong:
        raise InvalidInput("MODEL_INVALID", "; ".join(f"{each.path}: {each.message}" for each in wrong), wrong)


def _without_id(request: messages.CreateModelVersionRequest) -> messages.CreateModelVersionRequest:
    bare = messages.CreateModelVersionRequest()
    bare.CopyFrom(request)
    bare.request_id = ""
    return bare


@contextlib.contextmanager
def _storage_errors(path: str) -> Iterator[None]:
    """What a disk says, in the words of the contract: a full one is not an absent one, nor one that says no."""
    try:
        yield
    except PermissionError as error:
        words = f"{error.filename or path} may not be read or written by the control plane"
        raise InvalidInput("MODEL_INVALID", words, [Violation("path", words)]) from error
    except OSError as error:
        words = f"{error.filename or path}: {error.strerror or error}"
        if error.errno in _FULL:
            raise ResourceExhausted("STORAGE_FULL", f"the storage is full, {words}; make room for it") from error
        raise StoreUnavailable("STORAGE_UNAVAILABLE", f"the storage cannot be used, {words}") from error
