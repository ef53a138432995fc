"""Work on files has threads of its own: a storage that hangs shall not keep those waiting who only ask the store."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 8
_POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="files")


async def on_files(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, beside the threads that everything else shares."""
    context = contextvars.copy_context()
    work = partial(context.run, partial(call, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(_POOL, work)
