"""The student group on Ray: Ray Train's workers, each of which runs the stages of learning, in lockstep with its peers.

Rank 0 also prepares the data before, and writes report and published model after: so the driver needs no torch.
A wrong job is written down for the driver, which then ends the run: Ray Train must not try it again. A lost worker is
Ray Train's affair: it starts all of them again, and every stage resumes from what lies in the job's directory.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import ray.train.collective
from athanor.v1.worker_service_pb2 import TerminalRecord
from ray.exceptions import OutOfMemoryError, RayError
from ray.train import TrainingFailedError

from cluster.driver.attempt import (
    INFRASTRUCTURE_ERROR,
    PAUSED,
    SUCCEEDED,
    USER_ERROR,
    Attempt,
    ended,
    first_line,
    write_record,
)
from cluster.driver.listener import WorkerListener
from cluster.driver.ray_train import run_workers
from cluster.driver.teacher_dispatch import Policy, TeacherLost
from cluster.driver.teacher_plan import teacher_plans
from cluster.driver.tee import copy_output
from cluster.errors import ClusterError
from trainer.errors import TrainerError, UserError
from trainer.listener import Stopped
from trainer.secrets import log_in_to_hub
from trainer.spec import DistillSpec
from trainer.storage import storage_error

if TYPE_CHECKING:
    from cluster.driver.remote_teacher import RemoteTeacher

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
    copy_output(attempt.role_log_path("student", rank))
    with outcome_of_errors(attempt, rank):
        log_in_to_hub(attempt.ctx.spec.hub.token)
        _join_peers(attempt, rank, world)
        _learn(attempt, rank, world)
        ray.train.report({"rank": rank})


@contextmanager
def outcome_of_errors(attempt: Attempt, rank: int) -> Iterator[None]:
    """Errors that the same work would meet again are written down for the driver; a stop that was asked for is none."""
    try:
        yield
    except Stopped as stop:
        with suppress(OSError):
            sys.stdout.write(f"{stop}\n")
        if not _is_written_down(attempt, rank, stop):
            raise
    except (TrainerError, TeacherLost) as error:
        _write_down(attempt, rank, error)
        raise
    except OSError as error:
        found = storage_error(error, attempt.ctx.job_dir)
        if found is None:
            raise
        _write_down(attempt, rank, found)
        raise found from error


def record_of(error: TrainerError | ClusterError) -> TerminalRecord:
    """How an attempt ends that met this error."""
    if isinstance(error, Stopped):
        return ended(PAUSED, "PAUSED", str(error))
    outcome = USER_ERROR if isinstance(error, UserError) else INFRASTRUCTURE_ERROR
    return ended(outcome, error.reason, str(error))


def end_of_workers(error: TrainingFailedError) -> TerminalRecord:
    """What a worker knew and could not write down; else what Ray saw of the first that was lost."""
    raised: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    errors = [getattr(raised[rank], "health_check_failure", raised[rank]) for rank in sorted(raised)]
    known = [one for one in errors if isinstance(one, TrainerError | ClusterError)]
    if known:
        return record_of(known[0])
    lost = [one for one in errors if isinstance(one, RayError)]
    reason = "OUT_OF_MEMORY" if any(isinstance(one, OutOfMemoryError) for one in lost) else "WORKER_LOST"
    cause = (lost or errors or [error])[0]
    words = f"{type(cause).__name__}: {' '.join(str(cause).split())}" if lost else first_line(cause)
    return ended(INFRASTRUCTURE_ERROR, reason, words)


def _write_down(attempt: Attempt, rank: int, error: TrainerError | ClusterError) -> None:
    """Where a full disk takes not even this, the error itself tells the driver, when Ray Train gives up."""
    with suppress(OSError):
        traceback.print_exc()
    _is_written_down(attempt, rank, error)


def _is_written_down(attempt: Attempt, rank: int, error: TrainerError | ClusterError) -> bool:
    try:
        write_record(attempt.outcome_path(rank), record_of(error))
    except OSError:
        return False
    return True


def _join_peers(attempt: Attempt, rank: int, world: int) -> None:
    from cluster.driver import process_group

    process_group.use_threads(attempt.ctx.spec.resources.student.cpus_per_worker)
    if world == 1:
        return
    meeting = process_group.Meeting.open(ray.util.get_node_ip_address()) if rank == 0 else None
    address = ray.train.collective.broadcast_from_rank_zero(meeting and meeting.address)
    process_group.join(meeting or process_group.Meeting.find(address), rank, world)


def _learn(attempt: Attempt, rank: int, world: int) -> None:
    from trainer.faculty import Faculty
    from trainer.peers import Peers
    from trainer.stages import run_stages

    listener = WorkerListener(attempt, rank)
    if rank == 0:
        from trainer.prepare import prepare

        listener.progress("prepare", 0, 1)
        prepare(attempt.ctx)
    ray.train.collective.barrier()
    spec, faculty = attempt.ctx.spec, None
    if isinstance(spec, DistillSpec):
        policies = [plan.policy for plan in teacher_plans(attempt.ctx)]
        connect = partial(_teacher, policies, world)
        faculty = Faculty.of(spec, attempt.ctx.teachers, connect)
    run_stages(attempt.ctx, Peers(rank, world), faculty, listener)
    if rank == 0:
        listener.progress("publish", 0, 1)
        write_record(attempt.outcome_path(rank), _publish(attempt))


def _teacher(policies: Sequence[Policy], world: int, index: int) -> RemoteTeacher:
    from cluster.driver.remote_teacher import RemoteTeacher

    return RemoteTeacher.connect(index, world, policies[index])


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
