"""The figures of a learner step by step, from its metrics.jsonl, which is cut when the job goes back to a checkpoint.

What was sent is remembered by a checksum for each line: so a cut is noticed, and told, wherever the file then grows on.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import AsyncIterator, Iterator
from typing import Any
from zlib import crc32

from athanor.v1 import job_service_pb2 as messages

from cluster.errors import InvalidInput, Violation
from cluster.security.caller import caller
from cluster.services.file_work import on_files
from cluster.services.job_files import open_inside
from cluster.services.visible import Look
from cluster.settings import Settings
from cluster.store.store import Store
from cluster.wakeup import WakeUp
from cluster.wire import to_struct

_POLL_S = 0.5
_ROLES = ("student", "baseline")
_BYTES_AT_ONCE = 1024 * 1024
_LONGEST_LINE = 64 * 1024


class Figures:
    """One role's lines as they come. Those that are there at first and not later than `after_step` are passed by."""

    def __init__(self, settings: Settings, uid: str, role: str, after_step: int) -> None:
        self._settings = settings
        self._uid = uid
        self._path = settings.job_dir(uid) / role / "metrics.jsonl"
        self._after_step = after_step
        self._last_step = 0
        self._seen = array("L")
        self._inode, self._offset = 0, 0
        self._is_first_look = True

    def read(self) -> list[messages.StreamJobMetricsResponse]:
        """What is new since the last look, at most a few megabytes; nothing where nothing is."""
        lines = self._new_lines()
        found = [message for line in lines if (message := self._message(line)) is not None]
        if self._is_first_look and not lines:
            # Whoever goes on after a step that is not there any more is told, when the job gets there again.
            self._last_step, self._is_first_look = max(self._last_step, self._after_step), False
        return found

    @property
    def has_more(self) -> bool:
        return self._is_first_look

    def _message(self, line: bytes) -> messages.StreamJobMetricsResponse | None:
        figures = _parsed(line)
        if figures is None:
            return None
        step = int(figures.pop("step"))
        if self._is_first_look and step <= self._after_step:
            self._last_step = step
            return None
        rewound, self._last_step = step <= self._last_step, step
        return messages.StreamJobMetricsResponse(step=step, figures=to_struct(figures), rewound=rewound)

    def _new_lines(self) -> list[bytes]:
        """Whole lines that were not seen; of a file that was made anew, those behind what it has in common."""
        file = open_inside(self._settings, self._uid, self._path)
        if file is None:
            return []
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, self._common(file.readall())
            file.seek(self._offset)
            lines = list(_whole(file.read(_BYTES_AT_ONCE) or b""))
            self._offset += sum(map(len, lines))
            self._seen.extend(map(crc32, lines))
            return lines

    def _common(self, content: bytes) -> int:
        """How many bytes of a new file were seen in the one before; what was seen beyond is forgotten."""
        offset = 0
        for at, line in enumerate(_whole(content)):
            if at >= len(self._seen) or crc32(line) != self._seen[at]:
                del self._seen[at:]
                return offset
            offset += len(line)
        del self._seen[content.count(b"\n") :]
        return offset


def _whole(content: bytes) -> Iterator[bytes]:
    return (line for line in content.splitlines(keepends=True) if line.endswith(b"\n"))


def _parsed(line: bytes) -> dict[str, Any] | None:
    """None for what no learner of ours writes."""
    try:
        figures = json.loads(line) if len(line) <= _LONGEST_LINE else None
        return figures if isinstance(figures, dict) and isinstance(figures.get("step"), int) else None
    except (ValueError, RecursionError):
        return None


async def stream(
    settings: Settings, store: Store, wake_up: WakeUp, request: messages.StreamJobMetricsRequest
) -> AsyncIterator[messages.StreamJobMetricsResponse]:
    """Until now, or until the job has ended. What is known of the job is looked up before its file."""
    role, who = request.role or _ROLES[0], caller()
    _check(role, request.after_step)
    figures = Figures(settings, request.uid, role, request.after_step)
    look = Look(store, who, request.uid)
    while True:
        job = await look.job(wake_up.ticket())
        while (found := await on_files(figures.read)) or figures.has_more:
            for message in found:
                yield message
        if job.is_terminal or not request.follow:
            return
        await wake_up.sleep(_POLL_S)


def _check(role: str, after_step: int) -> None:
    wrong = []
    if role not in _ROLES:
        wrong.append(Violation("role", f"{role[:40]!r} is no role; figures have {' and '.join(_ROLES)}"))
    if after_step < 0:
        wrong.append(Violation("after_step", "a step is not negative"))
    if wrong:
        raise InvalidInput("INVALID_METRICS_REQUEST", f"{wrong[0].path}: {wrong[0].message}", wrong)
