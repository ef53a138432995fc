"""Ray's head dies for real with all that it started, alone and with the control plane; after `athanor up` jobs go on.

What its driver does is not the matter here: it holds its lease until it is told to end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from athanor.v1 import job_pb2

from cluster.client import AthanorClient
from cluster.home import ClusterRecord, Home
from cluster.local import down
from cluster.process import ProcessRef, family

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "tests" / "integration" / "cluster" / "stub_driver.py"
RUNNING, SUCCEEDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED
DEADLINE_S = 180.0


class Installation:
    """A home of its own, brought up by the command."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "home")
        python = root / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
        python.chmod(0o700)
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ATHANOR_", "RAY_"))},
            **{"ATHANOR_HOME": str(self.home.root), "ATHANOR_DRIVER_PYTHON": str(python), "OMP_NUM_THREADS": "1"},
            **{"ATHANOR_LEASE_S": "4", "ATHANOR_UNKNOWN_GRACE_S": "4"},
        }

    @property
    def record(self) -> ClusterRecord:
        record = self.home.read_record()
        assert record is not None
        return record

    def up(self) -> None:
        command = [sys.executable, "-m", "cluster.cli.main", "up", "--num-cpus", "2"]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr

    def client(self) -> AthanorClient:
        return AthanorClient(self.record.control_plane, token=self.home.admin_token_path.read_text().strip())

    def attempt_dir(self, uid: str, number: int) -> Path:
        return self.home.root / "storage" / "jobs" / uid / "attempts" / str(number)

    def driver(self, uid: str, number: int) -> ProcessRef:
        pid = int((self.attempt_dir(uid, number) / "driver.log").read_text().split()[1])
        return ProcessRef(pid, psutil.Process(pid).create_time())


@pytest.fixture
def installation() -> Iterator[Installation]:
    root = Path(tempfile.mkdtemp(prefix="ath-"))
    made = Installation(root)
    try:
        made.up()
        yield made
    finally:
        down(made.home, lambda line: None)
        shutil.rmtree(root)


def kill_all(*processes: ProcessRef | None) -> None:
    """SIGKILL to each and to whatever it started, until none of them is left."""
    known = {one for process in processes if process is not None for one in family(process)}
    assert known
    for one in known:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    assert psutil.wait_procs(known, timeout=30)[1] == []


def manifest(root: Path) -> dict[str, object]:
    train = root / "train.jsonl"
    train.write_text('{"prompt": "hello", "completion": "world"}\n')
    spec = {
        "student": {"config": {"model_type": "llama", "hidden_size": 64}},
        "data": {"train": str(train), "format": "prompt_completion"},
        "training": {"max_steps": 5},
        "publish": {"model": "bot", "alias": "champion"},
    }
    return {"kind": "FineTune", "metadata": {"name": "bot"}, "spec": spec}


def reaches(client: AthanorClient, uid: str, attempt: int) -> None:
    """That attempt's driver was heard, and Ray is seen."""
    for change in client.follow_job(uid, timeout_s=DEADLINE_S):
        job = change.job
        if job.state == RUNNING and len(job.attempts) == attempt and not is_unreachable(job):
            return
    raise AssertionError(f"{uid} ended before its attempt {attempt} ran: {client.get_job(uid).message}")


def is_unreachable(job: job_pb2.Job) -> bool:
    return any(each.type == "Unreachable" and each.status for each in job.conditions)


def test_a_job_outlives_the_head_and_the_control_plane(installation: Installation) -> None:
    with installation.client() as client:
        uid = client.create_job(manifest(installation.home.root)).uid
        reaches(client, uid, 1)
        first = installation.driver(uid, 1)
        kill_all(installation.record.ray_process)
        seen = next(change.job for change in client.follow_job(uid, timeout_s=DEADLINE_S) if is_unreachable(change.job))
        assert (seen.state, len(seen.attempts)) == (RUNNING, 1), "nobody can see it, so nothing is decided"
        log = (installation.attempt_dir(uid, 1) / "driver.log").read_bytes()
        assert b"".join(client.stream_logs(uid, attempt=1)) == log, "a log needs no Ray"
    assert not first.is_alive
    installation.up()
    with installation.client() as client:
        reaches(client, uid, 2)
    second = installation.driver(uid, 2)
    record = installation.record
    kill_all(record.ray_process, record.control_plane_process)
    assert not second.is_alive
    installation.up()
    with installation.client() as client:
        reaches(client, uid, 3)
        (installation.attempt_dir(uid, 3) / "finish").touch()
        job = client.wait_job(uid, timeout_s=DEADLINE_S)
        reasons = Counter(event.reason for event in client.list_job_events(uid))
    assert (job.state, job.published_model) == (SUCCEEDED, "bot@1"), job.message
    assert [attempt.reason for attempt in job.attempts] == ["DRIVER_LOST", "DRIVER_LOST", "SUCCEEDED"]
    assert (reasons["CREATED"], reasons["SUCCEEDED"]) == (1, 1)
    versions = [json.loads(path.read_text())["attempt"] for path in sorted(_attempts(installation, uid))]
    assert versions == [1, 2, 3]


def _attempts(installation: Installation, uid: str) -> Iterator[Path]:
    return installation.attempt_dir(uid, 1).parent.glob("*/attempt.json")
