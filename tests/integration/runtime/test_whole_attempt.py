"""Whole attempts on a real Ray: every stage with a sharded teacher, and what ends them early."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from athanor.v1 import worker_service_pb2
from athanor.v1.worker_service_pb2 import ReportProgressRequest, ReportTerminalRequest, TerminalRecord
from drivers import STUDENT, Driver, no_actors, until, write_attempt
from worker_service import ControlPlane, serving

from cluster.driver.attempt import CANCELLED, INFRASTRUCTURE_ERROR, SUCCEEDED, USER_ERROR, Attempt
from cluster.ray_head import RayHead
from trainer.atomic import sha256_file

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Drive = Callable[[Attempt], Driver]


@pytest.fixture(scope="module")
def control_plane() -> Iterator[tuple[ControlPlane, str]]:
    fake = ControlPlane()
    with serving(fake) as port:
        yield fake, f"127.0.0.1:{port}"


@dataclass(frozen=True)
class Undisturbed:
    """An attempt that nothing happened to."""

    attempt: Attempt
    record: TerminalRecord
    told: list[Any]
    log: str


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: RayHead, distill_spec, tmp_path_factory) -> Undisturbed:
    fake, root = ControlPlane(), tmp_path_factory.mktemp("undisturbed")
    with serving(fake) as port:
        driver = Driver(write_attempt(root, distill_spec, control_plane=f"127.0.0.1:{port}"))
        record = driver.ended()
    assert record is not None, driver.log
    return Undisturbed(driver.attempt, record, drain(fake), driver.log)


def drain(fake: ControlPlane) -> list[Any]:
    told = []
    while True:
        try:
            told.append(fake.told.get_nowait())
        except Empty:
            return told


def weights(attempt: Attempt) -> str:
    return sha256_file(attempt.ctx.model_dir("student") / "model.safetensors")


def test_an_attempt_ends_with_a_published_model_and_a_report(undisturbed: Undisturbed) -> None:
    record, attempt = undisturbed.record, undisturbed.attempt
    assert record.outcome == SUCCEEDED, undisturbed.log
    assert record.model_path == str(attempt.publish_dir)
    assert record.model_manifest_sha256 == sha256_file(Path(record.model_path) / "athanor.json")
    assert sha256_file(Path(record.model_path) / "model.safetensors") == weights(attempt)
    assert Path(record.report_path).is_file()
    assert set(record.summary) >= {"teacher", "student", "baseline"}
    assert 0 <= record.summary["student"]["exact_match"] <= 1


def test_the_control_plane_hears_every_stage_and_the_end(undisturbed: Undisturbed) -> None:
    reports = [told for told in undisturbed.told if isinstance(told, ReportProgressRequest)]
    stages = list(dict.fromkeys(report.progress.stage for report in reports if report.HasField("progress")))
    order = ["prepare", "label", "train", "baseline", "evaluate", "publish"]
    assert stages[-1] == "publish"  # told at the end, whatever the time
    assert stages == [stage for stage in order if stage in stages]  # a report a second does not see the short ones
    events = [(event.reason, event.message) for report in reports for event in report.events]
    assert len(events) == len(set(events)) > 0
    assert isinstance(undisturbed.told[-1], ReportTerminalRequest)
    assert undisturbed.told[-1].record == undisturbed.record


def test_the_log_holds_what_the_workers_said(undisturbed: Undisturbed) -> None:
    assert "evaluate student" in undisturbed.log
    assert "teacher ready: 2 shard(s)" in undisturbed.log
    assert "Traceback" not in undisturbed.log


def test_every_option_of_training_and_packing_goes_with_every_other(
    distill_spec, tmp_path: Path, drive: Drive, control_plane: tuple[ControlPlane, str]
) -> None:
    """Two students under ZeRO-3 with all that can be asked of them at once."""
    options = {
        "zero_stage": 3,
        "offload_optimizer": "cpu",
        "gradient_checkpointing": True,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_ratio": 0.25,
        "decay_ratio": 0.5,
    }
    changes = {
        "data": distill_spec["data"] | {"packing_strategy": "wrapped"},
        "training": distill_spec["training"] | options,
        "objective": {},
    }
    driver = drive(write_attempt(tmp_path, distill_spec | changes, control_plane=control_plane[1]))
    record = driver.ended()
    assert record is not None, driver.log
    assert record.outcome == SUCCEEDED, driver.log
    lines = [json.loads(line) for line in driver.attempt.ctx.metrics_path("student").read_text().splitlines()]
    peak = driver.attempt.ctx.spec.training.learning_rate
    rates = [*(third / 3 for third in (1, 2, 3)), 1, 1, 1, *(sixth / 6 for sixth in (6, 5, 4, 3, 2, 1))]
    assert [line["learning_rate"] / peak for line in lines] == pytest.approx(rates)
    assert lines[-1]["loss"] < lines[0]["loss"]
    published = json.loads((Path(record.model_path) / "athanor.json").read_text())["spec"]
    assert published["training"].items() >= options.items()


def stage(attempt: Attempt) -> str | None:
    path = attempt.ctx.progress_path
    return json.loads(path.read_text())["stage"] if path.exists() else None


def test_a_wrong_job_is_the_users_error_and_tried_once(
    tmp_path: Path, data_dir: Path, drive: Drive, control_plane: tuple[ControlPlane, str]
) -> None:
    (tmp_path / "other.jsonl").write_text('{"question": "my card?"}\n')
    spec = {
        "student": STUDENT,
        "data": {"train": str(tmp_path / "other.jsonl")},
        "training": {"max_steps": 1},
        "resources": {"student": {"cpus_per_worker": 0.5}},
    }
    driver = drive(write_attempt(tmp_path, spec, control_plane=control_plane[1]))
    record = driver.ended()
    assert record is not None
    assert (record.outcome, record.reason) == (USER_ERROR, "COLUMN_MISSING"), driver.log
    assert "messages" in record.message
    assert not driver.attempt.ctx.prepared_dir.exists()


def test_a_spec_that_this_code_does_not_know_is_the_users_error(tmp_path: Path, endless_spec, drive: Drive) -> None:
    """No control plane is there to hear of it: the driver waits for one a while, and ends."""
    record = drive(write_attempt(tmp_path, endless_spec | {"magic": True})).ended()
    assert record is not None
    assert (record.outcome, record.reason) == (USER_ERROR, "INVALID_SPEC")
    assert "spec.magic" in record.message


def test_a_cancelled_attempt_says_so_and_leaves_nothing_running(
    tmp_path: Path, endless_spec, drive: Drive, control_plane: tuple[ControlPlane, str]
) -> None:
    fake, address = control_plane
    driver = drive(write_attempt(tmp_path, endless_spec, control_plane=address))
    driver.until(lambda: stage(driver.attempt) == "train", "learning")
    fake.directive = worker_service_pb2.DIRECTIVE_CANCEL
    record = driver.ended()
    fake.directive = worker_service_pb2.DIRECTIVE_CONTINUE
    assert record is not None
    assert record.outcome == CANCELLED
    until(no_actors, "all actors ended")


def test_an_attempt_that_lost_its_lease_ends_without_a_word(
    tmp_path: Path, endless_spec, drive: Drive, control_plane: tuple[ControlPlane, str]
) -> None:
    driver = drive(write_attempt(tmp_path, endless_spec, control_plane=control_plane[1], lease_token="stale"))
    assert driver.ended() is None
    until(no_actors, "all actors ended")


def test_a_terminated_driver_says_so(
    tmp_path: Path, endless_spec, drive: Drive, control_plane: tuple[ControlPlane, str]
) -> None:
    driver = drive(write_attempt(tmp_path, endless_spec, control_plane=control_plane[1]))
    driver.until(lambda: stage(driver.attempt) == "train", "learning")
    driver.process.terminate()
    record = driver.ended()
    assert record is not None
    assert (record.outcome, record.reason) == (INFRASTRUCTURE_ERROR, "DRIVER_TERMINATED")
