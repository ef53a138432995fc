"""Whatever anybody sends: no INTERNAL, no traceback in the log, no growth, and the server is there afterwards.

Every method, found from the descriptors, is called with any message of its type, with bytes that are none, and the port
with bytes that are no HTTP/2. The server is a process of its own, so that its log and its memory are its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from anything import WORDS, anything
from athanor.v1 import job_pb2, job_service_pb2
from google.protobuf import json_format, struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from own_postgres import new_database

from cluster.channel import open_channel
from cluster.server import _FILES

START = "from cluster.server import serve; from cluster.settings import Settings; serve(Settings.from_env())"
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in _FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
OUR_MISTAKES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
STREAM_S = 0.15
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
BEGINNINGS = (b"", PREFACE, PREFACE + EMPTY_SETTINGS, b"GET / HTTP/1.1\r\n\r\n")
MIB = 1024 * 1024
FUZZ = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    database=None,
)


@dataclass(frozen=True)
class Server:
    """A control plane without a Ray, as a process."""

    process: subprocess.Popen[bytes]
    address: str
    log_path: Path
    channel: grpc.Channel
    job: str

    def answer(self, method: str, data: bytes) -> grpc.StatusCode:
        """What comes back; of a stream, what comes back at first."""
        if METHODS[method].server_streaming:
            return self._first_of_stream(method, data)
        try:
            self.channel.unary_unary(method)(data, timeout=30)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def _first_of_stream(self, method: str, data: bytes) -> grpc.StatusCode:
        stream = self.channel.unary_stream(method)(data, timeout=STREAM_S)
        try:
            next(stream, None)
        except grpc.RpcError as error:
            return error.code()
        finally:
            stream.cancel()
        return grpc.StatusCode.OK

    @property
    def is_healthy(self) -> bool:
        answer = health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    @contextlib.contextmanager
    def without_mistakes(self) -> Iterator[None]:
        """Nothing that the log says meanwhile is a mistake of ours."""
        before = self.log_path.stat().st_size
        yield
        with self.log_path.open() as log:
            log.seek(before)
            lines = log.read().splitlines()
        assert [line for line in lines if '"level": "error"' in line or not line.startswith("{")] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with _served(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="module")
def server_on_postgresql(tmp_path_factory: pytest.TempPathFactory, postgres: str) -> Iterator[Server]:
    """What SQLite takes without a word PostgreSQL may refuse: numbers, lengths, text."""
    with _served(tmp_path_factory.mktemp("home"), ATHANOR_DATABASE_URL=new_database(postgres)) as server:
        yield server


@contextlib.contextmanager
def _served(home: Path, **changes: str) -> Iterator[Server]:
    log_path = home / "log"
    environ = {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        "ATHANOR_HOME": str(home),
        "ATHANOR_LISTEN": "127.0.0.1:0",
        "ATHANOR_RAY_DASHBOARD_URL": "http://127.0.0.1:1",
        **changes,
    }
    with log_path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", START], env=environ, stderr=log)
    try:
        address = _address(process, log_path)
        with open_channel(address, (home / "admin-token").read_text().strip()) as channel:
            yield Server(process, address, log_path, channel, _a_job(channel, home))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log_path: Path) -> str:
    while process.poll() is None:
        for line in log_path.read_text().splitlines():
            if '"server.started"' in line:
                return str(json.loads(line)["address"])
    raise AssertionError(log_path.read_text())


def _spec(train: Path) -> dict[str, Any]:
    return {
        "student": {"config": {"model_type": "llama", "hidden_size": 64}},
        "data": {"train": str(train), "format": "prompt_completion"},
        "training": {"max_steps": 5},
        "checkpoint": {"every_steps": 5},
        "publish": {"model": "bot", "alias": "champion"},
        "schedule": {"priority": 3, "max_run_duration": "1h", "retries": {"infrastructure": 1}},
        "resources": {"student": {"workers": 1}},
    }


def _a_job(channel: grpc.Channel, home: Path) -> str:
    """Something that is there, for messages to be about."""
    train = home / "train.jsonl"
    train.write_text('{"prompt": "hello", "completion": "world"}\n')
    job = job_pb2.Job(name="bot", kind="FineTune", spec=json_format.ParseDict(_spec(train), struct_pb2.Struct()))
    request = job_service_pb2.CreateJobRequest(job=job)
    create = channel.unary_unary("/athanor.v1.JobService/CreateJob", type(request).SerializeToString)
    return job_service_pb2.CreateJobResponse.FromString(create(request)).job.uid


@pytest.mark.parametrize("method", METHODS)
def test_any_message(server: Server, method: str) -> None:
    @FUZZ
    @given(anything(METHODS[method].input_type, (server.job, *WORDS)))
    def try_one(message: Any) -> None:
        code = server.answer(method, message.SerializeToString())
        assert code not in OUR_MISTAKES, f"{code} for {message}"

    with server.without_mistakes():
        try_one()


CALLS = st.sampled_from(sorted(METHODS)).flatmap(
    lambda method: st.tuples(st.just(method), anything(METHODS[method].input_type, WORDS))
)


def test_any_message_on_postgresql(server_on_postgresql: Server) -> None:
    """Of any method: its start costs more than a few calls of each."""

    @settings(FUZZ, max_examples=600)
    @given(CALLS)
    def try_one(call: tuple[str, Any]) -> None:
        method, message = call
        code = server_on_postgresql.answer(method, message.SerializeToString())
        assert code not in OUR_MISTAKES, f"{code} for {method} of {message}"

    with server_on_postgresql.without_mistakes():
        try_one()


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message(server: Server, method: str) -> None:
    @FUZZ
    @given(st.binary(max_size=200))
    @example(b"\xff" * 100)
    @example(b"\x0a\x02\xff\xfe")  # a string that is no UTF-8
    @example(b"\x0a\x7f" * 5000)  # blocks within blocks
    def try_one(data: bytes) -> None:
        code = server.answer(method, data)
        assert code not in OUR_MISTAKES, f"{code} for {data!r}"

    with server.without_mistakes():
        try_one()


PLACES = [
    (*above, name)
    for above, names in {
        (): ("student", "data", "training", "publish", "schedule", "hub", "evaluate", "teachers", "objective", "x"),
        ("student",): ("model", "config", "tokenizer"),
        ("data",): ("train", "eval", "columns", "max_length"),
        ("schedule",): ("priority", "max_run_duration", "hold_until", "depends_on", "retries"),
        ("resources", "student"): ("workers", "cpus_per_worker"),
    }.items()
    for name in names
]
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(WORDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


def test_a_job_of_which_one_value_is_anything(server: Server) -> None:
    @settings(FUZZ, max_examples=300)
    @given(st.sampled_from(PLACES), JSON, st.sampled_from(["FineTune", "Distill"]))
    def try_one(place: tuple[str, ...], value: Any, kind: str) -> None:
        spec = _spec(server.log_path.with_name("train.jsonl"))
        block = spec
        for name in place[:-1]:
            block = block[name]
        block[place[-1]] = value
        job = job_pb2.Job(name="bot", kind=kind, spec=json_format.ParseDict(spec, struct_pb2.Struct()))
        request = job_service_pb2.CreateJobRequest(job=job, validate_only=True)
        code = server.answer("/athanor.v1.JobService/CreateJob", request.SerializeToString())
        assert code not in OUR_MISTAKES, f"{code} for {place} = {value!r}"

    with server.without_mistakes():
        try_one()


def test_a_spec_that_goes_too_deep_is_refused(server: Server) -> None:
    value = struct_pb2.Value(string_value="bottom")
    for _ in range(20):
        value = struct_pb2.Value(struct_value=struct_pb2.Struct(fields={"x": value}))
    job = job_pb2.Job(name="bot", kind="FineTune", spec=struct_pb2.Struct(fields={"student": value}))
    data = job_service_pb2.CreateJobRequest(job=job).SerializeToString()
    assert server.answer("/athanor.v1.JobService/CreateJob", data) == grpc.StatusCode.INVALID_ARGUMENT
    deep = b""
    for _ in range(500):  # deeper than any parser goes
        entry = b"\x0a\x01x\x12" + _varint(len(deep)) + deep
        struct = b"\x0a" + _varint(len(entry)) + entry
        deep = b"\x2a" + _varint(len(struct)) + struct
    assert server.answer("/athanor.v1.JobService/CreateJob", b"\x0a" + _varint(len(deep)) + deep) == (
        grpc.StatusCode.INVALID_ARGUMENT
    )


def _varint(number: int) -> bytes:
    low, number = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(number) if number else bytes([low])


def test_methods_that_are_not_there(server: Server) -> None:
    for method in ("/athanor.v1.JobService/Nothing", "/athanor.v1.No/No", "/x/y", "//", "/"):
        with pytest.raises(grpc.RpcError) as caught:
            server.channel.unary_unary(method)(b"", timeout=30)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_http2(server: Server) -> None:
    host, _, port = server.address.rpartition(":")
    chance = random.Random(5)
    with server.without_mistakes():
        for number in range(300):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(BEGINNINGS[number % 4] + chance.randbytes(chance.randrange(1, 3000)))
                if number % 3:  # else it hangs up without listening
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
        assert server.is_healthy


def test_memory_does_not_grow(server: Server) -> None:
    """The same calls again and again: what the first rounds leave behind is caches, what later ones leave is a leak."""
    process, chance = psutil.Process(server.process.pid), random.Random(7)
    data = [chance.randbytes(chance.randrange(0, 60)) for _ in range(30)]
    unary = [name for name, method in METHODS.items() if not method.server_streaming]
    resident = []
    for _ in range(4):
        for method in unary:
            for each in data:
                server.answer(method, each)
        resident.append(process.memory_info().rss)
    assert resident[-1] - resident[1] < 16 * MIB, [each // MIB for each in resident]
    assert server.is_healthy
