"""What the driver tells the control plane, about once a second, from a thread of its own: it lives, and how far it is.

A control plane that cannot be reached is no error: work goes on and the next report is tried. What comes back is one of
two orders, and both are handed to `on_end`; so is anything that ends the thread, for a silent driver looks lost.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from athanor.v1 import job_pb2, worker_service_pb2
from athanor.v1.worker_service_pb2 import AttemptRef, TerminalRecord

from cluster import rpc
from cluster.driver.attempt import Attempt
from cluster.driver.line import Line
from cluster.driver.listener import EventTail
from cluster.wire import progress_to_proto
from trainer.errors import SpecError

log = logging.getLogger(__name__)

_RPC_TIMEOUT_S = 5.0
_TERMINAL_PATIENCE_S = 20.0
_LEASE_LOST = "LEASE_LOST"


class Order(StrEnum):
    """What the control plane wants of this attempt, other than to go on; told with every report until it is done."""

    CANCEL = "CANCEL"
    PAUSE = "PAUSE"
    """Write a checkpoint, then end."""
    LEASE_LOST = "LEASE_LOST"
    """Another attempt owns the job: end at once, write nothing more."""


_ORDERS = {
    worker_service_pb2.DIRECTIVE_CANCEL: Order.CANCEL,
    worker_service_pb2.DIRECTIVE_PAUSE: Order.PAUSE,
}


class Reporter:
    """Heartbeats until it is stopped."""

    def __init__(
        self, attempt: Attempt, on_end: Callable[[Order | Exception], None], *, interval_s: float = 1.0
    ) -> None:
        self._attempt = attempt
        self._on_end = on_end
        self._interval_s = interval_s
        self._ref = AttemptRef(job_uid=attempt.job_uid, attempt=attempt.number, lease_token=attempt.lease_token)
        self._line = Line(attempt.control_planes, attempt.tls)
        self._events = EventTail(attempt.path.parent)
        self._last_progress: dict[str, Any] | None = None
        self._is_cut = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """What an earlier attempt wrote of its progress is not told as this one's."""
        self._last_progress, _ = self._new_progress()
        self._thread.start()

    def stop(self) -> None:
        """Ends the heartbeat; what was not told yet is told now."""
        self._stopped.set()
        self._thread.join(timeout=2 * _RPC_TIMEOUT_S)
        self.tell()

    def report_terminal(self, record: TerminalRecord, *, patience_s: float = _TERMINAL_PATIENCE_S) -> bool:
        """Whether the control plane took it; if not, it finds the record on the storage."""
        request = worker_service_pb2.ReportTerminalRequest(attempt=self._ref, record=record)
        try:
            rpc.persist(
                lambda: self._line.call(lambda stub: stub.ReportTerminal(request, timeout=_RPC_TIMEOUT_S)),
                patience_s=patience_s,
            )
        except rpc.RequestFailed as error:
            log.warning("the terminal record lies in storage only: %s", error)
            return False
        finally:
            self._line.close()
        return True

    def tell(self) -> None:
        """One report: of progress and events if there are new ones, else the bare heartbeat."""
        try:
            directive = self._report()
        except rpc.RequestFailed as failure:
            self._not_heard(failure)
            return
        self._is_cut = False
        if directive in _ORDERS:
            self._on_end(_ORDERS[directive])

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self.tell()
                self._stopped.wait(self._interval_s)
        except Exception as error:  # noqa: BLE001  a process boundary within: whatever ends the thread ends the attempt
            self._on_end(error)

    def _report(self) -> worker_service_pb2.Directive.ValueType:
        events, progress, message = self._events.read(), *self._new_progress()
        if not events and message is None:
            beat = worker_service_pb2.HeartbeatRequest(attempt=self._ref)
            answer = self._line.call(lambda stub: stub.Heartbeat(beat, timeout=_RPC_TIMEOUT_S))
            self._line.learn(answer.control_planes)
            return answer.directive
        report = worker_service_pb2.ReportProgressRequest(
            attempt=self._ref,
            progress=message,
            events=[worker_service_pb2.WorkerEvent(**event) for event in events],
        )
        directive = self._line.call(lambda stub: stub.ReportProgress(report, timeout=_RPC_TIMEOUT_S)).directive
        self._events.confirm()
        self._last_progress = progress or self._last_progress
        return directive

    def _new_progress(self) -> tuple[dict[str, Any] | None, job_pb2.Progress | None]:
        """As it was written, and as it is told. What cannot be read is left out: the heartbeat goes on."""
        try:
            progress: dict[str, Any] = json.loads(self._attempt.ctx.progress_path.read_text())
            return (None, None) if progress == self._last_progress else (progress, progress_to_proto(progress))
        except (FileNotFoundError, SpecError):  # nothing has begun, or can begin
            return None, None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("progress cannot be read: %r", error)
            return None, None

    def _not_heard(self, failure: rpc.RequestFailed) -> None:
        if failure.reason == _LEASE_LOST:
            self._on_end(Order.LEASE_LOST)
        elif not self._is_cut:
            self._is_cut = True
            log.warning("working on without the control plane: %s", failure)
