"""Long work beside the event loop: to its end, or closed when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

import pytest

from cluster.steps import in_steps


async def test_result_and_error_come_through() -> None:
    def steps(fails: bool) -> Generator[None, None, int]:
        yield
        if fails:
            raise KeyError("x")
        yield
        return 7

    assert await in_steps(steps(fails=False)) == 7
    with pytest.raises(KeyError):
        await in_steps(steps(fails=True))


async def test_cancelled_work_is_closed_before_the_caller_hears_of_it() -> None:
    in_step, may_go_on, told = threading.Event(), threading.Event(), list[str]()

    def steps() -> Generator[None, None, None]:
        try:
            yield
            in_step.set()
            may_go_on.wait(30)
            told.append("step ended")
            yield
            told.append("went on")
        finally:
            told.append("closed")

    task = asyncio.create_task(in_steps(steps()))
    await asyncio.to_thread(in_step.wait, 30)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done(), "a step that runs is waited for"
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["step ended", "closed"]


async def test_the_loop_goes_on_meanwhile() -> None:
    began, may_end = threading.Event(), threading.Event()

    def steps() -> Generator[None, None, None]:
        began.set()
        may_end.wait(30)
        yield

    task = asyncio.create_task(in_steps(steps()))
    while not began.is_set():
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await task
