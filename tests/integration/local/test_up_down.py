"""`athanor up` and `down` as people use them: again and again, half dead, with a port in use, and with data kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cli.exit_codes import ExitCode
from cluster.home import ClusterRecord, Home
from cluster.local import down
from cluster.process import marked
from cluster.ray_head import RayHead
from tests.tiny_jobs import write_chats

pytestmark = [pytest.mark.ray, pytest.mark.slow]


HELD = """
apiVersion: athanor/v1
kind: FineTune
metadata: {name: held}
spec:
  student: {config: {model_type: llama}}
  data: {train: %s}
  training: {max_steps: 3}
  schedule: {hold_until: 2999-01-01T00:00:00Z}
"""


class Athanor:
    """Runs the command with a home of its own."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._env = {**os.environ, "ATHANOR_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
        for name in ("ATHANOR_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            self._env.pop(name, None)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster.cli.main", *arguments]
        return subprocess.run(command, env={**self._env, **env}, capture_output=True, text=True, timeout=240)

    @property
    def record(self) -> ClusterRecord:
        record = self.home.read_record()
        assert record is not None
        return record


@pytest.fixture(scope="module")
def athanor() -> Iterator[Athanor]:
    root = Path(tempfile.mkdtemp(prefix="ath-"))
    athanor = Athanor(Home(root / "home"))
    started = athanor.run("up", "--num-cpus", "2")
    try:
        assert started.returncode == 0, started.stderr
        yield athanor
    finally:
        down(athanor.home, lambda line: None)
        shutil.rmtree(root)


def test_up_answers_and_doctor_agrees(athanor: Athanor) -> None:
    assert athanor.run("job", "list", "-o", "json").stdout == "[]\n"
    checks = {check["name"]: check for check in json.loads(athanor.run("doctor", "--json").stdout)["checks"]}
    assert checks["ray"]["status"] == checks["control plane"]["status"] == "ok"


def test_up_again_changes_nothing(athanor: Athanor) -> None:
    before = athanor.record
    again = athanor.run("up")
    assert (again.returncode, again.stderr.splitlines()[0]) == (0, "already up")
    assert f"Admin token    {athanor.home.admin_token_path}" in again.stdout
    assert athanor.record == before


def test_a_dead_control_plane_comes_back_where_it_was(athanor: Athanor) -> None:
    before = athanor.record
    assert before.control_plane_process is not None
    kill(before.control_plane_process.pid)
    assert athanor.run("job", "list").returncode == ExitCode.UNAVAILABLE
    assert athanor.run("up").returncode == 0
    assert athanor.record.control_plane == before.control_plane
    assert athanor.record.ray_process == before.ray_process
    assert athanor.run("job", "list").returncode == 0


def test_a_dead_ray_is_replaced_and_nothing_of_it_is_left(athanor: Athanor) -> None:
    before = athanor.record
    assert before.ray_process is not None
    kill(before.ray_process.pid)
    mended = athanor.run("up", "--num-cpus", "2")
    assert mended.returncode == 0, mended.stderr
    assert "Ray is gone" in mended.stderr
    assert marked(before.ray_process.mark) == []
    assert athanor.record.control_plane == before.control_plane
    assert athanor.run("job", "list").returncode == 0


def test_down_ends_everything_keeps_the_data_and_is_friendly_twice(athanor: Athanor) -> None:
    record = athanor.record
    assert record.ray_process is not None
    assert record.control_plane_process is not None
    held = athanor.home.root / "job.yaml"
    held.write_text(HELD % write_chats(athanor.home.root / "train.jsonl", 2))
    assert athanor.run("job", "submit", "-f", str(held)).returncode == 0
    ended = athanor.run("down")
    assert ended.returncode == 0
    assert "one job has not ended: " in ended.stderr
    assert "ended control plane" in ended.stderr
    assert "ended Ray" in ended.stderr
    assert marked(record.ray_process.mark) == marked(record.control_plane_process.mark) == []
    assert (athanor.home.root / "athanor.db").exists()
    assert athanor.run("down").stderr == "nothing was up\n"
    unreachable = athanor.run("job", "list", ATHANOR_ADDRESS=record.control_plane)
    assert unreachable.returncode == ExitCode.UNAVAILABLE
    words = f"no control plane at {record.control_plane}; start one with `athanor up`"
    assert unreachable.stderr == f"error: [NO_CONTROL_PLANE] {words}\n"
    nowhere = athanor.run("job", "list", XDG_CONFIG_HOME=str(athanor.home.root))
    assert nowhere.stderr.startswith("error: [NO_CONTROL_PLANE] no local cluster is up in ")


def test_a_running_ray_is_attached_to_and_never_ended(ray_cluster: RayHead, tmp_path: Path) -> None:
    athanor = Athanor(Home(tmp_path / "home"))
    options = ("--ray-address", ray_cluster.address, "--ray-dashboard-url", ray_cluster.dashboard_url)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": ray_cluster.token_path}
    try:
        refused = athanor.run("up", *options)
        assert refused.returncode == ExitCode.ERROR
        assert "RAY_AUTH_TOKEN_PATH" in refused.stderr
        attached = athanor.run("up", *options, **token)
        assert attached.returncode == 0, attached.stderr
        assert not athanor.record.owns_ray
    finally:
        down(athanor.home, lambda line: None)
    assert ray_cluster.process.is_alive


def test_a_port_in_use_is_said_when_the_user_fixed_it(ray_cluster: RayHead, tmp_path: Path) -> None:
    athanor = Athanor(Home(tmp_path / "home"))
    options = ("--ray-address", ray_cluster.address, "--ray-dashboard-url", ray_cluster.dashboard_url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        try:
            refused = athanor.run("up", *options, "--listen", address, RAY_AUTH_TOKEN_PATH=ray_cluster.token_path)
        finally:
            down(athanor.home, lambda line: None)
    assert refused.returncode == ExitCode.ERROR
    assert f"cannot listen on {address}" in refused.stderr


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone: it is nobody's child here."""
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
