"""Prompts are computed in the order in which they came, whoever comes, decodes and leaves meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from serving.batching.batch import Batch, Unobserved
from serving.batching.line import Line
from serving.batching.policy import Limits
from serving.batching.runner import choose_runner
from serving.batching.work import Generation, Vocabulary
from serving.engine import GenerationRequest, Sampling
from tests.causal_models import VOCABULARY, generated, make

LIMITS = Limits(kv_tokens=2000, prefix_tokens=0, max_rows=6, prefill_tokens=8)
LONG = tuple(range(5, 85))


@pytest.fixture(scope="module")
def model():
    return make("Llama")


class Steps:
    """A batch that is stepped by hand; `begun` are the requests in the order of their first tokens."""

    def __init__(self, model) -> None:
        self._line = Line(LIMITS.max_waiting)
        runner = choose_runner(model, bound=LIMITS.row_tokens, max_rows=LIMITS.max_rows)
        self._batch = Batch(runner, LIMITS, self._line, num_tokens=VOCABULARY, observer=Unobserved())
        self._vocabulary = Vocabulary(lambda ids: ",".join(map(str, ids)), VOCABULARY, frozenset({VOCABULARY}))
        self.works: list[Generation] = []
        self.begun: list[Generation] = []

    def ask(self, prompt: tuple[int, ...], max_tokens: int) -> Generation:
        work = Generation(GenerationRequest(prompt, max_tokens, Sampling(0)), self._vocabulary, self._line.stir)
        self._line.join(work)
        self.works.append(work)
        return work

    def step(self) -> None:
        self._batch.step()
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
