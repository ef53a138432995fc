"""A client of the last release against this server: it knows the messages of then, and no more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from control_plane import ControlPlane
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from check_protos import last_release, read_released


class OldClient:
    """Built from the descriptors of the release alone, in a pool of their own."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._pool = descriptor_pool.DescriptorPool()
        files = {file.name: file for file in read_released(last_release()).file}
        for name in files:
            self._add(files, name)

    def _add(self, files: dict[str, FileDescriptorProto], name: str) -> None:
        try:
            self._pool.FindFileByName(name)
        except KeyError:
            file = files.get(name) or _well_known(name)
            for dependency in file.dependency:
                self._add(files, dependency)
            self._pool.Add(file)

    async def ask(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer as the old client reads it."""
        service, _, short = method.partition("/")
        found = self._pool.FindServiceByName(f"athanor.v1.{service}").methods_by_name[short]
        asks, answers = (message_factory.GetMessageClass(each) for each in (found.input_type, found.output_type))
        call = self._channel.unary_unary(
            f"/athanor.v1.{service}/{short}",
            request_serializer=asks.SerializeToString,
            response_deserializer=answers.FromString,
        )
        answer = await call(json_format.ParseDict(request, asks(), descriptor_pool=self._pool), timeout=20)
        return json_format.MessageToDict(answer, preserving_proto_field_name=True, descriptor_pool=self._pool)


def _well_known(name: str) -> FileDescriptorProto:
    file = FileDescriptorProto()
    descriptor_pool.Default().FindFileByName(name).CopyToProto(file)
    return file


@pytest.fixture
def client(plane: ControlPlane) -> OldClient:
    return OldClient(plane.channel)


async def test_it_makes_sees_and_ends_jobs(plane: ControlPlane, client: OldClient) -> None:
    job = json_format.MessageToDict(plane.job_message(), preserving_proto_field_name=True)
    made = (await client.ask("JobService/CreateJob", {"job": job, "request_id": "old-1"}))["job"]
    again = (await client.ask("JobService/CreateJob", {"job": job, "request_id": "old-1"}))["job"]
    assert made["uid"] == again["uid"]
    assert "project" not in made, "the old client knows no projects"
    listed = (await client.ask("JobService/ListJobs", {"page_size": 10}))["jobs"]
    assert [each["uid"] for each in listed] == [made["uid"]]
    ended = (await client.ask("JobService/CancelJob", {"uid": made["uid"], "message": "enough"}))["job"]
    assert ended["state"] in ("JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED")


async def test_an_old_driver_holds_its_lease(plane: ControlPlane, client: OldClient) -> None:
    ref = await plane.started(await plane.create())
    attempt = {"job_uid": ref.job_uid, "attempt": ref.attempt, "lease_token": ref.lease_token}
    answer = await client.ask("WorkerService/Heartbeat", {"attempt": attempt})
    assert answer["directive"] == "DIRECTIVE_CONTINUE"
    assert "control_planes" not in answer


async def test_it_sees_the_server_and_an_empty_registry(client: OldClient) -> None:
    assert (await client.ask("ClusterService/GetServerInfo", {}))["store"] == "sqlite"
    assert await client.ask("ModelService/ListModelVersions", {}) == {}
