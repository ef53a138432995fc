"""The bytes of an attempt's log, from an offset, for as long as the attempt lasts. Read from storage, not from Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from athanor.v1 import job_service_pb2

from cluster.attempt_files import log_path
from cluster.errors import InvalidInput, NotFound, Violation
from cluster.settings import Settings
from cluster.store.records import StoredAttempt, StoredJob
from cluster.store.store import Store
from cluster.wakeup import WakeUp

_CHUNK_BYTES = 64 * 1024
_POLL_S = 0.25


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(_CHUNK_BYTES)
    except FileNotFoundError:
        return b""


def _attempt_of(job: StoredJob, number: int) -> StoredAttempt | None:
    """The one that was asked for; 0 is the latest, None while there is none yet."""
    if number == 0:
        return job.last_attempt
    found = next((attempt for attempt in job.attempts if attempt.number == number), None)
    if found is None:
        raise NotFound("ATTEMPT_NOT_FOUND", f"job {job.uid} has no attempt {number}; it has {len(job.attempts)}")
    return found


async def stream(
    settings: Settings, store: Store, wake_up: WakeUp, request: job_service_pb2.StreamJobLogsRequest
) -> AsyncIterator[job_service_pb2.StreamJobLogsResponse]:
    """Pieces of the log. What is known of the attempt is looked up before the bytes: the last ones are never missed."""
    if request.after_offset < 0:
        message = "an offset is not negative"
        raise InvalidInput("INVALID_OFFSET", message, [Violation("after_offset", message)])
    number, offset = request.attempt, request.after_offset
    while True:
        ticket = wake_up.ticket()
        job = await asyncio.to_thread(store.get_job, request.uid)
        attempt = _attempt_of(job, number)
        is_over = job.is_terminal if attempt is None else not attempt.is_open
        if attempt is not None:
            number = attempt.number
            async for piece in _to_the_end(log_path(settings, attempt), offset, number):
                offset = piece.next_offset
                yield piece
        if is_over or not request.follow:
            return
        await wake_up.wait(ticket, _POLL_S)


async def _to_the_end(path: Path, offset: int, number: int) -> AsyncIterator[job_service_pb2.StreamJobLogsResponse]:
    while data := await asyncio.to_thread(_read, path, offset):
        offset += len(data)
        yield job_service_pb2.StreamJobLogsResponse(data=data, next_offset=offset, attempt=number)
