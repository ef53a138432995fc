"""What Ray says of a call becomes an error of serving, and a call that is given up ends where it runs.

Handles of Serve are stood in for: real ones need a cluster.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from serving.errors import BackendFailed, Overloaded, Unavailable

if TYPE_CHECKING:
    from serving.app import ServeBackends

# Of Ray Serve's own models, when they are made: so Ray is imported in the tests.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
JUDGE = "bot--judge2"


class Handle:
    """One method call: raises, or never answers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[object] = []
        self.num_cancelled = 0

    def options(self, **options):
        self.asked.append(options)
        return self

    def remote(self, *args):
        self.asked.append(args)
        return self

    def cancel(self) -> None:
        self.num_cancelled += 1

    def __await__(self):
        return self._answer().__await__()

    async def _answer(self):
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


def backends_of(handle: Handle) -> ServeBackends:
    from serving.app import ServeBackends

    backends = ServeBackends()
    backends._handles[JUDGE] = handle
    return backends


async def test_a_call_that_is_given_up_is_cancelled_where_it_runs():
    handle = Handle()
    backends = backends_of(handle)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await backends.ask_judge(JUDGE, "note_live", (True,))
    assert handle.asked == [{"method_name": "note_live"}, ((True,),)]
    assert handle.num_cancelled == 1


def raised(cause: Exception) -> Exception:
    """As a replica's error comes to whoever asked."""
    from ray.exceptions import RayTaskError

    return RayTaskError("observe", f"Traceback\n{type(cause).__name__}: {cause}", cause).as_instanceof_cause()


def died() -> Exception:
    from ray.exceptions import RayActorError

    return RayActorError()


def nobody_there() -> Exception:
    from ray.serve.exceptions import BackPressureError

    return BackPressureError(9, 8)


@pytest.mark.parametrize(
    ("make", "found", "words"),
    [
        (lambda: raised(Overloaded("the queue is full")), Overloaded, "the queue is full"),
        (lambda: raised(TypeError("no text")), BackendFailed, "TypeError: no text"),
        (died, BackendFailed, "actor"),
        (nobody_there, Unavailable, "backpressure"),
    ],
    ids=["its own", "broke", "died", "nobody"],
)
async def test_what_a_replica_raised_comes_as_what_it_means(make, found, words):
    from ray.exceptions import RayTaskError

    handle = Handle(make())
    with pytest.raises(found, match=words) as caught:
        await backends_of(handle).ask(JUDGE, "observe")
    assert not isinstance(caught.value, RayTaskError)
    assert handle.num_cancelled == 0
