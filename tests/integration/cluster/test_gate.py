"""Who is let in, by the real server: tokens, roles, limits, and what the audit log says of it."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from athanor.v1 import (
    audit_service_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    options_pb2,
    token_service_pb2,
)
from control_plane import ControlPlane, ScriptedRay, served
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from cluster.channel import open_async_channel
from cluster.errors import StartUpError
from cluster.security.policies import policies_of
from cluster.server import _FILES, running_server
from cluster.settings import Settings

EVERY_METHOD = sorted(policies_of(_FILES))
WITH_TOKEN = [name for name, policy in policies_of(_FILES).items() if policy.role is not None]


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    found: dict[str, Any] = {"code": error.code().name, "message": error.details()}
    for detail in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RequestInfo, error_details_pb2.RetryInfo):
            message = kind()
            if detail.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


async def refusal(call: Any) -> dict[str, Any]:
    """How a call that must fail fails; of a stream, its first read."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return details(caught.value)


async def reason_of(call: Any) -> str:
    found = await refusal(call)
    return f"{found['code']} {found['ErrorInfo'].reason}"


def bare(channel: grpc.aio.Channel, method: str, data: bytes = b"", token: str = "") -> Any:
    """Any method, with bytes for a message, streams by their first answer."""
    metadata = (("authorization", f"Bearer {token}"),) if token else None
    if re.search(r"/(Watch|Stream|Download)", method):
        stream = channel.unary_stream(method)(data, metadata=metadata, timeout=20)
        return stream.read()
    return channel.unary_unary(method)(data, metadata=metadata, timeout=20)


@pytest.fixture
async def stranger(plane: ControlPlane) -> AsyncIterator[grpc.aio.Channel]:
    """A channel without a token."""
    async with grpc.aio.insecure_channel(plane.address) as channel:
        yield channel


async def is_let_in(stream: Any) -> bool:
    """False when there are too many."""
    try:
        await stream.read()
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


async def make(plane: ControlPlane, role: str, name: str = "ann", *projects: str) -> str:
    token = token_service_pb2.Token(name=name, role=options_pb2.Role.Value(f"ROLE_{role}"), projects=projects)
    return (await plane.tokens.CreateToken(token_service_pb2.CreateTokenRequest(token=token))).secret


async def entries(plane: ControlPlane) -> list[audit_service_pb2.AuditEntry]:
    return list((await plane.audit.ListAuditEntries(audit_service_pb2.ListAuditEntriesRequest())).entries)


@pytest.mark.parametrize("method", WITH_TOKEN)
async def test_no_method_answers_a_stranger(plane: ControlPlane, stranger: grpc.aio.Channel, method: str) -> None:
    assert await reason_of(bare(stranger, method)) == "UNAUTHENTICATED NO_TOKEN"
    assert await reason_of(bare(stranger, method, token="x")) == "UNAUTHENTICATED TOKEN_UNKNOWN"
    # Nothing of the message is read before.
    assert await reason_of(bare(stranger, method, b"\xff\xff\xff")) == "UNAUTHENTICATED NO_TOKEN"


async def test_the_first_token_is_for_its_owner_alone(plane: ControlPlane) -> None:
    path = plane.settings.admin_token_path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    who = (await plane.tokens.GetCaller(token_service_pb2.GetCallerRequest())).token
    assert (who.name, who.role) == ("admin", options_pb2.ROLE_ADMIN)


async def test_health_is_open_and_reflection_is_not(plane: ControlPlane, stranger: grpc.aio.Channel) -> None:
    answer = await health_pb2_grpc.HealthStub(stranger).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection_pb2_grpc.ServerReflectionStub(stranger).ServerReflectionInfo(iter([ask]))
    assert await reason_of(call.read()) == "UNAUTHENTICATED NO_TOKEN"


async def test_each_role_may_what_its_methods_say(plane: ControlPlane, stranger: grpc.aio.Channel) -> None:
    secrets = {role: await make(plane, role, role.lower()) for role in ("VIEWER", "SUBMITTER")}
    policies = policies_of(_FILES)
    for method in WITH_TOKEN:
        for number, (_, secret) in enumerate(secrets.items(), start=1):
            wanted = policies[method].role
            assert wanted is not None
            if number < wanted:
                assert await reason_of(bare(stranger, method, token=secret)) == "PERMISSION_DENIED ROLE_TOO_LOW"


