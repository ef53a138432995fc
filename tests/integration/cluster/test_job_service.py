"""JobService and WorkerService over a real channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from athanor.v1 import job_pb2, job_service_pb2, model_service_pb2, worker_service_pb2
from control_plane import ControlPlane
from google.protobuf import json_format, struct_pb2
from google.rpc import error_details_pb2, status_pb2

from cluster.store.store import Store


class Refused:
    """What an error says."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        self.reason, self.request_id = "", ""
        self.fields: dict[str, str] = {}
        for detail in status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details:
            self._read(detail)

    def _read(self, detail: Any) -> None:
        info, bad, request = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RequestInfo(),
        )
        if detail.Unpack(info):
            assert info.domain == "athanor.dev"
            self.reason = info.reason
        elif detail.Unpack(bad):
            self.fields = {each.field: each.description for each in bad.field_violations}
        elif detail.Unpack(request):
            self.request_id = request.request_id


async def refused(call: Awaitable[Any]) -> Refused:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Refused(caught.value)


def create(job: job_pb2.Job, **fields: Any) -> job_service_pb2.CreateJobRequest:
    return job_service_pb2.CreateJobRequest(job=job, **fields)


async def test_created_job_is_on_disk_with_its_resolved_spec(plane: ControlPlane) -> None:
    job = (await plane.jobs.CreateJob(create(plane.job_message()))).job
    store = Store.open(plane.settings.database_url)
    stored = store.get_job(job.uid)
    store.close()
    assert stored.spec["training"]["learning_rate"] == 3.0e-4, "defaults are in it"
    assert stored.spec["student"]["config"]["hidden_size"] == 64
    assert isinstance(stored.spec["student"]["config"]["hidden_size"], int)
    assert job.spec["training"]["max_steps"] == 5


async def test_repeated_request_gets_the_first_answer(plane: ControlPlane) -> None:
    request = create(plane.job_message(), request_id="r-1")
    first, second = [(await plane.jobs.CreateJob(request)).job for _ in range(2)]
    assert first.uid == second.uid
    (plane.settings.home / "train.jsonl").unlink()
    assert (await plane.jobs.CreateJob(request)).job.uid == first.uid, "even when it would not be right any more"
    error = await refused(plane.jobs.CreateJob(create(plane.job_message("other"), request_id="r-1")))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_validate_only_stores_nothing(plane: ControlPlane) -> None:
    answer = await plane.jobs.CreateJob(create(plane.job_message(), validate_only=True, request_id="r-1"))
    assert (answer.job.uid, answer.job.name) == ("", "bot")
    assert answer.job.spec["training"]["seed"] == 7
    assert not (await plane.jobs.ListJobs(job_service_pb2.ListJobsRequest())).jobs


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"training": {"max_steps": 5, "learning_rat": 1}}, "spec.training.learning_rat", "did you mean"),
        ({"training": {"max_steps": 5, "learning_rate": 99}}, "spec.training.learning_rate", "99"),
        ({"training": {"max_steps": "many"}}, "spec.training.max_steps", "many"),
        ({"data": {"train": "/nowhere/train.jsonl"}}, "spec.data.train", "/nowhere/train.jsonl"),
        ({"student": {"model": "ghost@champion"}}, "spec.student.model", "ghost"),
    ],
)
async def test_wrong_spec_names_the_field(plane: ControlPlane, changes: dict[str, Any], field: str, words: str) -> None:
    error = await refused(plane.jobs.CreateJob(create(plane.job_message(**changes))))
    assert error.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert error.reason in ("INVALID_SPEC", "MODEL_NOT_FOUND")
    assert words in error.fields[field]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "Bot"}, "metadata.name"),
        ({"name": ""}, "metadata.name"),
        ({"kind": "Distil"}, "kind"),
        ({"uid": "bot-1"}, "job.uid"),
        ({"labels": {"ü": "x"}}, "metadata.labels['ü']"),
        ({"labels": {"a": "${secret:HUB}"}}, "metadata.labels['a']"),
    ],
)
async def test_wrong_envelope_names_the_field(plane: ControlPlane, change: dict[str, Any], field: str) -> None:
    job = plane.job_message()
    job.MergeFrom(job_pb2.Job(**change))
    for name, value in change.items():
        if not value:
            job.ClearField(name)
    error = await refused(plane.jobs.CreateJob(create(job)))
    assert (error.code, field in error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_unknown_job(plane: ControlPlane) -> None:
    for call in (
        plane.jobs.GetJob(job_service_pb2.GetJobRequest(uid="bot-aaaaaaaa")),
        plane.jobs.CancelJob(job_service_pb2.CancelJobRequest(uid="../../etc")),
        plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(uid="x")).read(),
        plane.jobs.StreamJobLogs(job_service_pb2.StreamJobLogsRequest(uid="../x")).read(),
    ):
        error = await refused(call)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


