"""The client: no change is lost or seen twice, what is safe is repeated, every call has a deadline."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import grpc
import pytest
from athanor.v1 import deployment_service_pb2, job_pb2, model_service_pb2
from fake_server import FakeControlPlane, change, serving

from cluster.client import AthanorClient
from cluster.rpc import NotFinished, RequestFailed

MANIFEST = {"kind": "Distill", "metadata": {"name": "bot", "labels": {"team": "care"}}, "spec": {"steps": 3}}


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def client(plane: FakeControlPlane) -> Iterator[AthanorClient]:
    server, address = serving(plane)
    with AthanorClient(address, patience_s=20.0) as client:
        yield client
    server.stop(None).wait()


def test_create_carries_the_file_and_a_request_id(client: AthanorClient, plane: FakeControlPlane) -> None:
    job = client.create_job(MANIFEST)
    (request,) = plane.created
    assert job.uid == "bot-abcdefgh"
    assert (request.job.kind, request.job.name, dict(request.job.labels)) == ("Distill", "bot", {"team": "care"})
    assert request.job.spec["steps"] == 3
    assert request.request_id


def test_a_repeated_create_says_the_same_request_id(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.unavailable_times = 2
    client.create_job(MANIFEST)
    assert len(plane.created) == 3
    assert len({request.request_id for request in plane.created}) == 1


def test_a_rollback_is_not_asked_for_twice(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.unavailable_times = 1
    with pytest.raises(RequestFailed) as failure:
        client.rollback_deployment("bot")
    assert failure.value.code is grpc.StatusCode.UNAVAILABLE
    assert len(plane.deadlines) == 1


def test_a_call_that_was_refused_unseen_is_asked_again_whatever_it_is(
    client: AthanorClient, plane: FakeControlPlane
) -> None:
    plane.limited_times = 2
    made = client.create_deployment(deployment_service_pb2.Deployment(name="bot", model="bot@1"))
    assert (made.name, len(plane.deadlines)) == ("bot", 3)
    plane.changes, plane.limited_times = [change(1, "SUCCEEDED")], 2
    assert client.wait_job("bot-abcdefgh").resource_version == 1


def test_who_has_less_patience_than_the_server_asks_for_is_told_at_once(plane: FakeControlPlane) -> None:
    server, address = serving(plane)
    plane.limited_times = 1
    with AthanorClient(address, patience_s=0.01) as client, pytest.raises(RequestFailed) as failure:
        list(client.list_jobs())
    server.stop(None).wait()
    assert (failure.value.reason, failure.value.retry_after_s) == ("RATE_LIMITED", 0.02)


def test_an_alias_move_under_a_condition_is_not_repeated(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.models["bot@1"] = model_service_pb2.ModelVersion(name="bot", version=1)
    plane.unavailable_times = 1
    with pytest.raises(RequestFailed):
        client.set_alias("bot", "champion", 1, expected_version=0)
    assert client.set_alias("bot", "champion", 1).aliases == ["champion"]


def test_every_call_has_a_deadline(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.changes = [change(1, "SUCCEEDED")]
    plane.jobs["bot-abcdefgh"] = plane.changes[0].job
    client.get_job("bot-abcdefgh")
    client.wait_job("bot-abcdefgh")
    list(client.stream_logs("bot-abcdefgh"))
    list(client.list_models())
    client.list_deployments()
    assert len(plane.deadlines) == 5
    assert all(deadline is not None and deadline < 1000 for deadline in plane.deadlines)


def test_a_cut_watch_goes_on_behind_what_was_seen(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.changes = [change(version, "RUNNING") for version in (3, 5, 8)] + [change(9, "SUCCEEDED")]
    plane.cut_after = {5, 8}
    seen = [each.job.resource_version for each in client.follow_job("bot-abcdefgh")]
    assert seen == [3, 5, 8, 9]
    assert plane.cursors == [0, 5, 8]


def test_logs_go_on_at_the_byte_where_they_were_cut(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.log = b"one two three four"
    plane.cut_after = {4, 12}
    assert b"".join(client.stream_logs("bot")) == plane.log
    assert plane.offsets == [0, 8, 16]


def test_a_wait_that_ends_first_says_so(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.changes = [change(1, "RUNNING")]
    with pytest.raises(NotFinished, match="goes on"):
        client.wait_job("bot-abcdefgh", timeout_s=0.3)


def test_pages_are_walked_through_up_to_the_limit(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.jobs = {f"bot-{number}": job_pb2.Job(uid=f"bot-{number}", name="bot") for number in range(5)}
    assert [job.uid for job in client.list_jobs()] == list(plane.jobs)
    assert [job.uid for job in client.list_jobs(limit=2)] == ["bot-0", "bot-1"]


def test_a_job_is_found_by_uid_or_by_name(client: AthanorClient, plane: FakeControlPlane) -> None:
    plane.jobs["bot-abcdefgh"] = job_pb2.Job(uid="bot-abcdefgh", name="bot")
    assert client.find_job("bot-abcdefgh").uid == "bot-abcdefgh"
    assert client.find_job("bot").uid == "bot-abcdefgh"
    with pytest.raises(RequestFailed) as failure:
        client.find_job("nobody")
    assert failure.value.code is grpc.StatusCode.NOT_FOUND
    assert failure.value.reason == "JOB_NOT_FOUND"


def test_wrong_fields_arrive_with_their_paths(client: AthanorClient) -> None:
    with pytest.raises(RequestFailed) as failure:
        client.create_job({**MANIFEST, "metadata": {"name": "refused"}})
    (violation,) = failure.value.violations
    assert (violation.path, violation.message) == ("spec.data.train", "there is no file /data/none.jsonl")
    assert failure.value.reason == "SPEC_INVALID"


def test_nobody_there_is_said_with_the_mend() -> None:
    with AthanorClient("127.0.0.1:1", patience_s=0.1) as client, pytest.raises(RequestFailed) as failure:
        client.get_job("bot")
    assert str(failure.value) == "no control plane at 127.0.0.1:1; start one with `athanor up`"


def test_the_error_survives_pickling() -> None:
    error = RequestFailed(grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", "there is no job")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.reason, str(copy)) == (error.code, error.reason, str(error))


def test_a_proxy_for_the_web_is_not_asked(plane: FakeControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server, address = serving(plane)
    with AthanorClient(address, patience_s=0.1) as client:
        assert list(client.list_jobs()) == []
    server.stop(None).wait()


def test_a_safe_call_that_was_too_slow_is_asked_once_more_however_long_it_took(plane: FakeControlPlane) -> None:
    server, address = serving(plane)
    plane.slow_times = 1
    with AthanorClient(address, patience_s=0.0) as client:
        assert list(client.list_jobs()) == []
        plane.slow_times = 2
        with pytest.raises(RequestFailed, match=f"no answer in time from {address}") as failure:
            list(client.list_jobs())
    server.stop(None).wait()
    assert failure.value.reason == "NO_ANSWER"
    assert len(plane.deadlines) == 4


def test_a_create_that_may_have_been_stored_names_its_request_id(plane: FakeControlPlane) -> None:
    server, address = serving(plane)
    plane.slow_times = 2
    with AthanorClient(address, patience_s=0.0) as client, pytest.raises(RequestFailed) as failure:
        client.create_job(MANIFEST)
    server.stop(None).wait()
    (request_id,) = {request.request_id for request in plane.created}
    assert f"may have been stored: submit again with --request-id {request_id}" in failure.value.message


def test_a_create_that_was_refused_speaks_of_no_request_id(client: AthanorClient) -> None:
    with pytest.raises(RequestFailed) as failure:
        client.create_job({**MANIFEST, "metadata": {"name": "refused"}})
    assert "--request-id" not in failure.value.message