async def test_a_viewer_may_check_a_job_and_make_none(plane: ControlPlane) -> None:
    secret = await make(plane, "VIEWER")
    wish = job_service_pb2.CreateJobRequest(job=plane.job_message("bot"), validate_only=True)
    async with open_async_channel(plane.address, secret) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        assert (await jobs.CreateJob(wish)).job.name == "bot"
        wish.job.spec.fields["training"].struct_value.fields["max_steps"].number_value = -1
        assert (await refusal(jobs.CreateJob(wish)))["ErrorInfo"].reason == "INVALID_SPEC"
        wish.validate_only = False
        assert (await refusal(jobs.CreateJob(wish)))["ErrorInfo"].reason == "ROLE_TOO_LOW"
    assert not (await plane.jobs.ListJobs(job_service_pb2.ListJobsRequest())).jobs
    assert [(each.resource, each.reason) for each in (await entries(plane))[:3]] == [
        ("bot", "ROLE_TOO_LOW"),
        ("bot (validate_only)", "INVALID_SPEC"),
        ("bot (validate_only)", ""),
    ]


async def test_a_revoked_token_is_out_with_the_next_call(plane: ControlPlane, stranger: grpc.aio.Channel) -> None:
    secret = await make(plane, "ADMIN")
    await bare(stranger, "/athanor.v1.TokenService/GetCaller", token=secret)
    token_id = secret.split("_")[1]
    await plane.tokens.RevokeToken(token_service_pb2.RevokeTokenRequest(id=token_id))
    found = await reason_of(bare(stranger, "/athanor.v1.TokenService/GetCaller", token=secret))
    assert found == "UNAUTHENTICATED TOKEN_REVOKED"


async def test_a_wish_for_a_token_that_makes_no_sense_names_its_fields(plane: ControlPlane) -> None:
    token = token_service_pb2.Token(id="x", name="No Name", role=9, projects=["Ö"])
    request = token_service_pb2.CreateTokenRequest(token=token)
    request.ttl.seconds = -1
    found = await refusal(plane.tokens.CreateToken(request))
    assert found["ErrorInfo"].reason == "INVALID_TOKEN"
    for field in ("token.id", "token.name", "token.role", "token.projects[0]", "ttl"):
        assert field in found["message"]


async def test_no_list_shows_a_secret(plane: ControlPlane) -> None:
    secret = (await make(plane, "VIEWER")).split("_", 2)[2]
    tokens = await plane.tokens.ListTokens(token_service_pb2.ListTokensRequest())
    assert {token.name for token in tokens.tokens} == {"admin", "ann"}
    assert secret not in str(tokens) + str(await entries(plane))


async def test_the_log_holds_what_was_done_and_what_was_refused(
    plane: ControlPlane, stranger: grpc.aio.Channel
) -> None:
    secret = await make(plane, "VIEWER")
    uid = await plane.create()
    cancel = job_service_pb2.CancelJobRequest(uid=uid).SerializeToString()
    for token in (secret, "", "nonsense"):
        await refusal(bare(stranger, "/athanor.v1.JobService/CancelJob", cancel, token))
    call = plane.jobs.CancelJob(job_service_pb2.CancelJobRequest(uid=uid))
    await call
    request_id = dict(await call.trailing_metadata())["athanor-request-id"]
    found = await entries(plane)
    assert [(each.actor, each.method.rpartition("/")[2], each.code, each.reason) for each in found] == [
        ("admin", "CancelJob", "OK", ""),
        ("", "CancelJob", "UNAUTHENTICATED", "TOKEN_UNKNOWN"),
        ("", "CancelJob", "UNAUTHENTICATED", "NO_TOKEN"),
        ("ann", "CancelJob", "PERMISSION_DENIED", "ROLE_TOO_LOW"),
        ("admin", "CreateJob", "OK", ""),
        ("admin", "CreateToken", "OK", ""),
    ]
    assert [each.number for each in found] == [6, 5, 4, 3, 2, 1]
    assert (found[0].resource, found[0].request_id, found[4].resource) == (uid, request_id, uid)
    assert [each.resource for each in found[1:4]] == ["", "", uid], "of strangers nothing is read"
    about = audit_service_pb2.ListAuditEntriesRequest(resource=uid, since=found[3].create_time)
    assert [each.number for each in (await plane.audit.ListAuditEntries(about)).entries] == [6, 3]
    assert found[0].peer.startswith("ipv4:127.0.0.1:")
    verified = await plane.audit.VerifyAuditLog(audit_service_pb2.VerifyAuditLogRequest())
    assert (verified.num_entries, verified.head) == (6, found[0].hash)


async def test_pages_of_the_log_hold_each_entry_once(plane: ControlPlane) -> None:
    for number in range(7):
        await make(plane, "VIEWER", f"t{number}")
    seen, token = [], ""
    while True:
        request = audit_service_pb2.ListAuditEntriesRequest(page_size=3, page_token=token, actor="admin")
        page = await plane.audit.ListAuditEntries(request)
        seen += [each.number for each in page.entries]
        token = page.next_page_token
        if not token:
            break
        await make(plane, "VIEWER", f"later-{len(seen)}")
    assert seen == [7, 6, 5, 4, 3, 2, 1]


