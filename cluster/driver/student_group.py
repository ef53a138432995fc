"""The student group on Ray: Ray Train's workers, each of which runs the stages of learning, in lockstep with its peers.

Rank 0 also prepares the data before, and writes report and published model after: so the driver needs no torch.
A wrong job is written down for the driver, which then ends the run: Ray Train must not try it again. A lost worker is
Ray Train's affair: it starts all of them again, and every stage resumes from what lies in the job's directory.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
from athanor.v1.worker_service_pb2 import TerminalRecord

from cluster.driver.attempt import INFRASTRUCTURE_ERROR, SUCCEEDED, USER_ERROR, Attempt, ended, write_record
from cluster.driver.listener import WorkerListener
from cluster.driver.ray_train import run_workers
from cluster.driver.teacher_dispatch import TeacherLost
from trainer.errors import TrainerError, UserError
from trainer.spec import DistillSpec

_GROUP_RESTARTS = 2
"""Starts of lost workers within one attempt; more than that is the control plane's to decide, with a new attempt."""


def train_students(attempt: Attempt) -> None:
    """Returns when every worker is done; TrainingFailedError when they were lost too often."""
    ctx = attempt.ctx
    run_workers(
        work,
        {"attempt_file": str(attempt.path)},
        name=attempt.ray_name,
        storage=ctx.job_dir / "train",
        resources=ctx.spec.resources.student,
        max_failures=min(_GROUP_RESTARTS, ctx.spec.schedule.retries.infrastructure),
    )


def work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    attempt = Attempt.load(Path(config["attempt_file"]))
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    with outcome_of_errors(attempt, rank):
        _join_peers(attempt, rank, world)
        _learn(attempt, rank, world)
    ray.train.report({"rank": rank})


@contextmanager
def outcome_of_errors(attempt: Attempt, rank: int) -> Iterator[None]:
    """Errors that the same work would meet again are written down for the driver."""
    try:
        yield
    except UserError as error:
        traceback.print_exc()
        write_record(attempt.outcome_path(rank), ended(USER_ERROR, error.reason, str(error)))
        raise
    except (TrainerError, TeacherLost) as error:
        traceback.print_exc()
        write_record(attempt.outcome_path(rank), ended(INFRASTRUCTURE_ERROR, error.reason, str(error)))
        raise


def _join_peers(attempt: Attempt, rank: int, world: int) -> None:
    from cluster.driver import process_group

    process_group.use_threads(attempt.ctx.spec.resources.student.cpus_per_worker)
    if world == 1:
        return
    meeting = process_group.Meeting.open(ray.util.get_node_ip_address()) if rank == 0 else None
    address = ray.train.collective.broadcast_from_rank_zero(meeting and meeting.address)
    process_group.join(meeting or process_group.Meeting.find(address), rank, world)


def _learn(attempt: Attempt, rank: int, world: int) -> None:
    from cluster.driver.remote_teacher import RemoteTeacher
    from trainer.faculty import Faculty
    from trainer.peers import Peers
    from trainer.prepare import prepare
    from trainer.stages import run_stages

    listener = WorkerListener(attempt, rank)
    if rank == 0:
        listener.progress("prepare", 0, 1)
        prepare(attempt.ctx)
    ray.train.collective.barrier()
    spec, faculty = attempt.ctx.spec, None
    if isinstance(spec, DistillSpec):
        faculty = Faculty.of(spec, attempt.ctx.teachers, lambda index: RemoteTeacher.connect(index, world))
    run_stages(attempt.ctx, Peers(rank, world), faculty, listener)
    if rank == 0:
        listener.progress("publish", 0, 1)
        write_record(attempt.outcome_path(rank), _publish(attempt))


def _publish(attempt: Attempt) -> TerminalRecord:
    """Report and model, and the record that names them."""
    from trainer.publishing import publish_model
    from trainer.report import build_report

    ctx, record = attempt.ctx, ended(SUCCEEDED)
    report = build_report(ctx)
    record.report_path = str(report.html_path)
    record.summary.update(_summary(report.document))
    if attempt.publish_dir is not None:
        extra = {"name": attempt.document["name"], "report": _published(report.document)}
        record.model_manifest_sha256 = publish_model(ctx, ctx.model_dir("student"), attempt.publish_dir, extra)
        record.model_path = str(attempt.publish_dir)
    return record


_FINDINGS = ("headline", "retention", "retention_ci95", "gain", "gain_ci95")
_KEPT_BACK = ("examples", "spec")  # texts of the evaluation are nobody else's business; the spec has its own place


def _summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the job itself shows of its report: the figures of each role, and what follows from them."""
    found = {name: document[name] for name in _FINDINGS if name in document}
    return dict(json.loads(json.dumps({**document["metrics"], **found})))  # lists, as a Struct wants them


def _published(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the published model says of the report."""
    return {name: value for name, value in document.items() if name not in _KEPT_BACK}
