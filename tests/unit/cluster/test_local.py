"""`up` ends nothing that lives: silence is not death, and what was started is known from its first moment on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import local, ray_head
from cluster.errors import StartUpError
from cluster.home import ClusterRecord, Home
from cluster.local import UpOptions, down, is_there, up
from cluster.process import ProcessRef, end, marked, spawn
from cluster.ray_head import RayHead

GONE = ProcessRef(2**22 + 1, 1.0)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[ProcessRef]:
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    process = spawn(command, env=os.environ, mark="sleeper", log_path=tmp_path / "log", cwd=tmp_path)
    yield process
    end(process)


def record_of(ray: ProcessRef, control_plane: ProcessRef) -> ClusterRecord:
    """A cluster at addresses where nobody answers."""
    return ClusterRecord(
        control_plane="127.0.0.1:1",
        ray_address="127.0.0.1:1",
        dashboard_url="http://127.0.0.1:1",
        serve_url="http://127.0.0.1:1",
        owns_ray=True,
        ray_process=ray,
        control_plane_process=control_plane,
    )


def test_a_slow_answer_is_waited_for(sleeper: ProcessRef) -> None:
    answers = iter([False, False, True])
    assert is_there("Ray", sleeper, lambda: next(answers), 60.0)


def test_only_a_process_that_is_gone_is_gone() -> None:
    assert not is_there("Ray", GONE, lambda: False, 60.0)


@pytest.mark.parametrize(("name", "ray_answers"), [("Ray", False), ("the control plane", True)])
def test_what_lives_and_is_silent_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: ProcessRef, name: str, ray_answers: bool
) -> None:
    monkeypatch.setattr(local, "ray_answers", lambda record: ray_answers)
    home = Home(tmp_path / "home")
    home.create()
    home.write_record(record_of(sleeper, sleeper))
    with pytest.raises(StartUpError, match=rf"{name} \(pid {sleeper.pid}\) lives.*athanor down"):
        up(home, UpOptions(patience_s=0.0), lambda line: None)
    assert sleeper.is_alive


def test_a_silent_ray_of_somebody_else_costs_nothing_of_ours(tmp_path: Path, sleeper: ProcessRef) -> None:
    home = Home(tmp_path / "home")
    home.create()
    home.write_record(replace(record_of(GONE, sleeper), owns_ray=False, ray_process=None))
    with pytest.raises(StartUpError, match="did not answer"):
        up(home, UpOptions("127.0.0.1:1", "http://127.0.0.1:1"), lambda line: None)
    assert sleeper.is_alive


def test_ctrl_c_while_ray_starts_leaves_nothing_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_while_waiting: list[ClusterRecord | None] = []
    home = Home(tmp_path / "home")

    def interrupted(head: RayHead, deadline: float) -> bool:
        known_while_waiting.append(home.read_record())
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_head, "_command", lambda *_: [sys.executable, "-c", "import signal; signal.pause()"])
    monkeypatch.setattr(ray_head, "_wait_until_ready", interrupted)
    with pytest.raises(KeyboardInterrupt):
        up(home, UpOptions(), lambda line: None)
    (record,) = known_while_waiting
    assert record is not None
    assert record.ray_process is not None
    assert marked(record.ray_process.mark) == []
    assert down(home, lambda line: None) == ()
    assert home.read_record() is None
