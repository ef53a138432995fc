"""One pass over the labelled examples of a gate: both revisions are asked each, greedily, and it is told who was right.

They are asked past the gateway, one example at a time, so that users and their limits notice little of it. Knows
neither Ray nor gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from serving.errors import Overloaded, RequestError, ServingError
from serving.judge import Finding
from serving.task_data import Example, is_right

_PATIENCE = 3
"""A canary that breaks over an example so many times does not know its answer."""
_EVERY_S = 1.0
"""So often is told what was found."""
_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
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
    for index, example in enumerate(examples):
        stable_right, canary_right = await asyncio.gather(
            _answers_right(stable, example), _answers_right(canary, example, patience=_PATIENCE)
        )
        right = {"stable_right": stable_right, "canary_right": canary_right}
        found.append(Finding(kind="TASK", **right, task_index=index, task_size=len(examples)))
        if time.monotonic() - told_at >= _EVERY_S or index + 1 == len(examples):
            if not await tell(found):
                return
            found, told_at = [], time.monotonic()


async def _answers_right(revision: Answerer, example: Example, patience: int | None = None) -> bool:
    """Whether it gives the right answer. One that is busy is asked again, one that breaks `patience` times at most."""
    broken, pause_s = 0, _PAUSE_S
    while True:
        try:
            return is_right(await revision.answer(example), example.reference)
        except Overloaded:
            pass
        except RequestError as error:  # it cannot be asked this
            logger.info("a labelled example is refused: %s", error)
            return False
        except ServingError as error:
            logger.warning("a labelled example was not answered: %s", error)
            broken += 1
            if broken == patience:
                return False
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
