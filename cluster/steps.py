"""Long work on files, made in steps: each runs in a thread, and between two of them whoever waits may go away.

A thread cannot be told to stop, a generator can: its `finally` blocks run before the caller hears of the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Ended(Generic[T]):
    """What the work gave. A StopIteration itself cannot leave a thread."""

    def __init__(self, result: T) -> None:
        self.result = result


def _next(steps: Generator[None, None, T]) -> _Ended[T] | None:
    try:
        next(steps)
    except StopIteration as end:
        return _Ended(end.value)
    return None


async def in_steps(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end off the event loop and give its result; cancelled, it is closed after its step."""
    try:
        while (ended := await _step(steps)) is None:
            pass
        return ended.result
    finally:
        await asyncio.to_thread(steps.close)


async def _step(steps: Generator[None, None, T]) -> _Ended[T] | None:
    """A step that has begun is waited for, come what may: a generator that runs cannot be closed."""
    step = asyncio.ensure_future(asyncio.to_thread(_next, steps))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait([step])
        if not step.cancelled():
            step.exception()  # it was asked to end: how else it would have ended is nobody's business
        raise
