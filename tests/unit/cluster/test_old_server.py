"""Today's client in front of a server of the last release, which knows the messages of then, and no more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from athanor.v1 import job_pb2
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from cluster.client import AthanorClient
from cluster.rpc import RequestFailed

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from check_protos import last_release, read_released

UID = "bot-abcdefgh"
RUNNING = {"uid": UID, "name": "bot", "kind": "Distill", "state": "JOB_STATE_RUNNING", "resource_version": "7"}
DONE = RUNNING | {"state": "JOB_STATE_SUCCEEDED", "resource_version": "9", "published_model": "bot@1"}
Answers = Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]


def pool_of_the_release() -> descriptor_pool.DescriptorPool:
    """Its messages and services, beside those of this one."""
    pool, files = descriptor_pool.DescriptorPool(), {file.name: file for file in read_released(last_release()).file}

    def add(name: str) -> None:
        file = files.get(name)
        if file is None:
            file = FileDescriptorProto()
            descriptor_pool.Default().FindFileByName(name).CopyToProto(file)
        for dependency in file.dependency:
            add(dependency)
        pool.Add(file)

    for name in files:
        add(name)
    return pool


class OldServer:
    """Answers what it is told to, to the methods of then, and remembers what it could read of each request."""

    def __init__(self, answers: Mapping[str, Answers]) -> None:
        self._pool = pool_of_the_release()
        self._answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        services = ("Job", "Model", "Deployment", "Cluster")
        self._server.add_generic_rpc_handlers([self._handler(f"athanor.v1.{name}Service") for name in services])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _handler(self, service: str) -> grpc.GenericRpcHandler:
        methods = self._pool.FindServiceByName(service).methods
        return grpc.method_handlers_generic_handler(service, {each.name: self._method(each) for each in methods})

    def _method(self, method: Any) -> grpc.RpcMethodHandler:
        asks, says = (message_factory.GetMessageClass(each) for each in (method.input_type, method.output_type))

        def stream(request: Any, context: Any) -> Iterator[Any]:
            read = json_format.MessageToDict(request, preserving_proto_field_name=True, descriptor_pool=self._pool)
            self.asked.append((method.name, read))
            for answer in self._answers[method.name](read):
                yield json_format.ParseDict(answer, says(), descriptor_pool=self._pool)

        def unary(request: Any, context: Any) -> Any:
            return next(stream(request, context))

        kinds = {"request_deserializer": asks.FromString, "response_serializer": says.SerializeToString}
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **kinds)
        return grpc.unary_unary_rpc_method_handler(unary, **kinds)


def watched(request: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Cut after each change, which say no resource version but the job's own."""
    return [{"job": DONE if int(request.get("after_resource_version", 0)) >= 7 else RUNNING}]


@pytest.fixture
def server() -> Iterator[OldServer]:
    server = OldServer(
        {
            "CreateJob": lambda request: [{"job": request["job"] | RUNNING}],
            "GetJob": lambda request: [{"job": RUNNING}],
            "ListJobs": lambda request: [{"jobs": [DONE]}],
            "WatchJobs": watched,
            "CancelJob": lambda request: [{"job": DONE}],
        }
    )
    yield server
    server.stop()


@pytest.fixture
def client(server: OldServer) -> Iterator[AthanorClient]:
    with AthanorClient(server.address) as client:
        yield client


def test_jobs_are_made_seen_followed_and_ended(client: AthanorClient, server: OldServer) -> None:
    spec = {"student": {"config": {"model_type": "llama"}}, "data": {"train": "/t.jsonl"}, "training": {"max_steps": 1}}
    made = client.create_job({"kind": "FineTune", "metadata": {"name": "bot", "project": "care"}, "spec": spec})
    assert (made.uid, made.project, made.HasField("queue")) == (UID, "", False)
    assert [job.published_model for job in client.list_jobs(limit=10)] == ["bot@1"]
    assert client.get_job(UID).state == job_pb2.JOB_STATE_RUNNING
    states = [change.job.state for change in client.follow_job(UID, timeout_s=30)]
    assert states == [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED]
    assert client.cancel_job(UID).uid == UID
    assert [name for name, _ in server.asked] == [
        "CreateJob",
        "ListJobs",
        "GetJob",
        "WatchJobs",
        "WatchJobs",
        "CancelJob",
    ]


def test_what_it_does_not_know_is_said_in_words(client: AthanorClient) -> None:
    for ask in (client.get_queue, client.list_projects, lambda: client.pause_job(UID)):
        with pytest.raises(RequestFailed) as failure:
            ask()
        assert failure.value.reason == "OLDER_RELEASE"
