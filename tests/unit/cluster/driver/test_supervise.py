"""What ends an attempt when a thread of its driver fails: nothing may die unseen while heartbeats go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from attempts import written_attempt
from full_disk import files_up_to
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from cluster.driver import supervise
from cluster.driver.attempt import CANCELLED, INFRASTRUCTURE_ERROR, PAUSED, Attempt
from cluster.driver.reporting import Order
from cluster.driver.student_group import outcome_of_errors
from cluster.driver.supervise import Supervisor
from trainer.errors import StorageError, UserError
from trainer.listener import Stopped


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


def test_the_record_is_on_the_storage_before_anything_that_takes_time(tmp_path, monkeypatch):
    """Ray kills a driver seconds after it asked it to end."""
    attempt = written_attempt(tmp_path)
    this, seen = Supervisor(attempt), []
    monkeypatch.setattr(this, "_work", lambda: this._record_of(supervise._TERMINATE))
    monkeypatch.setattr(this._reporter, "start", lambda: None)
    for owner, name in ((supervise.ray, "shutdown"), (this._reporter, "stop")):
        monkeypatch.setattr(owner, name, lambda name=name: seen.append((name, attempt.terminal_path.exists())))
    monkeypatch.setattr(this._reporter, "report_terminal", lambda record: seen.append((record.reason, True)))
    this.run()
    assert seen == [("shutdown", True), ("stop", True), ("DRIVER_TERMINATED", True)]


def test_a_storage_that_is_full_does_not_keep_the_record_back(tmp_path, monkeypatch):
    this, told = supervisor(tmp_path), []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(supervise, "write_record", full)
    monkeypatch.setattr(this._reporter, "stop", lambda: None)
    monkeypatch.setattr(this._reporter, "report_terminal", told.append)
    this._conclude(supervise.ended(INFRASTRUCTURE_ERROR, "DRIVER_CRASHED"))
    assert [record.reason for record in told] == ["DRIVER_CRASHED"]


def test_each_rank_writes_its_own_outcome_and_the_first_readable_one_counts(tmp_path):
    attempt = written_attempt(tmp_path)
    this = Supervisor(attempt)
    assert this._outcome() is None
    attempt.outcome_path(0).write_text('{"outcome": "OUTCOME_USER_')
    assert this._outcome() is None, "not there yet"
    for rank in (1, 2):
        with pytest.raises(UserError), outcome_of_errors(attempt, rank):
            raise UserError("NON_FINITE_LOSS", f"rank {rank}")
    assert len(attempt.outcome_paths) == 3
    record = this._first_end()
    assert (record.reason, record.message) == ("NON_FINITE_LOSS", "rank 1")


def test_a_full_disk_is_called_that_and_not_a_lost_worker(tmp_path):
    attempt = written_attempt(tmp_path)
    with pytest.raises(StorageError), outcome_of_errors(attempt, 0):
        Path("/dev/full").write_text("word")
    record = Supervisor(attempt)._first_end()
    assert record is not None
    assert (record.outcome, record.reason) == (INFRASTRUCTURE_ERROR, "STORAGE_FULL")
    assert record.message.startswith(f"{attempt.ctx.job_dir} cannot be written: No space left on device.")


def test_other_system_errors_are_left_to_ray_train(tmp_path):
    attempt = written_attempt(tmp_path)
    with pytest.raises(FileNotFoundError), outcome_of_errors(attempt, 0):
        (tmp_path / "nowhere").read_text()
    assert attempt.outcome_paths == []


def test_where_not_even_the_outcome_can_be_written_the_worker_tells_it(tmp_path, monkeypatch):
    attempt = written_attempt(tmp_path)
    with files_up_to(10), pytest.raises(StorageError) as caught, outcome_of_errors(attempt, 1):
        raise StorageError("STORAGE_FULL", "step 4 cannot be written")
    assert attempt.outcome_paths == []

    record = end_of(tmp_path, monkeypatch, {1: caught.value})
    assert (record.outcome, record.reason) == (INFRASTRUCTURE_ERROR, "STORAGE_FULL")
    assert record.message == "step 4 cannot be written"


def end_of(tmp_path, monkeypatch, failures):
    """How an attempt ends whose workers failed so too often."""

    def fails(_attempt: Attempt) -> None:
        raise WorkerGroupError("[Rank 0] ...", failures)

    monkeypatch.setattr(supervise, "train_students", fails)
    this = supervisor(tmp_path / "other")
    this._train()
    return this._first_end()


def test_of_a_lost_worker_ray_says_why_and_not_those_whom_it_left_behind(tmp_path, monkeypatch):
    left_behind = RuntimeError("Connection closed by peer")
    lost = WorkerHealthCheckFailedError("A worker health check failed.", failure=ActorDiedError())
    record = end_of(tmp_path, monkeypatch, {0: left_behind, 1: lost})
    assert (record.outcome, record.reason) == (INFRASTRUCTURE_ERROR, "WORKER_LOST")
    assert record.message.startswith("ActorDiedError: The actor died unexpectedly")
    record = end_of(tmp_path / "again", monkeypatch, {0: left_behind})
    assert (record.reason, record.message) == ("WORKER_LOST", "RuntimeError: Connection closed by peer")


def test_memory_that_ran_out_is_called_that(tmp_path, monkeypatch):
    words = "Task was killed due to the node running low on memory.\nMemory on the node was 12.9GB / 13GB."
    lost = WorkerHealthCheckFailedError("A worker health check failed.", failure=OutOfMemoryError(words))
    record = end_of(tmp_path, monkeypatch, {0: RuntimeError("Connection closed by peer"), 1: lost})
    assert (record.outcome, record.reason) == (INFRASTRUCTURE_ERROR, "OUT_OF_MEMORY")
    assert record.message == f"OutOfMemoryError: {' '.join(words.split())}"


def test_a_pause_before_anybody_listens_ends_the_attempt_at_once(tmp_path):
    attempt = written_attempt(tmp_path)
    this = Supervisor(attempt)
    this._ends.put(Order.PAUSE)
    record = this._first_end()
    assert record is not None
    assert (record.outcome, record.reason) == (PAUSED, "PAUSED")
    assert attempt.pause_path.exists(), "whoever begins meanwhile stops too"


def test_a_pause_waits_for_the_workers_and_their_checkpoint(tmp_path, capsys):
    attempt = written_attempt(tmp_path)
    this = Supervisor(attempt)
    attempt.listening_path.touch()
    for _ in range(3):
        this._ends.put(Order.PAUSE)  # it is told with every report
    with outcome_of_errors(attempt, 0):
        raise Stopped("STOPPED", "student did so after step 4")
    assert capsys.readouterr() == ("student did so after step 4\n", ""), "nobody made a mistake"
    record = this._first_end()
    assert record is not None
    assert (record.outcome, record.reason, record.message) == (PAUSED, "PAUSED", "student did so after step 4")


def test_a_pause_that_cannot_be_written_down_is_told_by_the_worker(tmp_path, monkeypatch):
    attempt = written_attempt(tmp_path)
    with files_up_to(10), pytest.raises(Stopped) as caught, outcome_of_errors(attempt, 0):
        raise Stopped("STOPPED", "student did so after step 4")
    assert end_of(tmp_path, monkeypatch, {0: caught.value}).reason == "PAUSED"


def test_a_cancellation_does_not_wait_for_a_pause(tmp_path):
    attempt = written_attempt(tmp_path)
    this = Supervisor(attempt)
    attempt.listening_path.touch()
    for order in (Order.PAUSE, Order.CANCEL):
        this._ends.put(order)
    record = this._first_end()
    assert record is not None
    assert record.outcome == CANCELLED
