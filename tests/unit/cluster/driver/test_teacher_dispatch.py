"""The dispatcher against shards that are written down here: rounds, lockstep, loss, and the end of patience."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from cluster.driver.teacher_dispatch import Dispatcher, Operation, Policy, Replicas, ShardLost, TeacherLost
from trainer.errors import UserError

TARGETS = Operation("targets")
LOST = ShardLost("SHARD_LOST", "the actor died")


class Shards:
    """Echoes its parcels; fails as its script says, once for each entry; `None` in it is a call that goes well."""

    def __init__(
        self, num_shards: int, *, starts: Sequence[Exception | None] = (), calls: Sequence[object] = ()
    ) -> None:
        self.num_shards = num_shards
        self.rounds: list[tuple[Operation, list[object]]] = []
        self.num_starts = self.num_stops = 0
        self._starts, self._calls = list(starts), list(calls)

    async def start(self) -> None:
        self.num_starts += 1
        if self._starts and (error := self._starts.pop(0)):
            raise error

    async def answer(self, operation: Operation, parcels: Sequence[object | None]) -> list[object]:
        assert len(parcels) == self.num_shards
        self.rounds.append((operation, list(parcels)))
        event = self._calls.pop(0) if self._calls else None
        if isinstance(event, Exception):
            raise event
        if event == "hang":
            await asyncio.Event().wait()
        return [None if parcel is None else f"answer to {parcel}" for parcel in parcels]

    def stop(self) -> None:
        self.num_stops += 1


@asynccontextmanager
async def dispatching(shards: Shards, **policy: float) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(shards, Policy(**{"linger_s": 0.0, **policy}))
    running = asyncio.create_task(dispatcher.run())
    yield dispatcher
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def ask_all(dispatcher: Dispatcher, *questions: tuple[Operation, str]) -> list[object]:
    return await asyncio.gather(*(dispatcher.ask(operation, parcel) for operation, parcel in questions))


async def test_every_question_gets_its_own_answer_and_each_shard_one_question_a_round() -> None:
    shards = Shards(2)
    async with dispatching(shards) as dispatcher:
        answers = await ask_all(dispatcher, *[(TARGETS, str(n)) for n in range(5)])
    assert answers == [f"answer to {n}" for n in range(5)]
    assert [parcels for _, parcels in shards.rounds] == [["0", "1"], ["2", "3"], ["4", None]]


async def test_only_equal_operations_share_a_round() -> None:
    short, long = Operation("generate", 8), Operation("generate", 16)
    shards = Shards(3)
    async with dispatching(shards) as dispatcher:
        await ask_all(dispatcher, (short, "a"), (long, "b"), (short, "c"), (TARGETS, "d"))
    assert shards.rounds == [(short, ["a", "c", None]), (long, ["b", None, None]), (TARGETS, ["d", None, None])]


async def test_an_incomplete_round_waits_for_company_and_a_complete_one_does_not() -> None:
    shards = Shards(2)
    async with dispatching(shards, linger_s=60.0) as dispatcher:
        first = asyncio.create_task(dispatcher.ask(TARGETS, "first"))
        await asyncio.sleep(0)
        await asyncio.wait_for(dispatcher.ask(TARGETS, "second"), timeout=5)
        await first
    assert [parcels for _, parcels in shards.rounds] == [["first", "second"]]


async def test_a_lost_shard_costs_a_restart_of_the_group_and_no_answer() -> None:
    shards = Shards(2, calls=[None, LOST])
    async with dispatching(shards) as dispatcher:
        answers = await ask_all(dispatcher, *[(TARGETS, str(n)) for n in range(6)])
    assert answers == [f"answer to {n}" for n in range(6)]
    assert [parcels for _, parcels in shards.rounds] == [["0", "1"], ["2", "3"], ["2", "3"], ["4", "5"]]
    assert shards.num_starts == 2


async def test_a_hanging_shard_is_a_lost_one() -> None:
    shards = Shards(1, calls=["hang"])
    async with dispatching(shards, round_timeout_s=0.01) as dispatcher:
        assert await dispatcher.ask(TARGETS, "a") == "answer to a"
    assert shards.num_starts == 2


async def test_a_teacher_that_always_hangs_is_lost_with_words_that_say_so() -> None:
    shards = Shards(1, calls=["hang"] * 2)
    async with dispatching(shards, round_timeout_s=0.01, max_restarts=1) as dispatcher:
        with pytest.raises(TeacherLost, match=r"2 times, the last time: no answer within 0\.01 s"):
            await dispatcher.ask(TARGETS, "a")


async def test_a_group_that_does_not_start_is_started_again() -> None:
    shards = Shards(1, starts=[LOST, LOST])
    async with dispatching(shards) as dispatcher:
        assert await dispatcher.ask(TARGETS, "a") == "answer to a"
    assert shards.num_starts == 3


async def test_a_teacher_lost_too_often_is_lost_for_everybody() -> None:
    shards = Shards(1, calls=[LOST] * 4)
    async with dispatching(shards, max_restarts=3) as dispatcher:
        answers = await asyncio.gather(*(dispatcher.ask(TARGETS, p) for p in "ab"), return_exceptions=True)
        assert [type(answer) for answer in answers] == [TeacherLost, TeacherLost]
        assert "4 times" in str(answers[0])
        with pytest.raises(TeacherLost):
            await dispatcher.ask(TARGETS, "later")
    assert shards.num_starts == 4
    assert shards.num_stops >= 4


async def test_a_model_that_cannot_teach_is_said_in_its_own_words_and_not_tried_again() -> None:
    unsafe = UserError("UNSAFE_MODEL_FILE", "only pickled weights")
    shards = Shards(2, starts=[unsafe])
    async with dispatching(shards) as dispatcher:
        with pytest.raises(UserError, match="only pickled weights"):
            await dispatcher.ask(TARGETS, "a")
    assert shards.num_starts == 1


async def test_a_question_that_cannot_be_answered_fails_alone() -> None:
    shards = Shards(1, calls=[UserError("TOO_LONG", "longer than the model reads")])
    async with dispatching(shards) as dispatcher:
        with pytest.raises(UserError, match="longer than the model reads"):
            await dispatcher.ask(TARGETS, "a")
        assert await dispatcher.ask(TARGETS, "b") == "answer to b"


async def test_whoever_still_waits_when_the_dispatcher_ends_is_told() -> None:
    shards = Shards(1, calls=["hang"])
    async with dispatching(shards) as dispatcher:
        waiting = [asyncio.create_task(dispatcher.ask(TARGETS, parcel)) for parcel in "ab"]
        while not shards.rounds:
            await asyncio.sleep(0)
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [TeacherLost, TeacherLost]


async def test_whoever_gave_up_waiting_disturbs_nobody() -> None:
    shards = Shards(2)
    async with dispatching(shards, linger_s=60.0) as dispatcher:
        left = asyncio.create_task(dispatcher.ask(TARGETS, "left"))
        await asyncio.sleep(0)
        left.cancel()
        assert await dispatcher.ask(TARGETS, "stays") == "answer to stays"


async def test_replicas_share_the_questions() -> None:
    first, second = Shards(1), Shards(1)
    async with dispatching(first) as one, dispatching(second) as other:
        replicas = Replicas([one, other])
        answers = await asyncio.gather(*(replicas.ask(TARGETS, str(n)) for n in range(6)))
    assert answers == [f"answer to {n}" for n in range(6)]
    assert [parcels for _, parcels in first.rounds] == [["0"], ["2"], ["4"]]
    assert [parcels for _, parcels in second.rounds] == [["1"], ["3"], ["5"]]


async def test_what_a_lost_replica_leaves_the_others_answer() -> None:
    sick, well = Shards(1, calls=[LOST] * 9), Shards(1)
    async with dispatching(sick, max_restarts=1) as one, dispatching(well) as other:
        replicas = Replicas([one, other])
        answers = await asyncio.gather(*(replicas.ask(TARGETS, str(n)) for n in range(6)))
        assert await replicas.ask(TARGETS, "later") == "answer to later"
    assert answers == [f"answer to {n}" for n in range(6)]
    assert (len(sick.rounds), len(well.rounds)) == (2, 7)


async def test_a_teacher_is_lost_with_its_last_replica() -> None:
    groups = [Shards(1, calls=[LOST] * 9) for _ in range(2)]
    async with dispatching(groups[0], max_restarts=0) as one, dispatching(groups[1], max_restarts=0) as other:
        replicas = Replicas([one, other])
        for _ in range(2):
            with pytest.raises(TeacherLost, match="the teacher was lost 1 times"):
                await replicas.ask(TARGETS, "a")
    assert [len(group.rounds) for group in groups] == [1, 1]
