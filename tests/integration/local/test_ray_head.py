"""A Ray head of our own: it wants its token, it stays on the loopback interface, and it goes away completely."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from cluster import process
from cluster.process import end, family, marked, spawn
from cluster.ray_head import RayHead, auth_headers, start_head

pytestmark = pytest.mark.ray


def test_the_dashboard_wants_the_token(ray_cluster: RayHead) -> None:
    url = f"{ray_cluster.dashboard_url}/api/jobs/"
    assert httpx.get(url).status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(url, headers={"Authorization": "Bearer wrong"}).status_code == httpx.codes.FORBIDDEN
    assert httpx.get(url, headers=auth_headers(Path(ray_cluster.token_path))).status_code == httpx.codes.OK


def test_only_the_owner_reads_the_token(ray_cluster: RayHead) -> None:
    assert stat.S_IMODE(Path(ray_cluster.token_path).stat().st_mode) == 0o600


def test_every_port_is_on_the_loopback_interface(ray_cluster: RayHead) -> None:
    listening = [
        connection.laddr.ip
        for process in family(ray_cluster.process)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_stop_ends_its_own_processes_and_no_other(ray_cluster: RayHead, tmp_path: Path) -> None:
    second = start_head(tmp_path / "ray", num_cpus=1, log_path=tmp_path / "ray.log", token_path=tmp_path / "token")
    sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
    bystander = spawn(sleeper, env=os.environ, mark="another", log_path=tmp_path / "bystander.log", cwd=tmp_path)
    everyone = psutil.Process(second.process.pid).children(recursive=True)
    try:
        assert end(second.process) > len(everyone)
        assert [each.name() for each in everyone if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
        assert marked(second.process.mark) == []
        assert not second.process.is_alive
        assert second.process.pid not in process._started, "its last thread has ended, too"
        assert bystander.is_alive
        assert ray_cluster.process.is_alive
        assert end(second.process) == 0
    finally:
        end(bystander)
