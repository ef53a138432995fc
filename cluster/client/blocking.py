"""The client for programs that wait: typed, a deadline on every call, repeated only where that is safe.

A line for each method: what it means and what it takes stands in `job_calls`, `model_calls`, `installation_calls` and
`streams`, once for this client and the asynchronous one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
from athanor.v1 import deployment_service_pb2, job_pb2
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from cluster.channel import Tls, open_channel
from cluster.client import deployment_calls, installation_calls, job_calls, model_calls, streams
from cluster.client.call import MAX_PAGE_SIZE, Answer, Call, Item, Listing, path_of, signature_of
from cluster.client.download import Download, FileDownload
from cluster.client.handle import JobHandle
from cluster.client.streams import Stream
from cluster.job_file import read_job_file
from cluster.rpc import Cuts, NotFinished, RequestFailed, naming, repeat

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"

P = ParamSpec("P")
Response = TypeVar("Response", bound=Message)


def _asks(build: Callable[P, Call[Answer]]) -> Callable[Concatenate[AthanorClient, P], Answer]:
    """A method that asks once, or again where that is safe."""

    @functools.wraps(build)
    def method(self: AthanorClient, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        return self.ask(build(*args, **kwargs))

    method.__signature__ = signature_of(build, "{}")  # type: ignore[attr-defined]
    return method


def _lists(build: Callable[P, Listing[Item]]) -> Callable[Concatenate[AthanorClient, P], Iterator[Item]]:
    """A method that walks through pages as they are read."""

    @functools.wraps(build)
    def method(self: AthanorClient, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Item]:
        return self.walk(build(*args, **kwargs))

    method.__signature__ = signature_of(build, "Iterator[{}]")  # type: ignore[attr-defined]
    return method


def _streams(build: Callable[P, Stream[Any, Item]]) -> Callable[Concatenate[AthanorClient, P], Iterator[Item]]:
    """A method that reads a stream, over cuts."""

    @functools.wraps(build)
    def method(self: AthanorClient, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Item]:
        return self.read(build(*args, **kwargs))

    method.__signature__ = signature_of(build, "Iterator[{}]")  # type: ignore[attr-defined]
    return method


class AthanorClient:
    """One connection to one control plane. Use it in a `with` block; its methods may be called from many threads."""

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        tls_ca: str | Path = "",
        client_cert: str | Path = "",
        client_key: str | Path = "",
        patience_s: float = 10.0,
    ) -> None:
        self.address = address
        self._patience_s = patience_s
        self._channel = open_channel(address, token, Tls.of(str(tls_ca), str(client_cert), str(client_key)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # Jobs

    create_job = _asks(job_calls.create_job)
    get_job = _asks(job_calls.get_job)
    list_jobs = _lists(job_calls.list_jobs)
    update_job = _asks(job_calls.update_job)
    delete_job = _asks(job_calls.delete_job)
    cancel_job = _asks(job_calls.cancel_job)
    pause_job = _asks(job_calls.pause_job)
    resume_job = _asks(job_calls.resume_job)
    retry_job = _asks(job_calls.retry_job)
    list_job_events = _lists(job_calls.list_job_events)
    get_job_report = _asks(job_calls.get_job_report)
    watch_jobs = _streams(streams.watch_jobs)
    follow_job = _streams(streams.follow_job)
    stream_logs = _streams(streams.stream_logs)
    stream_metrics = _streams(streams.stream_metrics)

    def find_job(self, uid_or_name: str) -> job_pb2.Job:
        """The job of this uid, else the newest one of this name."""
        try:
            return self.get_job(uid_or_name)
        except RequestFailed as error:
            newest = next(self.list_jobs(name=uid_or_name, limit=1), None) if error.is_not_found else None
            if newest is None:
                raise
            return newest

    def wait_job(self, uid: str, *, timeout_s: float | None = None) -> job_pb2.Job:
        """Blocks until the job has ended; NotFinished when `timeout_s` passes first."""
        *_, last = self.follow_job(uid, timeout_s=timeout_s)
        return last.job

    def submit(self, manifest: Mapping[str, Any] | str | Path, *, request_id: str | None = None) -> JobHandle:
        """`create_job`, of a manifest or of a job file's path, as a handle to go on with."""
        if isinstance(manifest, str | Path):
            manifest = read_job_file(str(manifest))
        return JobHandle(self, self.create_job(manifest, request_id=request_id))

    def job(self, uid_or_name: str) -> JobHandle:
        """A handle of a job that is there."""
        return JobHandle(self, self.find_job(uid_or_name))

    # Models and deployments

    get_model = _asks(model_calls.get_model)
    list_models = _lists(model_calls.list_models)
    set_alias = _asks(model_calls.set_alias)
    create_model_version = _asks(model_calls.create_model_version)
    delete_model_version = _asks(model_calls.delete_model_version)
    list_alias_history = _asks(model_calls.list_alias_history)
    rollback_alias = _asks(model_calls.rollback_alias)
    delete_alias = _asks(model_calls.delete_alias)
    verify_model_version = _asks(model_calls.verify_model_version)
    create_deployment = _asks(deployment_calls.create_deployment)
    get_deployment = _asks(deployment_calls.get_deployment)
    list_deployments = _asks(deployment_calls.list_deployments)
    delete_deployment = _asks(deployment_calls.delete_deployment)
    update_deployment = _asks(deployment_calls.update_deployment)
    start_canary = _asks(deployment_calls.start_canary)
    set_traffic = _asks(deployment_calls.set_traffic)
    promote_deployment = _asks(deployment_calls.promote_deployment)
    rollback_deployment = _asks(deployment_calls.rollback_deployment)
    list_deployment_events = _lists(deployment_calls.list_deployment_events)

    def download_model_version(self, reference: str, directory: str | Path, *, file: str = "") -> Path:
        """Bring a version (or one file of it) here, checked by its hashes; goes on where an earlier try ended."""
        download = Download(self.get_model(reference), Path(directory), file)
        for wanted in download.files():
            self._fetch(wanted)
        return download.finish()

    def _fetch(self, wanted: FileDownload) -> None:
        if wanted.is_there:
            return
        stream, sink = wanted.stream(), wanted.sink()
        try:
            for data in self.read(stream):
                sink.write(data)
        finally:
            sha256 = sink.close()
        wanted.finish(sha256)

    def wait_deployment(self, name: str, *, timeout_s: float) -> deployment_service_pb2.Deployment:
        """Blocks until it answers as it was last asked to, or has failed; NotFinished when `timeout_s` passes first."""
        deadline = time.monotonic() + timeout_s
        while not deployment_calls.is_settled(deployment := self.get_deployment(name)):
            if time.monotonic() > deadline:
                raise NotFinished("TIMEOUT", deployment_calls.unsettled(deployment, timeout_s))
            time.sleep(0.5)
        return deployment

    def wait_deleted(self, name: str, *, timeout_s: float) -> None:
        """Blocks until a deployment that is being deleted is gone; NotFinished when `timeout_s` passes first."""
        deadline = time.monotonic() + timeout_s
        while any(each.name == name for each in self.list_deployments()):
            if time.monotonic() > deadline:
                raise NotFinished("TIMEOUT", f"{name} is still there after {timeout_s:g} s")
            time.sleep(0.5)

    def wait_revision(self, name: str, number: int, *, timeout_s: float) -> deployment_service_pb2.Deployment:
        """The deployment, once this revision of it starts no more; NotFinished when `timeout_s` passes first."""
        deadline = time.monotonic() + timeout_s
        while deployment_calls.is_starting(deployment := self.get_deployment(name), number):
            if time.monotonic() > deadline:
                words = f"revision {number} of {name} does not answer after {timeout_s:g} s; {deployment.message}"
                raise NotFinished("TIMEOUT", words)
            time.sleep(0.5)
        return deployment

    # The installation

    server_info = _asks(installation_calls.server_info)
    list_nodes = _asks(installation_calls.list_nodes)
    get_queue = _asks(installation_calls.get_queue)
    list_projects = _asks(installation_calls.list_projects)
    set_quota = _asks(installation_calls.set_quota)
    create_token = _asks(installation_calls.create_token)
    list_tokens = _asks(installation_calls.list_tokens)
    revoke_token = _asks(installation_calls.revoke_token)
    get_caller = _asks(installation_calls.get_caller)
    list_audit_entries = _lists(installation_calls.list_audit_entries)
    verify_audit_log = _asks(installation_calls.verify_audit_log)

    def is_serving(self, *, timeout_s: float = 2.0) -> bool:
        """Whether the server answers and calls itself healthy. Asked once."""
        check = self._channel.unary_unary(
            _HEALTH_CHECK, health_pb2.HealthCheckRequest.SerializeToString, health_pb2.HealthCheckResponse.FromString
        )
        try:
            reply = check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    # How they ask

    def ask(self, call: Call[Answer]) -> Answer:
        """Carry out one call; RequestFailed when it was refused, or got no answer."""
        ask = self._channel.unary_unary(
            path_of(call.method), type(call.request).SerializeToString, call.response.FromString
        )

        def attempt() -> Answer:
            return call.unwrap(ask(call.request, timeout=call.timeout_s))

        with naming(call.request_id):
            return repeat(attempt, self.address, patience_s=self._patience_s, is_safe=call.is_repeatable)

    def walk(self, listing: Listing[Item]) -> Iterator[Item]:
        """What all pages hold, asked for as it is read."""
        token, left = "", listing.limit
        while left > 0:
            items, token = self.ask(listing.page(min(left, MAX_PAGE_SIZE), token))
            yield from items
            left -= len(items)
            if not token:
                return

    def read(self, stream: Stream[Response, Item]) -> Iterator[Item]:
        """What a stream delivers, over as many calls as it takes."""
        ask = self._channel.unary_stream(
            path_of(stream.method), type(stream.request()).SerializeToString, stream.response.FromString
        )
        cuts = Cuts(self.address, self._patience_s)
        while not stream.is_finished():
            answers = ask(stream.request(), timeout=stream.timeout_s())
            try:
                for response in answers:
                    cuts.heard()
                    item = stream.take(response)
                    if item is not None:
                        yield item
                    if stream.is_finished():
                        return
                stream.closed()
            except grpc.RpcError as error:
                stream.failed(cuts.cut(error))
            finally:
                answers.cancel()  # type: ignore[no-untyped-call]
            if not stream.is_finished():
                time.sleep(cuts.pause_s)
