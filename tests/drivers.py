"""Attempts on disk, drivers as processes of their own, as Ray's job supervisor starts them, and what they started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from athanor.v1.worker_service_pb2 import TerminalRecord

from cluster.driver.attempt import Attempt, read_record

DEADLINE_S = 300.0
UID = "bot-abcdefgh"

# A model so small that an attempt is over in seconds once its processes are there.
STUDENT = {
    "config": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    }
}
TRAINING = {"max_steps": 12, "batch_tokens": 256, "micro_batch_tokens": 128, "precision": "fp32", "logging_steps": 1}


def write_attempt(
    root: Path, spec: dict[str, Any], number: int = 1, control_plane: str = "127.0.0.1:9", **fields: Any
) -> Attempt:
    """For a control plane that nobody runs, unless one is named."""
    storage = root / "storage"
    path = storage / "jobs" / UID / "attempts" / str(number) / "attempt.json"
    path.parent.mkdir(parents=True)
    document = {
        "job_uid": UID,
        "attempt": number,
        "lease_token": "secret",
        "control_planes": [control_plane],
        "kind": "Distill" if "teachers" in spec else "FineTune",
        "name": "bot",
        "spec": spec,
        "models": {},
        "storage": str(storage),
        "publish_dir": str(storage / "models" / "bot" / UID) if "publish" in spec else "",
    }
    path.write_text(json.dumps(document | fields))
    return Attempt.load(path)


class Driver:
    """`python -m cluster.driver` for one attempt, as a process."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        command = [sys.executable, "-m", "cluster.driver", "--attempt-file", str(attempt.path)]
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def ended(self) -> TerminalRecord | None:
        """The terminal record, when the driver has ended."""
        code = self.process.wait(DEADLINE_S)
        assert code == 0, f"exit {code}\n{self.log}"
        return read_record(self.attempt.terminal_path)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Waits for it while the driver lives."""
        until(lambda: condition() or self.process.poll() is not None, what)
        assert self.process.poll() is None, f"ended before: {what}\n{self.log}"

    @property
    def _output(self) -> Path:
        return self.attempt.path.with_name("output.txt")

    @property
    def log(self) -> str:
        """All that it printed, which is more than the log holds when it ends badly."""
        return self._output.read_text()


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not seen: {what}"
        time.sleep(0.05)


def actors_of(class_name: str) -> list[psutil.Process]:
    """Processes of this test's cluster that are actors of this class now."""
    return [process for process in psutil.process_iter() if _title(process).startswith(f"ray::{class_name}")]


def no_actors() -> bool:
    return not any(actors_of(name) for name in ("RayTrainWorker", "TrainController", "TeacherShard", "TeacherGateway"))


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)


def _title(process: psutil.Process) -> str:
    """Its command line, if it belongs to the cluster that our environment names."""
    with suppress(psutil.Error):
        if process.environ().get("RAY_AUTH_TOKEN_PATH") == os.environ.get("RAY_AUTH_TOKEN_PATH"):
            return " ".join(process.cmdline())
    return ""
