"""A job that names a secret, on a real Ray: its processes read the value, and nothing that they leave holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from athanor.v1.worker_service_pb2 import ReportTerminalRequest
from drivers import Driver, write_attempt
from worker_service import ControlPlane, serving

from cluster.driver.attempt import SUCCEEDED, USER_ERROR
from cluster.ray_head import RayHead

pytestmark = [pytest.mark.ray, pytest.mark.slow]

VALUE = "hf_QYx7-nobody-else-writes-this"


@pytest.fixture
def secrets_dir(ray_cluster: RayHead) -> Iterator[Path]:
    directory = Path(os.environ["ATHANOR_SECRETS_DIR"])
    directory.mkdir()
    yield directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


@pytest.fixture
def spec(distill_spec: dict[str, Any]) -> dict[str, Any]:
    """Driver, student and teacher, each of which logs in."""
    small = {name: distill_spec[name] for name in ("student", "data", "training", "publish")}
    teacher = {**distill_spec["teachers"][0], "shards": 1}
    return {**small, "teachers": [teacher], "hub": {"token": "${secret:HUB_LOGIN}"}}


def holders(root: Path) -> list[Path]:
    """Files in which the value stands."""
    return [path for path in root.rglob("*") if path.is_file() and VALUE.encode() in path.read_bytes()]


def test_the_value_is_nowhere_and_the_name_is_where_it_was_written(
    spec: dict[str, Any], secrets_dir: Path, ray_cluster: RayHead, tmp_path: Path
) -> None:
    (secrets_dir / "HUB_LOGIN").write_text(f"{VALUE}\n")
    fake = ControlPlane()
    with serving(fake) as port:
        driver = Driver(write_attempt(tmp_path, spec, control_plane=f"127.0.0.1:{port}"))
        record = driver.ended()
    assert record is not None
    assert record.outcome == SUCCEEDED, driver.log
    assert holders(tmp_path) == []
    assert holders(Path(ray_cluster.temp_dir)) == [], "Ray keeps logs and job records there"
    assert "${secret:HUB_LOGIN}" in (Path(record.model_path) / "athanor.json").read_text()
    while not fake.told.empty():
        assert VALUE not in str(fake.told.get())


def test_a_secret_that_is_not_there_ends_the_job_with_its_field(
    spec: dict[str, Any], secrets_dir: Path, tmp_path: Path
) -> None:
    fake = ControlPlane()
    with serving(fake) as port:
        record = Driver(write_attempt(tmp_path, spec, control_plane=f"127.0.0.1:{port}")).ended()
    assert record is not None
    assert (record.outcome, record.reason) == (USER_ERROR, "SECRET_NOT_FOUND")
    assert "spec.hub.token" in record.message
    told = []
    while not fake.told.empty():
        told.append(fake.told.get())
    assert any(isinstance(each, ReportTerminalRequest) for each in told)
