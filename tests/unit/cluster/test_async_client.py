"""The client for asyncio: the same answers, and streams that go on where they were cut."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from athanor.v1 import job_pb2
from fake_server import FakeControlPlane, change, serving

from cluster.client import AsyncAthanorClient, NotFinished, RequestFailed

MANIFEST = {"kind": "Distill", "metadata": {"name": "bot"}, "spec": {"steps": 3}}


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
async def client(plane: FakeControlPlane) -> AsyncIterator[AsyncAthanorClient]:
    server, address = serving(plane)
    async with AsyncAthanorClient(address, patience_s=20.0) as client:
        yield client
    server.stop(None).wait()


async def test_a_submitted_job_is_followed_to_its_end(client: AsyncAthanorClient, plane: FakeControlPlane) -> None:
    plane.changes = [change(1, "RUNNING"), change(2, "SUCCEEDED")]
    job = await client.submit(MANIFEST)
    assert [each.job.resource_version async for each in job.watch()] == [1, 2]
    assert job.state == "SUCCEEDED"
    assert (await job.wait()).uid == job.uid


async def test_a_cut_watch_goes_on_behind_what_was_seen(client: AsyncAthanorClient, plane: FakeControlPlane) -> None:
    plane.changes = [change(version, "RUNNING") for version in (3, 5)] + [change(9, "SUCCEEDED")]
    plane.cut_after = {5}
    assert [each.job.resource_version async for each in client.follow_job("bot-abcdefgh")] == [3, 5, 9]
    assert plane.cursors == [0, 5]


async def test_what_is_safe_is_repeated_under_one_request_id(
    client: AsyncAthanorClient, plane: FakeControlPlane
) -> None:
    plane.unavailable_times = 2
    await client.create_job(MANIFEST)
    assert len({request.request_id for request in plane.created}) == 1
    assert len(plane.created) == 3


async def test_pages_are_walked_through(client: AsyncAthanorClient, plane: FakeControlPlane) -> None:
    plane.jobs = {f"bot-{number}": job_pb2.Job(uid=f"bot-{number}", name="bot") for number in range(5)}
    assert [job.uid async for job in client.list_jobs(limit=3)] == ["bot-0", "bot-1", "bot-2"]
    assert (await client.find_job("bot")).uid == "bot-0"


async def test_errors_are_the_same(client: AsyncAthanorClient) -> None:
    with pytest.raises(RequestFailed) as failure:
        await client.find_job("nobody")
    assert (failure.value.code, failure.value.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


async def test_a_wait_that_ends_first_says_so(client: AsyncAthanorClient, plane: FakeControlPlane) -> None:
    plane.changes = [change(1, "RUNNING")]
    with pytest.raises(NotFinished, match="goes on"):
        await client.wait_job("bot-abcdefgh", timeout_s=0.3)


async def test_health_is_no_when_nobody_says_yes(client: AsyncAthanorClient) -> None:
    assert not await client.is_serving()
