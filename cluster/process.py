"""Processes that we start, recognise again, and end: exactly those, whatever else runs on the machine.

A process is known by its id and its creation time, because ids are used again. What it starts in turn carries a mark in
its environment, so that children which left its session are found too. Nothing here looks at names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "ATHANOR_PROCESS_MARK"
_CREATE_TIME_TOLERANCE_S = 2.0  # the clock may be set while we run
_started: dict[int, tuple[float, subprocess.Popen[bytes]]] = {}
"""Pid -> when it was created, and our hold on it: kept, so that the exit status is collected by whoever waits."""


@dataclass(frozen=True)
class ProcessRef:
    """A process that cannot be taken for another one."""

    pid: int
    create_time: float
    mark: str = ""

    def find(self) -> psutil.Process | None:
        """The living process, or None when it is gone or its id belongs to another one now."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < _CREATE_TIME_TOLERANCE_S
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    @property
    def is_alive(self) -> bool:
        return self.find() is not None


def spawn(argv: Sequence[str], *, env: Mapping[str, str], mark: str, log_path: Path, cwd: Path) -> ProcessRef:
    """Start a process in a session of its own that outlives us; it and all it starts carry `mark`."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        child = subprocess.Popen(
            list(argv),
            env={**env, MARK: mark},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    create_time = psutil.Process(child.pid).create_time()
    _started[child.pid] = create_time, child
    return ProcessRef(child.pid, create_time, mark)


def marked(mark: str) -> list[psutil.Process]:
    """Every living process that carries this mark; none for an empty mark."""
    return [process for process in psutil.process_iter() if mark and _mark_of(process) == mark]


def family(ref: ProcessRef) -> set[psutil.Process]:
    """The process, all that carry its mark, and the children of those: some overwrite their environment by a title."""
    leader = ref.find()
    found = {*marked(ref.mark), *([leader] if leader else [])}
    for process in tuple(found):
        with suppress(psutil.NoSuchProcess):
            found.update(filter(_is_alive, process.children(recursive=True)))
    return {process for process in found if process.pid != os.getpid()}


def end(ref: ProcessRef, *, grace_s: float = 5.0) -> int:
    """End the process and its family: SIGTERM to each, SIGKILL to those left. How many there were.

    Who was once seen to belong is remembered, for a child whose parents are gone can no longer be told by them.
    """
    known: set[psutil.Process] = set()
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        known |= family(ref)
        _signal(filter(_is_alive, known), number)
        _wait_for_end(ref, known, wait_s)
    return len(known)


def tail(path: Path, num_lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-num_lines:])


def _mark_of(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def _is_alive(process: psutil.Process) -> bool:
    """By id and creation time; a zombie has ended."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _wait_for_end(ref: ProcessRef, known: set[psutil.Process], wait_s: float) -> None:
    """What appears meanwhile joins the family."""
    deadline = time.monotonic() + wait_s
    while (not _is_reaped(ref) or any(map(_is_alive, known))) and time.monotonic() < deadline:
        time.sleep(0.1)
        known |= family(ref)


def _is_reaped(ref: ProcessRef) -> bool:
    """Collects the exit status of a child of our own; others are init's.

    There is none yet while a thread of the child still runs, though its first one, which psutil looks at, has ended.
    """
    create_time, child = _started.get(ref.pid, (0.0, None))
    if child is None or abs(create_time - ref.create_time) >= _CREATE_TIME_TOLERANCE_S:
        return True
    if child.poll() is None:
        return False
    del _started[ref.pid]
    return True
