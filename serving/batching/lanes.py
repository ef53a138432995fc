"""The batches of one model: short requests in one, long ones in another, so that no short one waits until those end.

Each lane has its line and its part of the cache (`policy.lanes`); a step brings all of them on, and what prompts may
compute in it is divided among the lanes that have some. Kept prefixes are shared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING

from serving.batching import policy
from serving.batching.batch import Batch
from serving.batching.line import Line
from serving.batching.policy import Limits
from serving.batching.prefixes import PrefixPool
from serving.batching.runner import choose_runner
from serving.batching.work import Work
from serving.engine import Load, Observer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class Lanes:
    """Joined from many threads; stepped by one, which waits here while there is nothing to do."""

    def __init__(
        self,
        model: PreTrainedModel,
        limits: Limits,
        context_length: int,
        *,
        num_tokens: int,
        observer: Observer,
    ) -> None:
        self._limits = limits
        self._observer = observer
        self._bell = Event()
        self._prefixes = PrefixPool(limits.prefix_tokens)
        self._lanes = policy.lanes(limits, context_length)
        self._lines = [Line(limits.max_waiting, self._bell) for _ in self._lanes]
        self.batches = [
            Batch(
                choose_runner(model, bound=lane.limits.row_tokens, max_rows=limits.max_rows),
                lane.limits,
                line,
                self._prefixes,
                num_tokens=num_tokens,
                observer=observer,
            )
            for lane, line in zip(self._lanes, self._lines, strict=True)
        ]

    @property
    def longest(self) -> int:
        """Tokens of the longest request that any of them takes."""
        return max(lane.longest for lane in self._lanes)

    @property
    def closed(self) -> bool:
        return any(line.closed for line in self._lines)

    @property
    def sound(self) -> bool:
        """Nothing is left behind that could not be taken away."""
        return not any(batch.unclean for batch in self.batches)

    @property
    def failures(self) -> int:
        """Steps in a row that broke, in the lane where there were most."""
        return max(batch.failures for batch in self.batches)

    @property
    def load(self) -> Load:
        each = [batch.load for batch in self.batches]
        used = sum(load.kv_used for load in each) + self._prefixes.num_tokens
        running, waiting = sum(load.running for load in each), sum(load.waiting for load in each)
        return Load(running, waiting, used, self._limits.kv_tokens)

    def join(self, work: Work) -> None:
        """Overloaded where too many wait in its lane."""
        lane = next(at for at, lane in enumerate(self._lanes) if work.reserved <= lane.longest)
        self._lines[lane].join(work)

    def stir(self) -> None:
        """Somebody went; whoever waits for news looks again."""
        self._bell.set()

    def wait(self) -> None:
        """Until there is something to do, somebody went, or all is closed."""
        self._bell.clear()
        if not self.closed and not any(batch.busy for batch in self.batches):
            self._bell.wait()

    def step(self) -> None:
        """Each lane comes on by a step; what breaks in one of them ends nothing in the others."""
        began, done = time.monotonic(), []
        busy = [batch for batch in self.batches if batch.busy]
        for batch in busy:
            with _failing_alone(batch):
                batch.let_in()
        budget = max(self._limits.prefill_tokens // max(sum(batch.reads for batch in busy), 1), 1)
        for batch in busy:
            with _failing_alone(batch):
                done.append(batch.step(budget))
        prefilled, decoded = sum(each.prefilled for each in done), sum(each.decoded for each in done)
        self._observer.stepped(self.load, prefilled, decoded, time.monotonic() - began)

    def close(self) -> list[Work]:
        """Whoever waited in vain."""
        return [work for line in self._lines for work in line.close()]

    def fail_all(self) -> None:
        """The thread ends, and with it all that is here."""
        for batch, line in zip(self.batches, self._lines, strict=True):
            batch.fail_all(line.close())


@contextmanager
def _failing_alone(batch: Batch) -> Iterator[None]:
    try:
        yield
    except Exception:  # the process boundary: logged, its requests fail, and the thread goes on
        logger.exception("a step broke; %d requests fail", batch.load.running)
        batch.fail_all()
