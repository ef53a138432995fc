"""A world for each test that wants one, and a command line in front of a stand-in control plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Shell
from fake_server import FakeControlPlane, serving
from fakes import World
from hypothesis import HealthCheck, settings

from cluster.cli import connect

# How long an example takes says nothing on a machine that does other things too.
settings.register_profile("athanor", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("athanor")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[World]:
    """One in which as many jobs run as fit: four of the default, of one CPU each."""
    world = World(tmp_path, max_running_jobs=None)
    yield world
    world.close()


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def shell(
    plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Shell]:
    server, address = serving(plane)
    monkeypatch.setenv("ATHANOR_ADDRESS", address)
    monkeypatch.setenv("ATHANOR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(connect, "_PATIENCE_S", 0.2)
    yield Shell(monkeypatch, capsys, tmp_path)
    server.stop(None).wait()
