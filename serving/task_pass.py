"""One pass over the labelled examples of a gate: both revisions are asked each, greedily, and it is told who was right.

They are asked past the gateway, one example at a time, so that users and their limits notice little of it. An example
that the stable version does not answer is left out: it says nothing, and holds nobody up. Knows neither Ray nor gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol

from serving.errors import DeadlineExceeded, Overloaded, RequestError, ServingError, Unavailable
from serving.judge import Finding
from serving.task_data import Example, is_right

_PATIENCE = 3
"""A canary that breaks over an example so many times does not know its answer."""
_STABLE_PATIENCE = 2
_MOST_BROKEN = 3
"""The stable version is offered so many examples in a row that break it, each `_STABLE_PATIENCE` times, and no more.

It has users, and a replica that breaks 8 times in a row counts as broken itself."""
_WITHIN_S = 600.0
"""An example that got no answer in this time, as a version is busy or not there, gets none: as a request of a user."""
_EVERY_S = 1.0
"""So often is told what was found."""
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_Answered = Literal["right", "wrong", "broke", "late"]
logger = logging.getLogger(__name__)


class Answerer(Protocol):
    """A revision of the deployment."""

    async def answer(self, example: Example) -> str: ...


async def examine(
    examples: Sequence[Example],
    stable: Answerer,
    canary: Answerer,
    tell: Callable[[Sequence[Finding]], Awaitable[bool]],
) -> None:
    """Ask both all examples, in this order; `tell` returns once findings have arrived, and whether more are wanted."""
    found: list[Finding] = []
    told_at = time.monotonic()
    num_compared = num_broken = 0
    for example in examples:
        of_stable, of_canary = await asyncio.gather(
            _ask(stable, example, _STABLE_PATIENCE), _ask(canary, example, _PATIENCE)
        )
        num_broken = num_broken + 1 if of_stable == "broke" else 0
        if of_stable in ("right", "wrong"):
            right = {"stable_right": of_stable == "right", "canary_right": of_canary == "right"}
            found.append(Finding(kind="TASK", **right, task_index=num_compared, task_size=len(examples)))
            num_compared += 1
        if found and time.monotonic() - told_at >= _EVERY_S:
            if not await tell(found):
                return
            found, told_at = [], time.monotonic()
        if num_broken == _MOST_BROKEN:
            logger.error("the stable version broke over %d labelled examples in a row; it is asked no more", num_broken)
            break
    if found:
        await tell(found)
    if num_compared < len(examples):
        num_left_out = len(examples) - num_compared
        logger.warning(
            "%d of %d labelled examples were left out: the stable version gave no answer", num_left_out, len(examples)
        )


async def _ask(revision: Answerer, example: Example, patience: int) -> _Answered:
    try:
        async with asyncio.timeout(_WITHIN_S):
            return await _answered(revision, example, patience)
    except TimeoutError:
        logger.warning("a labelled example was not answered within %g s", _WITHIN_S)
        return "late"


async def _answered(revision: Answerer, example: Example, patience: int) -> _Answered:
    """One that is busy or not there is asked again, one that breaks `patience` times at most."""
    num_broken, pause_s = 0, _PAUSE_S
    while True:
        try:
            return "right" if is_right(await revision.answer(example), example.reference) else "wrong"
        except (Overloaded, Unavailable, DeadlineExceeded):
            pass
        except RequestError as error:  # it cannot be asked this
            logger.info("a labelled example is refused: %s", error)
            return "wrong"
        except ServingError as error:
            logger.warning("a labelled example was not answered: %s", error)
            num_broken += 1
            if num_broken == patience:
                return "broke"
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
