"""A world for each test that wants one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import World
from hypothesis import HealthCheck, settings

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
