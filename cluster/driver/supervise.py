"""The life of one attempt: start the groups, wait for the first thing that ends it, write down how it ended.

An attempt ends when its students are done, when a worker wrote down why it cannot go on, when the control plane orders
it, or when this process is told to terminate. Whatever comes first wins; Ray then ends all actors with their driver.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import traceback
from typing import Any

import ray
from athanor.v1.worker_service_pb2 import TerminalRecord
from ray.exceptions import RayError
from ray.train import TrainingFailedError

from cluster.driver.attempt import (
    CANCELLED,
    INFRASTRUCTURE_ERROR,
    PAUSED,
    SUCCEEDED,
    USER_ERROR,
    Attempt,
    ended,
    first_line,
    read_record,
    write_record,
)
from cluster.driver.demand import shortage
from cluster.driver.listener import write_event
from cluster.driver.reporting import Order, Reporter
from cluster.driver.student_group import end_of_workers, record_of, train_students
from cluster.driver.teacher_group import TeacherGroup, start_teacher
from cluster.driver.teacher_plan import logged, teacher_plans
from cluster.lifecycle import DRIVER_TERMINATED
from trainer.errors import UserError
from trainer.secrets import log_in_to_hub
from trainer.storage import storage_error

log = logging.getLogger(__name__)

_POLL_S = 0.2
_TERMINATE = "TERMINATE"


class Supervisor:
    """One attempt."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._ends: queue.SimpleQueue[Order | str | Exception | None] = queue.SimpleQueue()
        self._reporter = Reporter(attempt, self._ends.put)
        self._teachers: list[TeacherGroup] = []
        self._students = threading.Thread(target=self._train, name="students", daemon=True)

    def run(self) -> int:
        """The exit code, when the end is on the storage, and reported if the control plane listens; 1 for a crash.

        The process must then end at once, by `os._exit`: Ray Train's thread may still wait for its workers, and would
        crash whoever tears Ray down under it.
        """
        self._reporter.start()
        code = 0
        try:
            record = self._work()
        except UserError as error:
            record = ended(USER_ERROR, error.reason, str(error))
        except (RayError, ConnectionError) as error:
            traceback.print_exc()
            record = ended(INFRASTRUCTURE_ERROR, "RAY_LOST", first_line(error))
        except Exception as error:  # noqa: BLE001  the process boundary: recorded, printed, and the exit code says so
            traceback.print_exc()
            record, code = self._crash(error), 1
        self._conclude(record)
        return code

    def _work(self) -> TerminalRecord | None:
        """None when nothing may be written any more."""
        for path in (*self._attempt.outcome_paths, self._attempt.pause_path, self._attempt.listening_path):
            path.unlink(missing_ok=True)
        ctx = self._attempt.ctx
        log_in_to_hub(ctx.spec.hub.token)
        ray.init(namespace=self._attempt.ray_name, logging_level=logging.WARNING, runtime_env=_workers_env())
        signal.signal(signal.SIGTERM, lambda *_: self._ends.put(_TERMINATE))
        if words := shortage(ctx.spec, ray.cluster_resources()):
            write_event(self._attempt.path.with_name("events-driver.jsonl"), "RESOURCES_SHORT", words)
        self._teachers = [start_teacher(plan) for plan in logged(teacher_plans(ctx), self._attempt)]
        self._students.start()
        return self._first_end()

    def _train(self) -> None:
        try:
            train_students(self._attempt)
            self._ends.put(None)
        except Exception as error:  # noqa: BLE001  a process boundary within: whatever ends the thread ends the attempt
            self._ends.put(error)

    def _first_end(self) -> TerminalRecord | None:
        while True:
            try:
                end = self._ends.get(timeout=_POLL_S)
            except queue.Empty:
                outcome = self._outcome()
                if outcome is not None and outcome.outcome != SUCCEEDED:
                    return outcome
                continue
            if end != Order.PAUSE:
                return self._record_of(end)
            if record := self._pause():
                return record

    def _pause(self) -> TerminalRecord | None:
        """The workers are told, and write down how they ended; where none listens yet, there is nothing to wait for."""
        self._attempt.pause_path.touch()
        if self._attempt.listening_path.exists():
            return None
        return ended(PAUSED, "PAUSED", "paused before anything was learned in this attempt")

    def _outcome(self) -> TerminalRecord | None:
        """What a worker wrote down, of several the lowest rank's; None while there is none."""
        return next(filter(None, map(read_record, self._attempt.outcome_paths)), None)

    def _record_of(self, end: Order | str | Exception | None) -> TerminalRecord | None:
        if end == Order.LEASE_LOST:
            return None
        if end == Order.CANCEL:
            return ended(CANCELLED, "CANCELLED", "ended by request")
        if end == _TERMINATE:
            return ended(INFRASTRUCTURE_ERROR, DRIVER_TERMINATED, "the driver was told to terminate")
        if isinstance(end, Exception) and not isinstance(end, TrainingFailedError | RayError):
            raise end
        if outcome := self._outcome():
            return outcome
        if isinstance(end, TrainingFailedError):
            return end_of_workers(end)
        lost = first_line(end) if isinstance(end, Exception) else "the workers ended without an outcome"
        return ended(INFRASTRUCTURE_ERROR, "WORKER_LOST", lost)

    def _crash(self, error: Exception) -> TerminalRecord:
        """Of this process itself; a storage that takes no more is called that."""
        job_dir = self._attempt.path.parents[2]
        found = storage_error(error, job_dir) if isinstance(error, OSError) else None
        return record_of(found) if found else ended(INFRASTRUCTURE_ERROR, "DRIVER_CRASHED", first_line(error))

    def _conclude(self, record: TerminalRecord | None) -> None:
        """The storage first, before anything that takes time: Ray kills a driver 3 s after it asked it to end.

        It is also where the control plane looks if the report does not reach it.
        """
        if record is not None:
            self._write_down(record)
        self._end_groups()
        if record is None:
            log.warning("another attempt owns this job; ending without a word")
            return
        self._reporter.stop()
        self._reporter.report_terminal(record)

    def _write_down(self, record: TerminalRecord) -> None:
        try:
            write_record(self._attempt.terminal_path, record)
        except OSError as error:
            log.warning("the terminal record cannot be written, only told: %s", error)

    def _end_groups(self) -> None:
        try:
            for teacher in self._teachers:
                teacher.stop()
            if not self._students.is_alive():
                ray.shutdown()
        except Exception:  # at the process boundary: the record is written, and told next
            log.exception("the groups were not ended; Ray ends them with this process")


def _workers_env() -> dict[str, Any]:
    variables = {
        "TORCHDYNAMO_DISABLE": "1",  # DeepSpeed would load torch's compiler for an optimizer that nobody uses
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait must not spin where teacher and students share cores
    }
    if address := os.environ.get("RAY_ADDRESS"):
        variables["RAY_ADDRESS"] = address  # Ray Train looks for the cluster by it, and fails where it finds several
    return {"env_vars": variables}