async def test_our_own_mistake_is_internal_and_tells_nothing(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(Store, "get_job", fail)
    error = await refused(plane.jobs.GetJob(job_service_pb2.GetJobRequest(uid="x")))
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in error.message
    assert error.request_id in error.message


async def test_pages(plane: ControlPlane) -> None:
    uids = [await plane.create(name) for name in ("one", "two", "one")]
    first = await plane.jobs.ListJobs(job_service_pb2.ListJobsRequest(page_size=2))
    await plane.create("three")
    rest = await plane.jobs.ListJobs(job_service_pb2.ListJobsRequest(page_size=2, page_token=first.next_page_token))
    assert [job.uid for job in (*first.jobs, *rest.jobs)] == uids[::-1]
    assert rest.next_page_token == ""
    ones = await plane.jobs.ListJobs(job_service_pb2.ListJobsRequest(name="one"))
    assert [job.uid for job in ones.jobs] == [uids[2], uids[0]]
    wrong = job_service_pb2.ListJobsRequest(name="one", page_token=first.next_page_token)
    error = await refused(plane.jobs.ListJobs(wrong))
    assert (error.reason, "page_token" in error.fields) == ("INVALID_PAGE_TOKEN", True)


async def test_job_runs_and_publishes(plane: ControlPlane) -> None:
    uid = await plane.create()
    ref = await plane.running(uid)
    model_dir = plane.settings.publish_dir("bot", uid)
    model_dir.mkdir(parents=True)
    (model_dir / "athanor.json").write_text('{"report": {"parameters": {"student": 12}}}')
    summary = json_format.ParseDict({"student": {"exact_match": 0.9}}, struct_pb2.Struct())
    succeeded = worker_service_pb2.OUTCOME_SUCCEEDED
    report = str(plane.settings.job_dir(uid) / "report" / "report.html")
    await plane.finish(ref, succeeded, model_path=str(model_dir), report_path=report, summary=summary)
    job = await plane.get(uid)
    assert (job.state, job.published_model, job.report_path) == (job_pb2.JOB_STATE_SUCCEEDED, "bot@1", report)
    request = model_service_pb2.GetModelVersionRequest(reference="bot@champion")
    model = (await plane.models.GetModelVersion(request)).model_version
    assert (model.version, model.job_uid, model.num_parameters, list(model.aliases)) == (1, uid, 12, ["champion"])
    student = plane.job_message("next", student={"model": "bot@champion"})
    error = await refused(plane.jobs.CreateJob(create(student)))
    assert "spec.student.model" in error.fields, "the published directory is looked at"


async def test_cancel(plane: ControlPlane) -> None:
    uid = await plane.create()
    ref = await plane.running(uid)
    request = job_service_pb2.CancelJobRequest(uid=uid, message="a better idea")
    for _ in range(2):
        job = (await plane.jobs.CancelJob(request)).job
        assert (job.state, job.message) == (job_pb2.JOB_STATE_CANCELLING, "admin: a better idea")
    beat = await plane.workers.Heartbeat(worker_service_pb2.HeartbeatRequest(attempt=ref))
    assert beat.directive == worker_service_pb2.DIRECTIVE_CANCEL
    await plane.finish(ref, worker_service_pb2.OUTCOME_CANCELLED)
    assert (await plane.jobs.CancelJob(request)).job.state == job_pb2.JOB_STATE_CANCELLED
    error = await refused(plane.workers.Heartbeat(worker_service_pb2.HeartbeatRequest(attempt=ref)))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST")


async def _collect(stream: Any, count: int) -> list[Any]:
    async with asyncio.timeout(30):
        return [await stream.read() for _ in range(count)]


async def test_watch_goes_on_without_gap_or_double_wherever_it_was_cut(plane: ControlPlane) -> None:
    uid = await plane.create()
    ref = await plane.running(uid)
    for step in range(3):
        progress = job_pb2.Progress(stage="train", step=step)
        events = [worker_service_pb2.WorkerEvent(reason="NOTE", message=str(step))]
        await plane.workers.ReportProgress(
            worker_service_pb2.ReportProgressRequest(attempt=ref, progress=progress, events=events)
        )
    await plane.finish(ref, worker_service_pb2.OUTCOME_SUCCEEDED)
    everything = await _collect(plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(uid=uid)), 1)
    assert everything[0].job.state == job_pb2.JOB_STATE_SUCCEEDED
    history, cursor = [], 1
    while not history or history[-1].job.state != job_pb2.JOB_STATE_SUCCEEDED:
        stream = plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(uid=uid, after_resource_version=cursor))
        history += await _collect(stream, 1)
        stream.cancel()
        cursor = history[-1].job.resource_version
    versions = [each.job.resource_version for each in history]
    assert versions == sorted(set(versions))
    assert [each.event.message for each in history if each.event.reason == "NOTE"] == ["0", "1", "2"]
    assert history[0].job.state == job_pb2.JOB_STATE_ADMITTED, "the job as it was then"


