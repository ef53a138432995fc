"""Greedy answers are those of `model.generate`, token for token, whoever else is there and however it was computed."""

from __future__ import annotations

import asyncio
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batching.engine import TransformersEngine
from serving.batching.policy import Limits
from serving.batching.runner import PackedRunner, SeparateRunner, choose_runner
from serving.engine import GenerationRequest, Sampling
from tests.causal_models import END_ID, PACKED, SEPARATE, VOCABULARY, generated, make

SYSTEM_PROMPT = tuple(range(20, 55))
GREEDY = Sampling(temperature=0)

tokens = st.integers(2, VOCABULARY - 1)
prompts = st.builds(
    lambda shared, own: SYSTEM_PROMPT[:shared] + tuple(own),
    st.sampled_from([0, 0, 20, 35]),
    st.lists(tokens, min_size=1, max_size=20),
)
arrivals = st.lists(st.tuples(prompts, st.integers(1, 16), st.integers(0, 6)), min_size=1, max_size=9)
limits = st.builds(
    lambda cache, **others: Limits(kv_tokens=cache[0], long_share=cache[1], **others),
    cache=st.sampled_from([(120, 0.0), (300, 0.0), (300, 0.5), (1000, 0.0), (1000, 0.5), (2000, 0.1)]),
    prefix_tokens=st.sampled_from([0, 32]),
    max_rows=st.sampled_from([1, 2, 5]),
    prefill_tokens=st.sampled_from([1, 7, 24, 400]),
)


@lru_cache
def model(name):
    return make(name)


@lru_cache(maxsize=4096)
def expected(name, prompt, max_tokens):
    return generated(model(name), prompt, max_tokens)


def engine(name, bounds, **options):
    settings = {"context_length": 128, "num_tokens": VOCABULARY, "end_ids": frozenset({END_ID}), **options}
    return TransformersEngine(model(name), lambda ids: "".join(f"{each}," for each in ids), limits=bounds, **settings)


async def answers(name, wanted, bounds):
    """Each request comes when the ones before it have got so many tokens, of all together."""
    running, count, moved = engine(name, bounds), 0, asyncio.Event()

    async def ask(prompt, max_tokens, after):
        nonlocal count
        while count < after:
            moved.clear()
            await moved.wait()
        found = []
        async for delta in running.submit(GenerationRequest(prompt, max_tokens, GREEDY)):
            found += delta.token_ids
            count += 1
            moved.set()
        return found

    # Never later than the tokens that come for sure: one of each request before.
    due = [(prompt, most, min(after, place)) for place, (prompt, most, after) in enumerate(wanted)]
    try:
        return await asyncio.wait_for(asyncio.gather(*(ask(*each) for each in due)), 60)
    finally:
        running.close()


@pytest.mark.parametrize("name", PACKED)
@settings(max_examples=12, deadline=None)
@given(wanted=arrivals, bounds=limits)
def test_any_mix_any_order_any_chunks(name, wanted, bounds):
    found = asyncio.run(answers(name, wanted, bounds))
    assert found == [expected(name, prompt, max_tokens) for prompt, max_tokens, _ in wanted]


@pytest.mark.parametrize("name", SEPARATE)
@settings(max_examples=3, deadline=None)
@given(wanted=arrivals, bounds=limits)
def test_also_where_no_cache_is_shared(name, wanted, bounds):
    found = asyncio.run(answers(name, wanted, bounds))
    assert found == [expected(name, prompt, max_tokens) for prompt, max_tokens, _ in wanted]


@pytest.mark.parametrize("name", PACKED)
def test_eager_attention_too(name):
    eager = make(name, attn_implementation="eager")
    assert isinstance(choose_runner(eager, bound=256, max_rows=2), PackedRunner)


@pytest.mark.parametrize(
    ("name", "kind"), [(n, PackedRunner) for n in PACKED] + [(n, SeparateRunner) for n in SEPARATE]
)
def test_the_fast_way_wherever_it_is_right(name, kind):
    assert isinstance(choose_runner(model(name), bound=256, max_rows=2), kind)


MOVING = {
    "dynamic": {"max_position_embeddings": 24, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "original_max_position_embeddings": 24,
            "factor": 128 / 24,
            "short_factor": [1.0] * 4,
            "long_factor": [8.0, 6.0, 4.0, 2.0],
        }
    },
}


@pytest.mark.parametrize("kind", MOVING)
def test_frequencies_that_follow_the_length_are_those_of_each_row(kind):
    """A long text beside them, and before them, changes nothing for the others."""
    changes = MOVING[kind] | {"rope_parameters": {"rope_theta": 100.0, **MOVING[kind]["rope_parameters"]}}
    prompts = [tuple(range(2, 92)), (9, 30, 31), tuple(range(40, 70)), (12, 5, 60)]
    alone = [generated(make("Llama", **changes), prompt, 12) for prompt in prompts]

    async def ask():
        settings = {"context_length": 128, "num_tokens": VOCABULARY, "end_ids": frozenset({END_ID})}
        running = TransformersEngine(make("Llama", **changes), lambda ids: "," * len(ids), **settings)
        streams = [running.submit(GenerationRequest(prompt, 12, GREEDY)) for prompt in prompts]
        try:
            return [[token async for delta in stream for token in delta.token_ids] for stream in streams]
        finally:
            running.close()

    assert asyncio.run(ask()) == alone
