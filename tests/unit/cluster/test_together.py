from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from cluster.together import Together


class Slow:
    """Work that lasts until it is let go, and remembers what it was given at once."""

    def __init__(self) -> None:
        self.taken: list[Sequence[int]] = []
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, parts: Sequence[int]) -> Sequence[int | Exception]:
        self.taken.append(parts)
        self.has_begun.set()
        assert self.may_end.wait(10)
        return [ValueError(f"{part}") if part < 0 else part * 10 for part in parts]


async def started(together: Together[int, int], work: Slow, part: int = 1) -> asyncio.Task[int]:
    task = asyncio.create_task(together.add(part))
    assert await asyncio.to_thread(work.has_begun.wait, 10)
    return task


async def test_what_waits_meanwhile_is_taken_at_once_and_in_order() -> None:
    together, work = Together(work := Slow()), work
    first = await started(together, work)
    others = [asyncio.create_task(together.add(part)) for part in range(2, 8)]
    await asyncio.sleep(0)
    assert not first.done()
    work.may_end.set()
    assert await asyncio.gather(first, *others) == [part * 10 for part in range(1, 8)]
    assert work.taken == [(1,), (2, 3, 4, 5, 6, 7)]


async def test_nobody_goes_on_before_the_call_that_took_the_part_returned() -> None:
    together, work = Together(work := Slow()), work
    task = await started(together, work)
    done, _ = await asyncio.wait([task], timeout=0.05)
    assert not done
    work.may_end.set()
    assert await task == 10


async def test_one_that_fails_fails_alone() -> None:
    together, work = Together(work := Slow()), work
    work.may_end.set()
    answers = await asyncio.gather(*(together.add(part) for part in (1, -2, 3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["10", "-2", "30"]
    assert isinstance(answers[1], ValueError)


async def test_what_the_work_itself_raises_is_told_to_all_that_it_took_and_to_nobody_else() -> None:
    fails = [True]

    def work(parts: Sequence[int]) -> Sequence[int]:
        if fails.pop() if fails else False:
            raise OSError("the disk is full")
        return parts

    together: Together[int, int] = Together(work)
    answers = await asyncio.gather(together.add(1), together.add(2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [OSError, OSError]
    assert await together.add(3) == 3


async def test_a_caller_that_goes_away_takes_nobody_along() -> None:
    together, work = Together(work := Slow()), work
    gone = await started(together, work)
    other = asyncio.create_task(together.add(2))
    gone.cancel()
    work.may_end.set()
    assert await other == 20
    with pytest.raises(asyncio.CancelledError):
        await gone


class Stuck:
    """Answers at once, but for a part that waits to be let go."""

    def __init__(self, slow: int) -> None:
        self.slow, self.may_end = slow, threading.Event()

    def __call__(self, parts: Sequence[int]) -> Sequence[int]:
        if self.slow in parts:
            assert self.may_end.wait(10)
        return parts


async def test_with_several_threads_one_call_that_hangs_holds_up_nobody_else() -> None:
    together: Together[int, int] = Together(work := Stuck(slow=0), threads=2)
    hanging = asyncio.create_task(together.add(0))
    await asyncio.sleep(0)
    before = asyncio.create_task(together.add(1))  # comes before anybody can know that the call hangs
    assert await asyncio.wait_for(before, 10) == 1
    assert await asyncio.wait_for(together.add(2), 10) == 2
    assert not hanging.done()
    work.may_end.set()
    assert await hanging == 0
    assert await together.add(3) == 3


async def test_no_more_threads_are_taken_than_allowed() -> None:
    works = [Stuck(slow=0), Stuck(slow=1)]
    together: Together[int, int] = Together(lambda parts: works[1](works[0](parts)), at_once=1, threads=2)
    tasks = [asyncio.create_task(together.add(part)) for part in range(4)]
    done, _ = await asyncio.wait(tasks, timeout=0.3)
    assert not done, "both threads hang, and a third would have answered"
    works[1].may_end.set()
    assert await asyncio.gather(*tasks[1:]) == [1, 2, 3]
    works[0].may_end.set()
    assert await tasks[0] == 0


async def test_the_call_knows_nothing_of_who_came_first() -> None:
    name: ContextVar[str] = ContextVar("name", default="nobody")
    together: Together[int, str] = Together(lambda parts: [name.get() for _ in parts])
    name.set("somebody")
    assert await together.add(1) == "nobody"


@pytest.mark.parametrize("threads", [1, 3])
async def test_whoever_asks_again_at_once_is_taken_too(threads: int) -> None:
    """The worker before has just ended then."""
    together: Together[int, int] = Together(lambda parts: parts, threads=threads)

    async def ask() -> None:
        for part in range(50):
            assert await together.add(part) == part

    await asyncio.wait_for(asyncio.gather(*(ask() for _ in range(6))), 20)
