"""The whole product on a Ray cluster of its own: `python -m cluster.driver`, one student worker, one teacher shard.

Without a control plane: the driver says so in its log and goes on. The times are those of the job's `metrics.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.distillation.ours import logged
from benchmarks.distillation.workload import Workload
from benchmarks.measure import status_mib
from cluster.driver.attempt import SUCCEEDED, Attempt, read_record
from cluster.process import end
from cluster.ray_head import RayHead, start_head

_UID = "bench-abcdefgh"
_MEMBERS = {"ray::RayTrainWorker": "student", "ray::TeacherShard": "teacher"}
_LOOK_EVERY_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", type=Path)
    parser.add_argument("--threads", type=int, required=True, help="of each process")
    parser.add_argument("--changes", type=json.loads, default={}, help="JSON over the sections of the job's spec")
    chosen = parser.parse_args()
    print(json.dumps(measure(Workload(chosen.workload), chosen.threads, chosen.changes)))


def measure(workload: Workload, threads: int, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    storage = workload.root / f"storage-{threads}"
    shutil.rmtree(storage, ignore_errors=True)
    spec = merged(workload.spec(taught=True, student_cpus=threads, teacher_cpus=threads), changes or {})
    attempt = _write_attempt(storage, spec)
    root = Path(tempfile.mkdtemp(prefix="ath-"))
    cpus = threads * _processes(spec)
    head = start_head(root / "ray", num_cpus=cpus, log_path=root / "ray.log", token_path=root / "token")
    try:
        peaks = _drive(attempt, head)
    finally:
        end(head.process)
        shutil.rmtree(root, ignore_errors=True)
    return {**logged(workload, attempt.ctx.metrics_path("student")), "peak_mib": peaks}


def merged(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks are merged, everything else is replaced."""
    found = dict(spec)
    for name, change in changes.items():
        old = found.get(name)
        found[name] = merged(old, change) if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return found


def _processes(spec: Mapping[str, Any]) -> int:
    shards: int = sum(teacher.get("shards", 1) * teacher.get("replicas", 1) for teacher in spec["teachers"])
    return int(spec["resources"]["student"].get("workers", 1)) + shards


def _write_attempt(storage: Path, spec: dict[str, Any]) -> Attempt:
    path = storage / "jobs" / _UID / "attempts" / "1" / "attempt.json"
    path.parent.mkdir(parents=True)
    document = {
        "job_uid": _UID,
        "attempt": 1,
        "lease_token": "of nobody",
        "control_planes": ["127.0.0.1:9"],
        "kind": "Distill",
        "name": "bench",
        "spec": spec,
        "models": {},
        "storage": str(storage),
        "publish_dir": "",
    }
    path.write_text(json.dumps(document))
    return Attempt.load(path)


def _drive(attempt: Attempt, head: RayHead) -> dict[str, float]:
    """Runs the attempt to its end; gives the peak memory of student and teacher."""
    peaks: dict[str, float] = {}
    command = [sys.executable, "-m", "cluster.driver", "--attempt-file", str(attempt.path)]
    driver = subprocess.Popen(command, env={**os.environ, **head.client_env()}, stdout=sys.stderr)
    try:
        while driver.poll() is None:
            peaks |= _peaks(head)
            with suppress(subprocess.TimeoutExpired):
                driver.wait(_LOOK_EVERY_S)
    finally:
        driver.kill()
        driver.wait()
    record = read_record(attempt.terminal_path)
    if record is None or record.outcome != SUCCEEDED:
        raise SystemExit(f"the attempt did not succeed: {record}")
    return peaks


def _peaks(head: RayHead) -> dict[str, float]:
    found: dict[str, float] = {}
    for process in _family(head):
        with suppress(psutil.Error, OSError):
            title = process.cmdline()[0] if process.cmdline() else ""
            member = next((name for start, name in _MEMBERS.items() if title.startswith(start)), None)
            if member is not None:
                found[member] = status_mib(process.pid, "VmHWM")
    return found


def _family(head: RayHead) -> list[psutil.Process]:
    root = head.process.find()
    return [] if root is None else root.children(recursive=True)


if __name__ == "__main__":
    main()
