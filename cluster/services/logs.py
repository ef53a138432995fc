"""The bytes of an attempt's log, from an offset, until its last process is gone. Read from storage, not from Ray."""

from __future__ import annotations

import asyncio
import time
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
_QUIET_S = 3.0
"""An attempt that has ended may go on printing; after so long without a byte nobody waits for its last process."""


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
    number, offset, printed_at = request.attempt, request.after_offset, time.monotonic()
    while True:
        ticket = wake_up.ticket()
        job = await asyncio.to_thread(store.get_job, request.uid)
        attempt = _attempt_of(job, number)
        is_ending = job.is_terminal if attempt is None else not attempt.is_open
        is_over = is_ending and (attempt is None or attempt.released or time.monotonic() - printed_at > _QUIET_S)
        if attempt is not None:
            number = attempt.number
            async for piece in _to_the_end(log_path(settings, attempt), offset, number):
                offset, printed_at = piece.next_offset, time.monotonic()
                yield piece
        if is_over or not request.follow:
            return
        printed_at = printed_at if is_ending else time.monotonic()
        await wake_up.wait(ticket, _POLL_S)


async def _to_the_end(path: Path, offset: int, number: int) -> AsyncIterator[job_service_pb2.StreamJobLogsResponse]:
    while data := await asyncio.to_thread(_read, path, offset):
        offset += len(data)
        yield job_service_pb2.StreamJobLogsResponse(data=data, next_offset=offset, attempt=number)