async def test_watch_of_all_jobs_shows_each_once_and_then_what_changes(plane: ControlPlane) -> None:
    uids = {await plane.create() for _ in range(3)}
    stream = plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest())
    seen, late = list[job_service_pb2.WatchJobsResponse](), ""
    async with asyncio.timeout(30):
        while not {*uids, late} <= {each.job.uid for each in seen}:
            seen.append(await stream.read())
            if not late and uids <= {each.job.uid for each in seen}:
                late = await plane.create("late")
    # One that is admitted while the snapshot is read comes with that change instead.
    snapshot = [each.job.uid for each in seen if not each.HasField("event")]
    assert len(snapshot) == len(set(snapshot))
    assert {each.job.uid for each in seen} == {*uids, late}


async def test_watch_from_a_version_that_never_was(plane: ControlPlane) -> None:
    error = await refused(plane.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(after_resource_version=99)).read())
    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "RESOURCE_VERSION_UNKNOWN")


async def _log(plane: ControlPlane, uid: str, **fields: Any) -> tuple[bytes, int]:
    data, offset = b"", fields.get("after_offset", 0)
    async with asyncio.timeout(30):
        async for piece in plane.jobs.StreamJobLogs(job_service_pb2.StreamJobLogsRequest(uid=uid, **fields)):
            data += piece.data
            offset += len(piece.data)
            assert (piece.next_offset, piece.attempt) == (offset, 1)
    return data, offset


async def test_log_is_exact_to_the_byte_from_any_offset(plane: ControlPlane) -> None:
    uid = await plane.create()
    ref = await plane.started(uid)
    written = bytes(range(256)) * 1000 + "grüße\n".encode()
    (plane.settings.job_dir(uid) / "attempts" / "1" / "driver.log").write_bytes(written)
    assert await _log(plane, uid) == (written, len(written))
    for offset in (1, 65_536, 255_999, len(written)):
        assert (await _log(plane, uid, after_offset=offset, attempt=1))[0] == written[offset:]
    error = await refused(plane.jobs.StreamJobLogs(job_service_pb2.StreamJobLogsRequest(uid=uid, attempt=2)).read())
    assert error.reason == "ATTEMPT_NOT_FOUND"
    assert ref.lease_token not in json.dumps(str(await plane.get(uid)))


async def test_followed_log_ends_with_its_attempt_and_misses_nothing(plane: ControlPlane) -> None:
    uid = await plane.create()
    reading = asyncio.create_task(_log(plane, uid, follow=True))
    ref = await plane.running(uid)
    path = plane.settings.job_dir(uid) / "attempts" / "1" / "driver.log"
    written = b""
    for number in range(20):
        with path.open("ab") as file:
            file.write(line := f"step {number}\n".encode())
        written += line
        await asyncio.sleep(0)
    await plane.finish(ref, worker_service_pb2.OUTCOME_USER_ERROR)
    assert await reading == (written, len(written))
