"""What ends an attempt when a thread of its driver fails: nothing may die unseen while heartbeats go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from attempts import written_attempt
from ray.exceptions import RayError

from cluster.driver import supervise
from cluster.driver.attempt import INFRASTRUCTURE_ERROR, Attempt
from cluster.driver.supervise import Supervisor


def supervisor(tmp_path: Path) -> Supervisor:
    return Supervisor(written_attempt(tmp_path))


def test_any_failure_of_the_training_thread_ends_the_attempt(tmp_path, monkeypatch):
    def fails(_attempt: Attempt) -> None:
        raise OSError("the storage is read-only")

    monkeypatch.setattr(supervise, "train_students", fails)
    this = supervisor(tmp_path)
    this._train()
    with pytest.raises(OSError, match="read-only"):
        this._first_end()


def test_lost_workers_are_an_infrastructure_error(tmp_path, monkeypatch):
    def fails(_attempt: Attempt) -> None:
        raise RayError("a node is gone")

    monkeypatch.setattr(supervise, "train_students", fails)
    this = supervisor(tmp_path)
    this._train()
    record = this._first_end()
    assert record is not None
    assert (record.outcome, record.reason) == (INFRASTRUCTURE_ERROR, "WORKER_LOST")
