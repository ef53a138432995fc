"""Watches that share one reader: in order, without gap or double, for those who are slow and those who sleep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from athanor.v1 import job_service_pb2 as messages
from fakes import World

from cluster.errors import NotFound, OutOfRange, ShuttingDown
from cluster.lifecycle import State
from cluster.security.caller import Caller, Role, calling
from cluster.services import watching
from cluster.services.watching import Feed, watch
from cluster.store.records import Change, NewJob
from cluster.wakeup import WakeUp


@pytest.fixture
async def feed(world: World) -> AsyncIterator[Feed]:
    wake_up = WakeUp()
    world.store.database.on_change = wake_up.ring
    feed = Feed(world.store, wake_up)
    feed.bell = wake_up  # type: ignore[attr-defined]
    yield feed
    wake_up.close()


Stream = AsyncIterator[messages.WatchJobsResponse]


def watching_of(world: World, feed: Feed, **fields: object) -> Stream:
    return watch(world.store, feed, messages.WatchJobsRequest(**fields))


async def take(stream: Stream, count: int) -> list[messages.WatchJobsResponse]:
    async with asyncio.timeout(30):
        return [await anext(stream) for _ in range(count)]


def note(world: World, uid: str, *words: str) -> None:
    for word in words:
        world.store.transition(world.job(uid), Change("NOTE", word))


async def test_a_snapshot_then_each_change_once_in_order(world: World, feed: Feed) -> None:
    first, second = world.create("one"), world.create("two")
    stream = watching_of(world, feed, bookmarks=True)
    snapshot = await take(stream, 3)
    assert [each.job.uid for each in snapshot] == [first, second, ""]
    assert snapshot[-1].resource_version == world.store.head_version(), "a bookmark says that the snapshot is whole"
    note(world, first, "a", "b")
    note(world, second, "c")
    found = await take(stream, 3)
    assert [each.event.message for each in found] == ["a", "b", "c"]
    assert [each.resource_version for each in found] == [3, 4, 5]
    await stream.aclose()


@pytest.mark.parametrize("remembered", [2, 1000])
async def test_a_slow_reader_misses_nothing_whatever_is_remembered(
    world: World, feed: Feed, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    monkeypatch.setattr(watching, "_REMEMBERED", remembered)
    monkeypatch.setattr(watching, "_PAGE", 3)
    uid = world.create()
    fast, slow = watching_of(world, feed), watching_of(world, feed)
    for stream in (fast, slow):
        await take(stream, 1)
    reading = asyncio.create_task(take(slow, 1))
    expected = [str(number) for number in range(20)]
    for word in expected:
        note(world, uid, word)
    assert [each.event.message for each in await take(fast, 20)] == expected
    late = await reading + await take(slow, 19)
    assert [each.event.message for each in late] == expected


async def test_who_sleeps_while_others_change_is_not_told_that_it_is_too_late(world: World, feed: Feed) -> None:
    mine, other = world.create("mine"), world.create("other")
    stream = watching_of(world, feed, uid=mine)
    await take(stream, 1)
    reading = asyncio.create_task(take(stream, 1))
    while not feed.has_begun:
        await asyncio.sleep(0)
    note(world, other, *map(str, range(10)))
    while feed.head < world.store.head_version():
        await asyncio.sleep(0.01)
    world.store.compact(0, 1000)
    note(world, mine, "mine")
    assert [each.event.message for each in await reading] == ["mine"]


async def test_a_watch_from_before_what_is_kept_is_told_to_begin_anew(world: World, feed: Feed) -> None:
    uid = world.create()
    note(world, uid, "a", "b", "c")
    world.store.compact(1, 1000)
    with pytest.raises(OutOfRange) as caught:
        await take(watching_of(world, feed, after_resource_version=1), 1)
    assert caught.value.reason == "RESOURCE_VERSION_TOO_OLD"
    found = await take(watching_of(world, feed, after_resource_version=3), 1)
    assert [each.event.message for each in found] == ["c"]


async def test_a_deleted_job_is_told_now_and_later(world: World, feed: Feed) -> None:
    uid, other = world.create(), world.create("other")
    of_all, of_one = watching_of(world, feed), watching_of(world, feed, uid=uid)
    await take(of_all, 2)
    await take(of_one, 1)
    world.store.transition(world.job(uid), Change("NO", "", State.FAILED))
    cursor = world.store.head_version()
    world.store.delete_job(world.job(uid))
    for stream in (of_all, of_one):
        (last,) = await take(stream, 1)
        if not last.deleted:  # its end was read before it was gone
            (last,) = await take(stream, 1)
        assert (last.deleted, last.job.uid, last.resource_version) == (True, uid, cursor + 1)
    with pytest.raises(StopAsyncIteration):
        await anext(of_one)
    (later,) = await take(watching_of(world, feed, uid=uid, after_resource_version=cursor), 1)
    assert later.deleted
    with pytest.raises(NotFound):
        await take(watching_of(world, feed, uid=uid), 1)
    note(world, other, "on")
    assert [each.event.message for each in await take(of_all, 1)] == ["on"]


async def test_everybody_sees_the_projects_that_it_reaches(world: World, feed: Feed) -> None:
    def create(project: str) -> str:
        new = NewJob(f"{project}-abcdefgh", project, "FineTune", {}, {}, 1, {}, project=project)
        return world.store.create_job(new).uid

    care, risk = create("care"), create("risk")
    with calling(Caller("c", Role.VIEWER, ("care",))):
        stream = watching_of(world, feed)
        assert [each.job.uid for each in await take(stream, 1)] == [care]
        with pytest.raises(NotFound):
            await take(watching_of(world, feed, uid=risk), 1)
        note(world, risk, "secret")
        note(world, care, "mine")
        assert [each.event.message for each in await take(stream, 1)] == ["mine"]
    only = watching_of(world, feed, project="risk")
    assert [each.job.uid for each in await take(only, 1)] == [risk]


async def test_the_end_of_the_control_plane_ends_every_watch(world: World, feed: Feed) -> None:
    world.create()
    streams = [watching_of(world, feed) for _ in range(3)]
    for stream in streams:
        await take(stream, 1)
    waiting = [asyncio.create_task(take(stream, 1)) for stream in streams]
    while not feed.has_begun:
        await asyncio.sleep(0)
    feed.bell.close()  # type: ignore[attr-defined]
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(each, ShuttingDown)


async def test_a_change_that_comes_while_the_store_is_read_is_told_once(
    world: World, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = world.create()
    head_version, changes = world.store.head_version, world.store.changes

    def late(*asked: object) -> object:
        if asked[0] == 1:  # not the feed, which begins where the store is
            note(world, uid, "in between")
            monkeypatch.setattr(world.store, "changes", changes)
        return changes(*asked)

    monkeypatch.setattr(world.store, "changes", late)
    note(world, uid, "before")
    stream = watching_of(world, feed, after_resource_version=1)
    found = await take(stream, 2)
    note(world, uid, "after")
    found += await take(stream, 1)
    assert [each.event.message for each in found] == ["before", "in between", "after"]
    assert found[-1].resource_version == head_version()
    await stream.aclose()


async def test_nobody_watches_and_nothing_is_read(world: World, feed: Feed) -> None:
    world.create()
    stream = watching_of(world, feed, bookmarks=True)
    await take(stream, 2)
    reading = asyncio.create_task(take(stream, 1))
    while not feed.has_begun:
        await asyncio.sleep(0)
    assert feed.is_running
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await stream.aclose()
    assert not feed.is_running


async def test_a_watch_that_began_before_the_first_job_sees_it(world: World, feed: Feed) -> None:
    """The store's position is 0 then, which is a place to go on from like any other."""
    async with asyncio.timeout(30):
        first = asyncio.create_task(take(watching_of(world, feed), 1))
        while not feed.has_begun:
            await asyncio.sleep(0)
        assert feed.remembers(0)
        uid = world.create()
        (seen,) = await first
    assert (seen.job.uid, seen.resource_version) == (uid, 1)
