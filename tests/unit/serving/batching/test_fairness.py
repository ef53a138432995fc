"""Prompts are computed in the order in which they came, whoever comes, decodes and leaves meanwhile; and no request,
however long, keeps shorter ones from their answers."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching.batch import Unobserved
from serving.batching.lanes import Lanes
from serving.batching.policy import Limits
from serving.batching.work import Generation, Vocabulary
from serving.engine import GenerationRequest, Sampling
from tests.causal_models import VOCABULARY, generated, make

LIMITS = Limits(kv_tokens=2000, prefix_tokens=0, long_share=0, max_rows=6, prefill_tokens=8)
NARROW = Limits(kv_tokens=640, prefix_tokens=0, long_share=0.2, max_rows=4, prefill_tokens=8)
"""The lane for long requests has room for one of 128 tokens; short are those of 32 at most."""
LONG = tuple(range(5, 85))


@pytest.fixture(scope="module")
def model():
    return make("Llama")


class Steps:
    """A batch that is stepped by hand; `begun` are the requests in the order of their first tokens."""

    def __init__(self, model, limits=LIMITS) -> None:
        self._lanes = Lanes(model, limits, 128, num_tokens=VOCABULARY, observer=Unobserved())
        self._vocabulary = Vocabulary(lambda ids: ",".join(map(str, ids)), VOCABULARY, frozenset({VOCABULARY}))
        self.works: list[Generation] = []
        self.begun: list[Generation] = []

    def ask(self, prompt: tuple[int, ...], max_tokens: int) -> Generation:
        work = Generation(GenerationRequest(prompt, max_tokens, Sampling(0)), self._vocabulary, self._lanes.stir)
        self._lanes.join(work)
        self.works.append(work)
        return work

    def step(self) -> None:
        self._lanes.step()
        self.begun += [work for work in self.works if work.num_output and work not in self.begun]


async def test_a_long_prompt_is_not_overtaken_by_those_that_come_every_step(model):
    steps = Steps(model)
    steps.ask((3, 4), 3)
    steps.step()
    long = steps.ask(LONG, 3)
    for number in range(len(LONG) // LIMITS.prefill_tokens + 1):
        steps.ask((6, 7 + number), 2)
        steps.step()
    assert long.num_output
    while any(work.ended is None for work in steps.works):
        steps.step()
    assert steps.begun == steps.works
    await asyncio.sleep(0)  # what was sent arrives
    assert [token async for delta in long.stream for token in delta.token_ids] == generated(
        model, LONG, 3, end_id=VOCABULARY
    )


async def test_the_order_holds_where_several_decode_and_end_apart(model):
    """Those whose answers end leave holes, which others fill from behind."""
    steps = Steps(model)
    for number in range(3):
        steps.ask((3, 4 + number), 2 + number)
    steps.step()
    for number in range(4):
        steps.ask(LONG[number : number + 30], 2)
        steps.ask((9, 9 + number), 1 + number)
        steps.step()
    while any(work.ended is None for work in steps.works):
        steps.step()
    assert steps.begun == steps.works


async def test_short_requests_do_not_wait_until_long_ones_end(model):
    """Three that each fill the lane for long ones, and one short one with every step."""
    steps = Steps(model, NARROW)
    longs = [steps.ask(LONG[number:], 128 - len(LONG[number:])) for number in range(3)]
    shorts = []
    for number in range(12):
        shorts.append(steps.ask((6, 7 + number), 3))
        steps.step()
    for _ in range(6):
        steps.step()
    assert all(work.ended == "length" for work in shorts)
    assert [work.ended for work in longs] == [None] * 3
    while any(work.ended is None for work in steps.works):
        steps.step()
    assert [work for work in steps.begun if work in longs] == longs
    await asyncio.sleep(0)
    for long in longs:
        prompt, most = long.tokens[: -long.num_output], long.num_output
        assert [token async for delta in long.stream for token in delta.token_ids] == generated(
            model, prompt, most, end_id=VOCABULARY
        )


arrivals = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(0, 8)), min_size=1, max_size=8)
long_arrivals = st.lists(st.tuples(st.integers(21, 60), st.integers(12, 60), st.integers(0, 8)), max_size=4)


def steps_to_the_end(model, shorts, longs) -> list[int]:
    """After how many steps each of the short ones has all of its answer, which is that of `model.generate`."""

    async def run() -> list[int]:
        steps, ended, due = Steps(model, NARROW), {}, [(*each, True) for each in shorts]
        due += [(*each, False) for each in longs]
        asked = []
        for now in range(1000):
            for place, (prompt, most, at, is_short) in enumerate(due):
                if at == now:
                    ids = tuple(2 + (place * 31 + token) % 90 for token in range(prompt))
                    asked.append((steps.ask(ids, most), ids, most, place if is_short else None))
            steps.step()
            for work, _, _, place in asked:
                if work.ended is not None and place is not None:
                    ended.setdefault(place, now)
            if len(ended) == len(shorts) and now > 8:
                break
        while any(work.ended is None for work in steps.works):
            steps.step()
        await asyncio.sleep(0)
        for work, ids, most, _ in asked:
            found = [token async for delta in work.stream for token in delta.token_ids]
            assert found == generated(model, ids, most, end_id=VOCABULARY)
        return [ended[place] for place in range(len(shorts))]

    return asyncio.run(run())


@settings(max_examples=15, deadline=None)
@given(shorts=arrivals, longs=long_arrivals)
def test_whatever_long_ones_are_there_short_ones_take_twice_as_many_steps_at_most(model, shorts, longs):
    """Twice: while both have prompts to read, each has half of what a step may read."""
    alone, beside = steps_to_the_end(model, shorts, []), steps_to_the_end(model, shorts, longs)
    assert all(late <= 2 * early + 1 for early, late in zip(alone, beside, strict=True)), (alone, beside)
