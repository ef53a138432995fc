"""The reporter against a control plane of gRPC's own, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from athanor.v1 import worker_service_pb2
from attempts import written_attempt
from worker_service import ControlPlane, serving

from cluster.driver.attempt import CANCELLED, Attempt, ended
from cluster.driver.line import CHANNEL_OPTIONS
from cluster.driver.listener import WorkerListener
from cluster.driver.reporting import Order, Reporter
from cluster.settings import Settings

CONTINUE, CANCEL = worker_service_pb2.DIRECTIVE_CONTINUE, worker_service_pb2.DIRECTIVE_CANCEL


@pytest.fixture
def control_plane() -> ControlPlane:
    return ControlPlane()


@pytest.fixture
def attempt(tmp_path: Path, control_plane: ControlPlane) -> Iterator[Attempt]:
    with serving(control_plane) as port:
        yield written_attempt(tmp_path, control_plane=f"127.0.0.1:{port}")


def test_a_heartbeat_names_the_attempt_and_its_lease(attempt: Attempt, control_plane: ControlPlane) -> None:
    Reporter(attempt, list.append).tell()
    request = control_plane.told.get(timeout=5)
    assert isinstance(request, worker_service_pb2.HeartbeatRequest)
    assert (request.attempt.job_uid, request.attempt.attempt, request.attempt.lease_token) == (
        "bot-abcdefgh",
        1,
        "secret",
    )


def test_progress_and_events_are_told_once(attempt: Attempt, control_plane: ControlPlane) -> None:
    listener, reporter = WorkerListener(attempt, 0, clock=lambda: 7.0), Reporter(attempt, list.append)
    listener.progress("student", 3, 9, tokens=30, loss=1.5, eta_s=2.5)
    listener.event("CHECKPOINT_WRITTEN", "step 3")
    reporter.tell()
    reporter.tell()
    first, second = control_plane.told.get(timeout=5), control_plane.told.get(timeout=5)
    assert (first.progress.stage, first.progress.step, first.progress.total_steps) == ("train", 3, 9)
    assert (first.progress.loss, first.progress.tokens, first.progress.eta.ToMicroseconds()) == (1.5, 30, 2_500_000)
    assert first.progress.update_time.ToSeconds() == 7
    assert [(event.reason, event.message) for event in first.events] == [("CHECKPOINT_WRITTEN", "step 3")]
    assert isinstance(second, worker_service_pb2.HeartbeatRequest)


def test_progress_of_an_attempt_before_is_not_told_as_its_own(attempt: Attempt, control_plane: ControlPlane) -> None:
    WorkerListener(attempt, 0).progress("student", 8, 9, eta_s=2.5)
    reporter = Reporter(attempt, list.append, interval_s=0.01)
    reporter.start()
    assert isinstance(control_plane.told.get(timeout=5), worker_service_pb2.HeartbeatRequest)
    WorkerListener(attempt, 0).progress("student", 5, 9)
    reporter.stop()
    told = [control_plane.told.get(timeout=5) for _ in range(control_plane.told.qsize())]
    steps = [each.progress.step for each in told if isinstance(each, worker_service_pb2.ReportProgressRequest)]
    assert steps == [5]


def test_a_job_whose_settings_cannot_be_read_has_a_heartbeat(tmp_path: Path, control_plane: ControlPlane) -> None:
    with serving(control_plane) as port:
        attempt = written_attempt(tmp_path, control_plane=f"127.0.0.1:{port}", spec={"magic": True})
        Reporter(attempt, list.append).tell()
    assert isinstance(control_plane.told.get(timeout=5), worker_service_pb2.HeartbeatRequest)


def test_a_loss_that_is_not_known_is_absent(attempt: Attempt, control_plane: ControlPlane) -> None:
    WorkerListener(attempt, 0).progress("prepare", 0, 1)
    Reporter(attempt, list.append).tell()
    assert not control_plane.told.get(timeout=5).progress.HasField("loss")


@pytest.mark.parametrize(
    ("directive", "token", "order"), [(CANCEL, "secret", Order.CANCEL), (CONTINUE, "other", Order.LEASE_LOST)]
)
def test_orders_are_handed_on(attempt, control_plane, directive, token, order) -> None:
    control_plane.directive, control_plane.token = directive, token
    orders: SimpleQueue[Order] = SimpleQueue()
    reporter = Reporter(attempt, orders.put)
    reporter.start()
    assert orders.get(timeout=5) == order
    reporter.stop()


def test_what_was_not_heard_is_told_when_the_control_plane_is_back(tmp_path: Path, control_plane: ControlPlane) -> None:
    with serving(control_plane) as port:
        attempt = written_attempt(tmp_path, control_plane=f"127.0.0.1:{port}")
    orders: list[Order] = []
    reporter = Reporter(attempt, orders.append, interval_s=0.01)
    WorkerListener(attempt, 0).event("CHECKPOINT_WRITTEN", "step 3")
    reporter.tell()
    assert control_plane.told.empty()
    reporter.start()
    with serving(control_plane, port):
        request = control_plane.told.get(timeout=30)
        reporter.stop()
    assert [event.message for event in request.events] == ["step 3"]
    assert orders == []


def test_the_terminal_record_arrives(attempt: Attempt, control_plane: ControlPlane) -> None:
    record = ended(CANCELLED, "CANCELLED", "ended by request")
    assert Reporter(attempt, list.append).report_terminal(record)
    assert control_plane.told.get(timeout=5).record == record


def test_a_terminal_record_that_nobody_takes_is_no_error(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path, control_plane="127.0.0.1:9")
    assert not Reporter(attempt, list.append).report_terminal(ended(CANCELLED), patience_s=0.0)


@pytest.mark.parametrize("written", ['{"stage": ', "{}", "7"])
def test_what_cannot_be_read_costs_no_heartbeat(attempt: Attempt, control_plane: ControlPlane, written: str) -> None:
    attempt.ctx.progress_path.write_text(written)
    Reporter(attempt, list.append).tell()
    assert isinstance(control_plane.told.get(timeout=5), worker_service_pb2.HeartbeatRequest)
    attempt.ctx.progress_path.unlink()
    attempt.ctx.progress_path.mkdir()
    Reporter(attempt, list.append).tell()
    assert isinstance(control_plane.told.get(timeout=5), worker_service_pb2.HeartbeatRequest)


def test_a_control_plane_that_is_back_hears_of_its_drivers_within_a_lease() -> None:
    options = dict(CHANNEL_OPTIONS)
    assert options["grpc.max_reconnect_backoff_ms"] < Settings().lease_s * 1000 / 2
    assert options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"] < Settings().lease_s * 1000
    assert options["grpc.enable_http_proxy"] == 0
