"""What people do with jobs that are there, over a real channel."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from athanor.v1 import job_pb2, job_service_pb2, worker_service_pb2
from control_plane import ControlPlane
from google.protobuf.field_mask_pb2 import FieldMask
from test_job_service import create, refused

from cluster.services.submission import MAX_SPEC_BYTES
from cluster.store.store import Store

FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
LARGE = {"student": {"workers": 64}}
"""More than there is: it stays in the queue."""


def update(uid: str, *mask: str, etag: str = "", **fields: Any) -> job_service_pb2.UpdateJobRequest:
    job = job_pb2.Job(uid=uid, **fields)
    return job_service_pb2.UpdateJobRequest(job=job, update_mask=FieldMask(paths=mask), etag=etag)


async def failed(plane: ControlPlane, **changes: Any) -> str:
    """A job that ended, with nothing left on Ray."""
    uid = await plane.create(**changes)
    await plane.finish(await plane.running(uid), worker_service_pb2.OUTCOME_USER_ERROR, reason="DATA_EMPTY")
    await released(plane, uid)
    return uid


async def released(plane: ControlPlane, uid: str) -> None:
    """A deletion is refused until the control plane knows that the processes are gone; so is nothing else."""
    store = Store.open(plane.settings.database_url)
    async with asyncio.timeout(30):
        while not all(attempt.released for attempt in store.get_job(uid).attempts):
            await asyncio.sleep(0.05)
    store.close()


async def test_update_changes_what_the_mask_names_and_nothing_else(plane: ControlPlane) -> None:
    uid = await plane.create(resources=LARGE)
    before = await plane.get(uid)
    request = update(uid, "labels", "priority", labels={"team": "care"}, priority=900)
    request.job.max_run_duration.seconds = 5
    job = (await plane.jobs.UpdateJob(request)).job
    assert (dict(job.labels), job.priority, job.HasField("max_run_duration")) == ({"team": "care"}, 900, False)
    job = (await plane.jobs.UpdateJob(update(uid, "max_run_duration", max_run_duration={"seconds": 60}))).job
    assert job.max_run_duration.seconds == 60
    job = (await plane.jobs.UpdateJob(update(uid, "max_run_duration", etag=job.etag))).job
    assert not job.HasField("max_run_duration")
    error = await refused(plane.jobs.UpdateJob(update(uid, "priority", etag=before.etag, priority=1)))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


@pytest.mark.parametrize(
    ("mask", "fields", "field"),
    [
        ([], {}, "update_mask"),
        (["spec"], {}, "update_mask"),
        (["priority"], {"priority": 1001}, "job.priority"),
        (["labels"], {"labels": {"ü": "x"}}, "job.labels['ü']"),
        (["max_run_duration"], {"max_run_duration": {"seconds": -1}}, "job.max_run_duration"),
        (["max_run_duration"], {"max_run_duration": {"seconds": 0}}, "job.max_run_duration"),
    ],
)
async def test_wrong_update_names_the_field(plane: ControlPlane, mask: list[str], fields: Any, field: str) -> None:
    error = await refused(plane.jobs.UpdateJob(update(await plane.create(), *mask, **fields)))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_UPDATE")
    assert field in error.fields


async def test_pause_and_resume_of_a_running_job(plane: ControlPlane) -> None:
    uid = await plane.create()
    ref = await plane.running(uid)
    request = job_service_pb2.PauseJobRequest(uid=uid, message="the cluster is needed")
    for _ in range(2):
        job = (await plane.jobs.PauseJob(request)).job
        assert (job.state, job.message) == (job_pb2.JOB_STATE_PAUSING, "admin: the cluster is needed")
    beat = await plane.workers.Heartbeat(worker_service_pb2.HeartbeatRequest(attempt=ref))
    assert beat.directive == worker_service_pb2.DIRECTIVE_PAUSE
    error = await refused(plane.jobs.ResumeJob(job_service_pb2.ResumeJobRequest(uid=uid)))
    assert (error.code, error.reason) == (FAILED_PRECONDITION, "JOB_PAUSING")
    await plane.finish(ref, worker_service_pb2.OUTCOME_PAUSED, message="after step 4")
    assert (await plane.get(uid)).state == job_pb2.JOB_STATE_PAUSED
    assert (await plane.jobs.PauseJob(request)).job.state == job_pb2.JOB_STATE_PAUSED
    for _ in range(2):
        await plane.jobs.ResumeJob(job_service_pb2.ResumeJobRequest(uid=uid))
    ref = await plane.running(uid)
    assert ref.attempt == 2
    await plane.finish(ref, worker_service_pb2.OUTCOME_SUCCEEDED)
    error = await refused(plane.jobs.PauseJob(request))
    assert (error.code, error.reason) == (FAILED_PRECONDITION, "JOB_ENDED")


async def test_a_job_that_waits_is_paused_at_once_and_can_be_cancelled_there(plane: ControlPlane) -> None:
    uid = await plane.create(resources=LARGE)
    job = (await plane.jobs.PauseJob(job_service_pb2.PauseJobRequest(uid=uid))).job
    assert job.state == job_pb2.JOB_STATE_PAUSED
    job = (await plane.jobs.ResumeJob(job_service_pb2.ResumeJobRequest(uid=uid))).job
    assert job.state == job_pb2.JOB_STATE_QUEUED
    await plane.jobs.PauseJob(job_service_pb2.PauseJobRequest(uid=uid))
    await plane.jobs.CancelJob(job_service_pb2.CancelJobRequest(uid=uid))
    await plane.until(uid, job_pb2.JOB_STATE_CANCELLED)


async def test_cancel_while_it_writes_its_checkpoint(plane: ControlPlane) -> None:
    uid = await plane.create()
    ref = await plane.running(uid)
    await plane.jobs.PauseJob(job_service_pb2.PauseJobRequest(uid=uid))
    await plane.jobs.CancelJob(job_service_pb2.CancelJobRequest(uid=uid))
    await plane.finish(ref, worker_service_pb2.OUTCOME_PAUSED)
    assert (await plane.get(uid)).state == job_pb2.JOB_STATE_CANCELLED


async def test_a_grace_of_nothing_has_ray_stop_the_driver_at_once(plane: ControlPlane) -> None:
    uid = await plane.create()
    await plane.running(uid)
    request = job_service_pb2.CancelJobRequest(uid=uid, grace_period={"seconds": 0})
    await plane.jobs.CancelJob(request)
    job = await plane.until(uid, job_pb2.JOB_STATE_CANCELLED)
    assert [attempt.reason for attempt in job.attempts] == ["CANCELLED"]
    wrong = job_service_pb2.CancelJobRequest(uid=uid, grace_period={"seconds": -1})
    assert "grace_period" in (await refused(plane.jobs.CancelJob(wrong))).fields


async def test_a_place_in_the_queue_is_shown_while_it_waits(plane: ControlPlane) -> None:
    uid = await plane.create(resources=LARGE)
    async with asyncio.timeout(30):
        while not (job := await plane.get(uid)).queue.position:
            await asyncio.sleep(0.05)
    assert (job.queue.reason, bool(job.queue.message)) == ("TOO_LARGE", True)
    (listed,) = (await plane.jobs.ListJobs(job_service_pb2.ListJobsRequest())).jobs
    assert listed.queue == job.queue


async def test_delete_takes_everything_but_the_published_model(plane: ControlPlane) -> None:
    uid = await plane.create()
    request = job_service_pb2.DeleteJobRequest(uid=uid)
    error = await refused(plane.jobs.DeleteJob(request))
    assert (error.code, error.reason) == (FAILED_PRECONDITION, "JOB_NOT_ENDED")
    model_dir = plane.settings.publish_dir("bot", uid)
    model_dir.mkdir(parents=True)
    await plane.finish(await plane.running(uid), worker_service_pb2.OUTCOME_SUCCEEDED, model_path=str(model_dir))
    await released(plane, uid)
    error = await refused(plane.jobs.DeleteJob(job_service_pb2.DeleteJobRequest(uid=uid, etag='"0"')))
    assert error.reason == "ETAG_MISMATCH"
    for _ in range(2):
        await plane.jobs.DeleteJob(request)
    error = await refused(plane.jobs.GetJob(job_service_pb2.GetJobRequest(uid=uid)))
    assert error.reason == "JOB_NOT_FOUND"
    assert not plane.settings.job_dir(uid).exists()
    assert model_dir.is_dir()


async def test_retry_is_a_new_job_and_the_same_one_for_the_same_request(plane: ControlPlane) -> None:
    uid = await failed(plane)
    await plane.jobs.GetJob(job_service_pb2.GetJobRequest(uid=uid))
    request = job_service_pb2.RetryJobRequest(uid=uid, request_id="again")
    first, second = [(await plane.jobs.RetryJob(request)).job for _ in range(2)]
    assert (first.uid, first.retry_of, first.spec) == (second.uid, uid, (await plane.get(uid)).spec)
    assert first.uid != uid
    other = job_service_pb2.RetryJobRequest(uid=uid, request_id="again", from_checkpoint=True)
    assert (await refused(plane.jobs.RetryJob(other))).reason == "REQUEST_ID_REUSED"
    going_on = job_service_pb2.RetryJobRequest(uid=first.uid)
    assert (await refused(plane.jobs.RetryJob(going_on))).reason == "JOB_NOT_FAILED"
    (plane.settings.home / "train.jsonl").unlink()
    error = await refused(plane.jobs.RetryJob(job_service_pb2.RetryJobRequest(uid=uid)))
    assert (error.reason, "spec.data.train" in error.fields) == ("INVALID_SPEC", True)
    assert (await plane.jobs.RetryJob(request)).job.uid == first.uid


async def test_retry_from_a_checkpoint_takes_it_along(plane: ControlPlane) -> None:
    uid = await failed(plane)
    request = job_service_pb2.RetryJobRequest(uid=uid, from_checkpoint=True)
    error = await refused(plane.jobs.RetryJob(request))
    assert (error.code, error.reason) == (FAILED_PRECONDITION, "CHECKPOINT_NOT_FOUND")
    place = "student/checkpoints/step-00000004/manifest.json"
    manifest = plane.settings.job_dir(uid) / place
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    job = (await plane.jobs.RetryJob(request)).job
    assert (plane.settings.job_dir(job.uid) / place).read_text() == "{}"
    ref = await plane.running(job.uid)
    assert ref.attempt == 1, "its own attempts are counted from the first"
    hidden = [path.name for path in (plane.settings.storage / "jobs").iterdir() if path.name.startswith(".")]
    assert hidden == []


@pytest.mark.parametrize(
    ("schedule", "field", "words"),
    [
        ({"depends_on": ["ghost-abcdefgh"]}, "spec.schedule.depends_on[0]", "no job"),
        ({"depends_on": ["x"]}, "spec.schedule.depends_on", ""),
        ({"hold_until": "tomorrow"}, "spec.schedule.hold_until", ""),
        ({"hold_until": "2026-11-01T00:00:00"}, "spec.schedule.hold_until", ""),
    ],
)
async def test_what_a_job_waits_for_must_be_there(plane: ControlPlane, schedule: Any, field: str, words: str) -> None:
    error = await refused(plane.jobs.CreateJob(create(plane.job_message(schedule=schedule))))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_SPEC")
    assert any(name.startswith(field) and words in said for name, said in error.fields.items()), error.fields


async def test_a_job_cannot_wait_for_one_that_failed(plane: ControlPlane) -> None:
    first = await plane.create("first")
    second = await plane.create("second", schedule={"depends_on": [first]})
    assert (await plane.get(second)).state == job_pb2.JOB_STATE_QUEUED
    gone = await failed(plane)
    error = await refused(plane.jobs.CreateJob(create(plane.job_message(schedule={"depends_on": [gone]}))))
    assert "never begin" in error.fields["spec.schedule.depends_on[0]"]


async def test_a_job_may_name_what_one_that_it_waits_for_will_publish(plane: ControlPlane) -> None:
    teacher = await plane.create("teacher", publish={"model": "teacher", "alias": "best"}, resources=LARGE)
    named = {"student": {"model": "teacher@best"}}
    error = await refused(plane.jobs.CreateJob(create(plane.job_message(**named))))
    assert (error.reason, "schedule.depends_on" in error.fields["spec.student.model"]) == ("MODEL_NOT_FOUND", True)
    wish = plane.job_message("student", **named, schedule={"depends_on": [teacher]})
    await plane.jobs.CreateJob(create(wish, validate_only=True))
    student = (await plane.jobs.CreateJob(create(wish))).job
    assert dict(student.resolved_models) == {}
    await plane.jobs.CancelJob(job_service_pb2.CancelJobRequest(uid=student.uid))
    await plane.until(student.uid, job_pb2.JOB_STATE_CANCELLED)
    again = (await plane.jobs.RetryJob(job_service_pb2.RetryJobRequest(uid=student.uid))).job
    assert (again.state, dict(again.resolved_models)) == (job_pb2.JOB_STATE_QUEUED, {})
    await plane.jobs.CancelJob(job_service_pb2.CancelJobRequest(uid=teacher))
    job = await plane.until(again.uid, job_pb2.JOB_STATE_FAILED)
    assert job.reason == "DEPENDENCY_FAILED"


async def test_a_spec_has_a_bound(plane: ControlPlane) -> None:
    message = plane.job_message()
    message.spec["data"]["train"] = "x" * MAX_SPEC_BYTES
    error = await refused(plane.jobs.CreateJob(create(message)))
    assert (error.reason, "at most" in error.fields["spec"]) == ("SPEC_TOO_LARGE", True)


async def test_lists_by_filter_and_order_in_pages(plane: ControlPlane) -> None:
    for name, team, priority in (("one", "care", 100), ("two", "risk", 900), ("three", "care", 500)):
        message = plane.job_message(name, schedule={"priority": priority}, resources=LARGE)
        message.labels["team"] = team
        await plane.jobs.CreateJob(create(message))

    async def names(**fields: Any) -> list[str]:
        found, token = [], ""
        while True:
            request = job_service_pb2.ListJobsRequest(page_size=1, page_token=token, **fields)
            page = await plane.jobs.ListJobs(request)
            found += [job.name for job in page.jobs]
            token = page.next_page_token
            if not token:
                return found

    assert await names() == ["three", "two", "one"]
    assert await names(order_by="priority desc") == ["two", "three", "one"]
    assert await names(order_by="name") == ["one", "three", "two"]
    assert await names(filter='labels.team = "care" AND priority >= 500') == ["three"]
    assert await names(filter='labels.team != "care" OR priority < 200', order_by="create_time") == ["one", "two"]
    error = await refused(plane.jobs.ListJobs(job_service_pb2.ListJobsRequest(filter="colour = red")))
    assert (error.reason, "position 1" in error.fields["filter"]) == ("INVALID_FILTER", True)
    assert (await refused(plane.jobs.ListJobs(job_service_pb2.ListJobsRequest(order_by="x")))).reason == "INVALID_ORDER"
    first = await plane.jobs.ListJobs(job_service_pb2.ListJobsRequest(page_size=1, order_by="name"))
    other = job_service_pb2.ListJobsRequest(page_size=1, order_by="name desc", page_token=first.next_page_token)
    assert (await refused(plane.jobs.ListJobs(other))).reason == "INVALID_PAGE_TOKEN"


async def test_events_in_pages_oldest_first(plane: ControlPlane) -> None:
    uid = await failed(plane)
    found, token = [], ""
    while True:
        request = job_service_pb2.ListJobEventsRequest(uid=uid, page_size=2, page_token=token)
        page = await plane.jobs.ListJobEvents(request)
        found += [event.reason for event in page.events]
        token = page.next_page_token
        if not token:
            break
    assert found == ["CREATED", "ADMITTED", "ATTEMPT_CREATED", "SUBMITTED", "RUNNING", "DATA_EMPTY"]


async def test_report_in_both_forms(plane: ControlPlane) -> None:
    uid = await plane.create(publish=None)
    ref = await plane.running(uid)
    request = job_service_pb2.GetJobReportRequest(uid=uid)
    error = await refused(plane.jobs.GetJobReport(request))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "REPORT_NOT_FOUND")
    page = plane.settings.job_dir(uid) / "report" / "report.html"
    page.parent.mkdir()
    page.write_text("<p>grüße</p>")
    page.with_suffix(".json").write_text('{"gain": 1}')
    await plane.finish(ref, worker_service_pb2.OUTCOME_SUCCEEDED, report_path=str(page))
    found = await plane.jobs.GetJobReport(request)
    assert (found.content_type, json.loads(found.content)) == ("application/json", {"gain": 1})
    request.format = job_service_pb2.REPORT_FORMAT_HTML
    found = await plane.jobs.GetJobReport(request)
    assert (found.content_type, found.content.decode()) == ("text/html; charset=utf-8", "<p>grüße</p>")
    page.write_bytes(b"x" * (3 * 1024 * 1024 + 1))
    error = await refused(plane.jobs.GetJobReport(request))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REPORT_TOO_LARGE")
    page.unlink()
    page.symlink_to(plane.settings.home / "train.jsonl")
    assert (await refused(plane.jobs.GetJobReport(request))).reason == "REPORT_NOT_FOUND"


async def test_logs_of_one_process_and_their_last_lines(plane: ControlPlane) -> None:
    uid = await plane.create()
    await plane.started(uid)
    attempt = plane.settings.job_dir(uid) / "attempts" / "1"
    (attempt / "driver.log").write_text("a\nb\nc\n")
    (attempt / "logs").mkdir()
    (attempt / "logs" / "teacher-1.log").write_text("shard")

    async def log(**fields: Any) -> bytes:
        stream = plane.jobs.StreamJobLogs(job_service_pb2.StreamJobLogsRequest(uid=uid, **fields))
        return b"".join([piece.data async for piece in stream])

    assert await log(tail_lines=2) == b"b\nc\n"
    assert await log(role="driver", after_offset=4) == b"c\n"
    assert await log(role="teacher", rank=1) == b"shard"
    error = await refused(log(role="student"))
    assert (error.reason, "teacher-1" in error.message) == ("LOG_NOT_FOUND", True)
    for fields, field in (
        ({"role": "../../../etc/passwd"}, "role"),
        ({"rank": -1}, "rank"),
        ({"tail_lines": 1, "after_offset": 1}, "tail_lines"),
        ({"attempt": -1}, "attempt"),
        ({"after_offset": -1}, "after_offset"),
    ):
        error = await refused(log(**fields))
        assert (error.reason, field in error.fields) == ("INVALID_LOG_REQUEST", True)


async def test_figures_are_followed_to_the_end_of_the_job(plane: ControlPlane) -> None:
    uid = await plane.create()
    ref = await plane.running(uid)
    path = plane.settings.job_dir(uid) / "student" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text('{"step": 1, "loss": 2.5, "terms": {"kd": 1}}\n')
    stream = plane.jobs.StreamJobMetrics(job_service_pb2.StreamJobMetricsRequest(uid=uid, follow=True))
    async with asyncio.timeout(30):
        first = await stream.read()
        assert (first.step, first.figures["loss"], first.figures["terms"]["kd"]) == (1, 2.5, 1)
        path.write_text('{"step": 1, "loss": 9}\n')
        second = await stream.read()
        assert (second.step, second.figures["loss"], second.rewound) == (1, 9, True)
        await plane.finish(ref, worker_service_pb2.OUTCOME_USER_ERROR)
        assert await stream.read() is grpc.aio.EOF
    wrong = job_service_pb2.StreamJobMetricsRequest(uid=uid, role="teacher")
    assert "role" in (await refused(plane.jobs.StreamJobMetrics(wrong).read())).fields
