"""The bytes of an attempt's log, from an offset, until its last process is gone. Read from storage, not from Ray.

`driver.log` has the lines of all; each student worker and each teacher shard has a file of its own beside it.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

from athanor.v1 import job_service_pb2 as messages

from cluster.attempt_files import attempt_dir, log_path
from cluster.errors import InvalidInput, NotFound, Violation
from cluster.security.caller import caller
from cluster.services.file_work import on_files
from cluster.services.job_files import last_lines_offset, open_inside
from cluster.services.visible import Look
from cluster.settings import Settings
from cluster.store.records import StoredAttempt, StoredJob
from cluster.store.store import Store
from cluster.wakeup import WakeUp

_CHUNK_BYTES = 64 * 1024
_POLL_S = 0.25
_QUIET_S = 3.0
"""An attempt that has ended may go on printing; after so long without a byte nobody waits for its last process."""
_DRIVER = "driver"
_ROLES = (_DRIVER, "student", "teacher")
_MOST_LINES = 100_000


class LogReader:
    """One request for a log."""

    def __init__(self, settings: Settings, request: messages.StreamJobLogsRequest) -> None:
        self._settings = settings
        self._role = request.role or _DRIVER
        self._rank = request.rank
        self._tail_lines = request.tail_lines
        self.offset = request.after_offset
        _check(request, self._role)

    def path(self, attempt: StoredAttempt) -> Path:
        if self._role == _DRIVER:
            return log_path(self._settings, attempt)
        return attempt_dir(self._settings, attempt) / "logs" / f"{self._role}-{self._rank}.log"

    def read(self, attempt: StoredAttempt) -> bytes:
        """The next bytes; none at the end, or while there is no file."""
        file = open_inside(self._settings, attempt.job_uid, self.path(attempt))
        if file is None:
            return b""
        with file:
            if self._tail_lines:
                self.offset, self._tail_lines = last_lines_offset(file, self._tail_lines), 0
            file.seek(self.offset)
            data = file.read(_CHUNK_BYTES) or b""
            self.offset += len(data)
            return data

    def check_there(self, attempt: StoredAttempt) -> None:
        """NotFound / LOG_NOT_FOUND for a process that this attempt did not have; the driver may have said nothing."""
        if self._role == _DRIVER or self.path(attempt).is_file():
            return
        found = sorted(path.stem for path in (attempt_dir(self._settings, attempt) / "logs").glob("*-*.log"))
        there = (
            ", ".join(name for name in found if re.fullmatch(r"(student|teacher)-\d+", name)) or "the driver's alone"
        )
        whose = f"attempt {attempt.number} of {attempt.job_uid} has no log of {self._role} {self._rank}"
        raise NotFound("LOG_NOT_FOUND", f"{whose}; there is {there}")


def _check(request: messages.StreamJobLogsRequest, role: str) -> None:
    wrong = []
    if role not in _ROLES:
        wrong.append(Violation("role", f"{role[:40]!r} is no role; roles are {', '.join(_ROLES)}"))
    if request.rank < 0 or (request.rank and role == _DRIVER):
        wrong.append(Violation("rank", "is a number from 0 of a student worker or teacher shard; the driver has none"))
    if request.attempt < 0:
        wrong.append(Violation("attempt", "is a number from 1, or 0 for the latest"))
    if not 0 <= request.tail_lines <= _MOST_LINES:
        wrong.append(Violation("tail_lines", f"is between 0 and {_MOST_LINES}"))
    if request.after_offset < 0:
        wrong.append(Violation("after_offset", "an offset is not negative"))
    if request.tail_lines and request.after_offset:
        wrong.append(Violation("tail_lines", "goes not together with after_offset"))
    if wrong:
        raise InvalidInput("INVALID_LOG_REQUEST", f"{wrong[0].path}: {wrong[0].message}", wrong)


def _attempt_of(job: StoredJob, number: int) -> StoredAttempt | None:
    """The one that was asked for; 0 is the latest, None while there is none yet."""
    if number == 0:
        return job.last_attempt
    found = next((attempt for attempt in job.attempts if attempt.number == number), None)
    if found is None:
        raise NotFound("ATTEMPT_NOT_FOUND", f"job {job.uid} has no attempt {number}; it has {len(job.attempts)}")
    return found


async def stream(
    settings: Settings, store: Store, wake_up: WakeUp, request: messages.StreamJobLogsRequest
) -> AsyncIterator[messages.StreamJobLogsResponse]:
    """Pieces of the log. What is known of the attempt is looked up before the bytes: the last ones are never missed."""
    who, reader = caller(), LogReader(settings, request)
    number, printed_at = request.attempt, time.monotonic()
    look = Look(store, who, request.uid)
    while True:
        job = await look.job(wake_up.ticket())
        attempt = _attempt_of(job, number)
        is_ending = job.is_terminal if attempt is None else not attempt.is_open
        is_over = is_ending and (attempt is None or attempt.released or time.monotonic() - printed_at > _QUIET_S)
        if attempt is not None:
            number = attempt.number
            while data := await on_files(reader.read, attempt):
                printed_at = time.monotonic()
                yield messages.StreamJobLogsResponse(data=data, next_offset=reader.offset, attempt=number)
        if is_over or not request.follow:
            if attempt is not None:
                await on_files(reader.check_there, attempt)
            return
        printed_at = printed_at if is_ending else time.monotonic()
        await wake_up.sleep(_POLL_S)
