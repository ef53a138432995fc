"""Processes are known by more than their number, and end with all that they started."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.process import ProcessRef, end, marked, spawn, tail

SLEEPER = "import signal; signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
PARENT = (
    "import signal, subprocess, sys; "
    f"subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True); print('born', flush=True); "
    "signal.pause()"
)

FORGETFUL = (
    "import signal, subprocess, sys; "
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], env={{}}, start_new_session=True); "
    "print('born', child.pid, flush=True); signal.pause()"
)


@pytest.fixture
def started() -> Iterator[list[ProcessRef]]:
    refs: list[ProcessRef] = []
    yield refs
    for ref in refs:
        end(ref)


def start(code: str, tmp_path: Path, started: list[ProcessRef]) -> ProcessRef:
    ref = spawn(
        [sys.executable, "-c", code],
        env=os.environ,
        mark=f"mark-{os.getpid()}-{len(started)}",
        log_path=tmp_path / "log" / f"{len(started)}.log",
        cwd=tmp_path,
    )
    started.append(ref)
    return ref


def wait_for_log(path: Path, word: str) -> None:
    deadline = time.monotonic() + 30
    while word not in tail(path):
        assert time.monotonic() < deadline, f"{word} never came"
        time.sleep(0.02)


def test_a_process_lives_in_its_own_session_and_ends(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(SLEEPER, tmp_path, started)
    assert ref.is_alive
    assert os.getsid(ref.pid) == ref.pid
    assert end(ref) == 1
    assert not ref.is_alive
    assert end(ref) == 0


def test_another_process_of_the_same_number_is_left_alone(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(SLEEPER, tmp_path, started)
    earlier = replace(ref, create_time=ref.create_time - 100, mark="other")
    assert not earlier.is_alive
    assert end(earlier) == 0
    assert ref.is_alive


def test_children_in_sessions_of_their_own_end_too(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(PARENT, tmp_path, started)
    wait_for_log(tmp_path / "log" / "0.log", "born")
    assert len(marked(ref.mark)) == 2
    assert end(ref) == 2
    assert marked(ref.mark) == []


def test_a_child_that_lost_the_mark_ends_with_its_parent(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(FORGETFUL, tmp_path, started)
    log = tmp_path / "log" / "0.log"
    wait_for_log(log, "born")
    child = int(tail(log).split()[-1])
    assert len(marked(ref.mark)) == 1
    assert end(ref) == 2
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_orphans_end_though_their_parent_is_gone(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(PARENT, tmp_path, started)
    wait_for_log(tmp_path / "log" / "0.log", "born")
    os.kill(ref.pid, signal.SIGKILL)
    os.waitpid(ref.pid, 0)
    assert end(ref) == 1
    assert marked(ref.mark) == []


def test_who_does_not_listen_is_killed(tmp_path: Path, started: list[ProcessRef]) -> None:
    ref = start(DEAF, tmp_path, started)
    wait_for_log(tmp_path / "log" / "0.log", "deaf")
    assert end(ref, grace_s=0.3) == 1
    assert not ref.is_alive


def test_no_mark_means_nobody() -> None:
    assert marked("") == []
