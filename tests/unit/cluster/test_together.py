from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

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


async def test_those_who_are_on_their_way_are_waited_for_but_not_for_ever() -> None:
    together, work = Together(work := Slow()), work
    work.may_end.set()

    async def late() -> int:
        with together.expected():
            await asyncio.sleep(0)
        return await together.add(2)

    assert await asyncio.gather(late(), together.add(1)) == [20, 10]
    assert len(work.taken) == 1
    with together.expected():
        assert await together.add(3) == 30, "whoever never comes holds nobody up"
