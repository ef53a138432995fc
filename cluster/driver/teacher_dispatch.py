"""The one dispatcher of a sharded teacher: makes students' questions into rounds that all shards run in lockstep.

A forward pass of ZeRO-3 is collective, so in each round every shard is called once: with a question, or with None to
keep step. Questions are never merged, so an answer does not depend on who else asked. A shard that is lost takes its
group with it; the group is started again and asked again, since answers are pure functions of the questions.
Knows neither Ray nor torch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cluster.errors import ClusterError
from trainer.errors import TrainerError
from trainer.wanted import Wanted

log = logging.getLogger(__name__)

Answer = Any
"""What a shard gives back for a parcel; the dispatcher never looks into either."""


class TeacherLost(ClusterError):
    """The teacher group is gone for good, as far as this attempt is concerned."""


class ShardLost(ClusterError):
    """A shard died, hung, or fell out of step: the group as it is cannot answer any more."""


@dataclass(frozen=True)
class Operation:
    """What is asked. Only equal ones share a round, for only they keep the shards in lockstep."""

    name: Literal["facts", "head", "targets", "generate", "score"]
    max_new_tokens: int = 0
    wanted: Wanted = field(default_factory=Wanted)
    """For targets."""


@dataclass(frozen=True)
class Policy:
    """How patient the dispatcher is."""

    linger_s: float = 0.005
    """How long an incomplete round waits for more questions."""
    start_timeout_s: float = 1800.0
    """For starting all shards, loading weights included."""
    round_timeout_s: float = 900.0
    """After this long without an answer a shard counts as hanging."""
    max_restarts: int = 3
    """In a row, without an answer in between."""

    @property
    def longest_wait_s(self) -> float:
        """After which a question is answered, or the teacher given up."""
        return (self.max_restarts + 1) * (self.start_timeout_s + self.round_timeout_s)


class ShardGroup(Protocol):
    """Shards that are started, called and stopped together."""

    @property
    def num_shards(self) -> int: ...

    async def start(self) -> None:
        """Returns when every shard can be called. ShardLost; TrainerError when this model cannot teach."""

    async def answer(self, operation: Operation, parcels: Sequence[Any | None]) -> Sequence[Answer]:
        """One parcel or None for each shard, one answer from each. Errors as in `start`."""

    def stop(self) -> None:
        """Ends all shards at once, whatever they do."""


@dataclass(frozen=True)
class Question:
    """Somebody waits for this."""

    operation: Operation
    parcel: Any
    answer: asyncio.Future[Answer]


class Dispatcher:
    """`ask` from any task; `run` in one task for as long as there are students."""

    def __init__(self, group: ShardGroup, policy: Policy) -> None:
        self._group = group
        self._policy = policy
        self._waiting: list[Question] = []
        self._asked: list[Question] = []
        self._arrived = asyncio.Event()
        self._restarts = 0
        self._end: Exception | None = None

    async def ask(self, operation: Operation, parcel: Any) -> Answer:
        """The shard's answer. TeacherLost when the teacher is gone, TrainerError when it cannot answer this."""
        if self._end is not None:
            raise self._end
        question = Question(operation, parcel, asyncio.get_running_loop().create_future())
        self._waiting.append(question)
        self._arrived.set()
        return await question.answer

    async def run(self) -> None:
        """Serves rounds until the teacher is lost for good; then every question gets that error."""
        try:
            await self._start()
            while True:
                self._asked = await self._next_round()
                await self._serve()
        except (TrainerError, TeacherLost) as error:
            self._end = error
        except Exception as error:
            self._end = TeacherLost("TEACHER_LOST", f"the teacher's dispatcher failed: {error!r}")
            log.exception("the dispatcher failed")
            raise
        finally:
            self._end = self._end or TeacherLost("TEACHER_LOST", "the teacher's dispatcher has ended")
            self._fail([*self._asked, *self._waiting], self._end)
            self._waiting.clear()
            self._group.stop()

    async def _next_round(self) -> list[Question]:
        """Equal operations, at most one question for each shard, the oldest question first."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        operation, loop = self._waiting[0].operation, asyncio.get_running_loop()
        end = loop.time() + self._policy.linger_s
        while len(self._ready(operation)) < self._group.num_shards and (left := end - loop.time()) > 0:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()
        chosen = self._ready(operation)
        self._waiting = [question for question in self._waiting if question not in chosen]
        return chosen

    def _ready(self, operation: Operation) -> list[Question]:
        equal = [question for question in self._waiting if question.operation == operation]
        return equal[: self._group.num_shards]

    async def _serve(self) -> None:
        """Asks until there is an answer."""
        operation = self._asked[0].operation
        parcels = [question.parcel for question in self._asked]
        parcels += [None] * (self._group.num_shards - len(parcels))
        while self._asked:
            try:
                async with asyncio.timeout(self._policy.round_timeout_s):
                    answers = await self._group.answer(operation, parcels)
            except TrainerError as error:
                self._fail(self._asked, error)
                self._asked = []
                await self._restart(error)
            except ShardLost as error:
                await self._restart(error)
            except TimeoutError:
                await self._restart(_silent("no answer", self._policy.round_timeout_s))
            else:
                for question, answer in zip(self._asked, answers, strict=False):
                    if not question.answer.done():
                        question.answer.set_result(answer)
                self._asked, self._restarts = [], 0

    async def _start(self) -> None:
        try:
            async with asyncio.timeout(self._policy.start_timeout_s):
                await self._group.start()
        except ShardLost as error:
            await self._restart(error)
        except TimeoutError:
            await self._restart(_silent("not loaded", self._policy.start_timeout_s))

    async def _restart(self, cause: Exception) -> None:
        self._group.stop()
        if self._restarts >= self._policy.max_restarts:
            message = f"the teacher was lost {self._restarts + 1} times, the last time: {cause}"
            raise TeacherLost("TEACHER_LOST", message) from cause
        self._restarts += 1
        log.warning("teacher lost (%s); restart %d of %d", cause, self._restarts, self._policy.max_restarts)
        await self._start()

    @staticmethod
    def _fail(questions: Sequence[Question], error: Exception) -> None:
        for question in questions:
            if not question.answer.done():
                question.answer.set_exception(error)


class Replicas:
    """Dispatchers of one teacher that answer side by side."""

    def __init__(self, dispatchers: Sequence[Dispatcher]) -> None:
        self._dispatchers = list(dispatchers)
        self._asked = [0] * len(self._dispatchers)
        self._lost: set[int] = set()

    async def ask(self, operation: Operation, parcel: Any) -> Answer:
        """By the replica with the fewest questions; what a lost one leaves, others answer. TeacherLost by the last."""
        while True:
            left = [at for at in range(len(self._dispatchers)) if at not in self._lost] or [0]
            at = min(left, key=self._asked.__getitem__)
            self._asked[at] += 1
            try:
                return await self._dispatchers[at].ask(operation, parcel)
            except TeacherLost as error:
                self._lost.add(at)
                if len(self._lost) == len(self._dispatchers):
                    raise
                log.warning("replica %d of the teacher is lost, the others go on: %s", at, error)
            finally:
                self._asked[at] -= 1


def _silent(what: str, seconds: float) -> ShardLost:
    return ShardLost("SHARD_SILENT", f"{what} within {seconds:g} s, so a shard counts as hanging")