async def test_a_call_whose_caller_hangs_up_is_written_down(plane: ControlPlane) -> None:
    calls = [plane.jobs.CreateJob(job_service_pb2.CreateJobRequest(job=plane.job_message())) for _ in range(20)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(20):
        while True:
            jobs = {job.uid for job in (await plane.jobs.ListJobs(job_service_pb2.ListJobsRequest())).jobs}
            if jobs <= {each.resource for each in await entries(plane)}:
                break


async def test_too_many_calls_are_told_when_to_come_again(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, listen="127.0.0.1:0", shutdown_grace_s=1.0, calls_per_second=1.0)
    async with served(settings, ScriptedRay()) as plane:
        get = token_service_pb2.GetCallerRequest()
        outcomes = await asyncio.gather(*(plane.tokens.GetCaller(get) for _ in range(20)), return_exceptions=True)
        refused = [details(each) for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
        assert len(refused) >= 15
        assert {each["code"] for each in refused} == {"RESOURCE_EXHAUSTED"}
        assert refused[0]["ErrorInfo"].reason == "RATE_LIMITED"
        assert 0 < refused[0]["RetryInfo"].retry_delay.ToMilliseconds() <= 1000


async def test_streams_are_counted_and_make_room_when_they_end(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, listen="127.0.0.1:0", shutdown_grace_s=1.0, max_streams=2)
    async with served(settings, ScriptedRay()) as plane:
        await plane.create()
        watch = job_service_pb2.WatchJobsRequest()
        held = [plane.jobs.WatchJobs(watch) for _ in range(2)]
        for stream in held:
            await stream.read()
        assert await reason_of(plane.jobs.WatchJobs(watch).read()) == "RESOURCE_EXHAUSTED TOO_MANY_STREAMS"
        held[0].cancel()
        async with asyncio.timeout(20):
            while not await is_let_in(plane.jobs.WatchJobs(watch)):
                pass


async def test_a_message_that_is_none_is_the_callers_mistake(plane: ControlPlane) -> None:
    for method in EVERY_METHOD:
        found = await reason_of(bare(plane.channel, method, b"\x0a\xff\xff\xff\xff"))
        assert found == "INVALID_ARGUMENT MALFORMED_REQUEST", method


async def test_messages_and_specs_have_a_largest_size(plane: ControlPlane) -> None:
    large = job_service_pb2.CreateJobRequest(job=plane.job_message())
    large.job.spec.fields["student"].struct_value.fields["config"].struct_value.fields["x"].string_value = "x" * 300_000
    assert await reason_of(plane.jobs.CreateJob(large)) == "INVALID_ARGUMENT SPEC_TOO_LARGE"
    large.job.labels["x"] = "x" * 5_000_000
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plane.jobs.CreateJob(large)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_without_tokens_everybody_is_admin_on_loopback_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, listen="127.0.0.1:0", auth="none", shutdown_grace_s=1.0)
    async with running_server(settings, ScriptedRay(), None) as address, open_async_channel(address) as channel:
        answer = await bare(channel, "/athanor.v1.TokenService/GetCaller")
        assert token_service_pb2.GetCallerResponse.FromString(answer).token.role == options_pb2.ROLE_ADMIN
    assert not settings.admin_token_path.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auth": "none", "insecure": True}, "AUTH_REQUIRED"),
        ({}, "TLS_REQUIRED"),
        ({"tls_cert": "/x.pem"}, "TLS_INCOMPLETE"),
        ({"tls_client_ca": "/x.pem"}, "TLS_INCOMPLETE"),
        ({"tls_cert": "/x.pem", "tls_key": "/x.key"}, "TLS_UNUSABLE"),
    ],
)
async def test_what_would_be_open_to_the_network_does_not_start(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    settings = Settings(home=tmp_path, listen="0.0.0.0:0", advertise="here:1", **changes)
    with pytest.raises(StartUpError) as refused:
        async with running_server(settings, ScriptedRay(), None):
            raise AssertionError("it started")
    assert refused.value.reason == reason


async def test_a_stream_tells_a_revoked_token_nothing_more(plane: ControlPlane) -> None:
    secret = await make(plane, "VIEWER")
    async with open_async_channel(plane.address, secret) as channel:
        watch = job_service_pb2_grpc.JobServiceStub(channel).WatchJobs(job_service_pb2.WatchJobsRequest())
        first = await plane.create("first")
        assert (await watch.read()).job.uid == first
        await plane.tokens.RevokeToken(token_service_pb2.RevokeTokenRequest(id=secret.split("_")[1]))
        await plane.create("second")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(_only_of(watch, first), 20)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def _only_of(watch: Any, uid: str) -> None:
    while (told := await watch.read()) is not grpc.aio.EOF:
        assert told.job.uid == uid
