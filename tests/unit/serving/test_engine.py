"""Streams of text out of a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from threading import Event

import pytest
import torch

from serving.batching.engine import TransformersEngine
from serving.engine import Delta, GenerationRequest, Load, Sampling, TokenStream
from serving.errors import EngineFailed, Overloaded

GREEDY = Sampling(temperature=0)
PROMPTS = [(9, 30, 31), (40,), tuple(range(50, 75)), (9, 30, 31, 200, 100, 7), (12, 12)]


def ids_as_text(ids: Sequence[int]) -> str:
    return "".join(f"{token}," for token in ids)


def make_engine(model, **options) -> TransformersEngine:
    settings = {"context_length": 128, "num_tokens": model.config.vocab_size, "end_ids": frozenset({1}), **options}
    return TransformersEngine(model, ids_as_text, **settings)


@pytest.fixture
def engine(model):
    engine = make_engine(model)
    yield engine
    engine.close()


async def collect(stream: TokenStream) -> list[Delta]:
    return [delta async for delta in stream]


async def texts(engine: TransformersEngine, requests: Sequence[GenerationRequest]) -> list[str]:
    answers = await asyncio.gather(*(collect(engine.submit(request)) for request in requests))
    return ["".join(delta.text for delta in deltas) for deltas in answers]


def generated(model, prompt: Sequence[int], max_tokens: int, end_id: int = 1) -> list[int]:
    """What `model.generate` adds to one prompt, the end token left out."""
    output = model.generate(
        torch.tensor([list(prompt)]), max_new_tokens=max_tokens, do_sample=False, eos_token_id=end_id, pad_token_id=0
    )
    tokens = output[0, len(prompt) :].tolist()
    return tokens[:-1] if tokens[-1] == end_id else tokens


@pytest.fixture
def gate(model, monkeypatch):
    """Holds every step of the model until it is set; `entered` says that one is held."""
    gate, entered, forward = Event(), Event(), model.forward

    def held(*args, **kwargs):
        entered.set()
        assert gate.wait(30)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", held)
    gate.entered = entered
    yield gate
    gate.set()


def record_widths(model) -> list[int]:
    """The number of rows of each step that begins from now on; the gate takes the recording away again."""
    widths, forward = [], model.forward
    model.forward = lambda *args, **kwargs: widths.append(len(kwargs["input_ids"])) or forward(*args, **kwargs)
    return widths


async def test_greedy_equals_generate_token_for_token_in_any_mix(engine, model):
    requests = [GenerationRequest(prompt, 5 + 9 * row, GREEDY) for row, prompt in enumerate(PROMPTS)]
    expected = [ids_as_text(generated(model, each.prompt_ids, each.max_tokens)) for each in requests]
    assert await texts(engine, requests) == expected
    assert await texts(engine, requests[::-1]) == expected[::-1]
    assert [(await texts(engine, [request]))[0] for request in requests] == expected


async def test_the_end_token_stops_a_row_and_has_no_text(model):
    prompt = PROMPTS[2]
    first_seen = {token: at for at, token in reversed(list(enumerate(generated(model, prompt, 30))))}
    end_id, at = max(first_seen.items(), key=lambda item: item[1])
    engine = make_engine(model, end_ids=frozenset({end_id}))
    deltas = await collect(engine.submit(GenerationRequest(prompt, 64, GREEDY)))
    engine.close()
    assert "".join(delta.text for delta in deltas) == ids_as_text(generated(model, prompt, 64, end_id))
    assert deltas[-1].finish_reason == "stop"
    assert sum(delta.num_tokens for delta in deltas) == at + 1


async def test_max_tokens_ends_with_length(engine):
    deltas = await collect(engine.submit(GenerationRequest(PROMPTS[0], 7, GREEDY)))
    assert [delta.finish_reason for delta in deltas] == [None] * 6 + ["length"]


async def test_a_stop_string_across_tokens_cuts_the_text(engine, model):
    tokens = generated(model, PROMPTS[0], 12)
    stop = f"{tokens[4]},{tokens[5]},"  # the fake text of two tokens
    expected, _, _ = ids_as_text(tokens).partition(stop)
    deltas = await collect(engine.submit(GenerationRequest(PROMPTS[0], 12, GREEDY, stop=(stop,))))
    assert "".join(delta.text for delta in deltas) == expected
    assert deltas[-1].finish_reason == "stop"


async def test_a_seed_draws_the_same_whoever_else_is_in_the_batch(engine):
    seeded = GenerationRequest(PROMPTS[0], 20, Sampling(temperature=1.3, top_p=0.9, seed=5))
    others = [GenerationRequest(prompt, 30, Sampling(temperature=1.3)) for prompt in PROMPTS]
    [alone] = await texts(engine, [seeded])
    assert (await texts(engine, [*others, seeded]))[-1] == alone
    assert await texts(engine, [replace(seeded, sampling=replace(seeded.sampling, seed=6))]) != [alone]


async def test_requests_that_wait_are_taken_together(engine, model, gate):
    streams = [engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY))]
    await asyncio.to_thread(gate.entered.wait, 30)
    streams += [engine.submit(GenerationRequest(prompt, 2, GREEDY)) for prompt in PROMPTS]
    assert engine.load == Load(running=1, waiting=len(PROMPTS))
    widths = record_widths(model)
    gate.set()
    await asyncio.gather(*map(collect, streams))
    assert widths == [len(PROMPTS)] * 2


async def test_a_batch_holds_no_more_tokens_than_its_bound(model, gate):
    """Rows times the longest of them: three short ones together, the long one alone, and the last one after it."""
    engine = make_engine(model, max_batch_tokens=36)
    streams = [engine.submit(GenerationRequest(PROMPTS[1], 1, GREEDY))]
    await asyncio.to_thread(gate.entered.wait, 30)
    lengths = [11, 11, 11, 60, 11]
    streams += [engine.submit(GenerationRequest(PROMPTS[1], length, GREEDY)) for length in lengths]
    widths = record_widths(model)
    gate.set()
    assert [len(await collect(stream)) for stream in streams] == [1, *lengths]
    assert widths == [3] * 11 + [1] * 60 + [1] * 11
    engine.close()


async def test_too_many_waiting_are_refused(model, gate):
    engine = make_engine(model, max_waiting=2)
    streams = [engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY))]
    await asyncio.to_thread(gate.entered.wait, 30)
    streams += [engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY)) for _ in range(2)]
    with pytest.raises(Overloaded):
        engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY))
    gate.set()
    assert all([await collect(stream) for stream in streams])
    engine.close()


async def test_a_client_that_goes_leaves_the_batch(engine, model, gate):
    """The rows in the model's steps: two, then only the one whose client stayed."""
    widths = record_widths(model)
    blocker = engine.submit(GenerationRequest(PROMPTS[1], 1, GREEDY))
    await asyncio.to_thread(gate.entered.wait, 30)
    gone = engine.submit(GenerationRequest(PROMPTS[0], 100, GREEDY))
    stays = engine.submit(GenerationRequest(PROMPTS[2], 100, GREEDY))
    gate.set()
    await collect(blocker)
    await anext(gone)
    await gone.aclose()
    assert len(await collect(stays)) == 100
    assert widths[1] == 2
    assert widths[-1] == 1
    assert [delta async for delta in gone] == []


async def test_a_request_whose_client_went_before_its_turn_is_never_run(engine, model, gate):
    first = engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY))
    await asyncio.to_thread(gate.entered.wait, 30)
    gone = engine.submit(GenerationRequest(PROMPTS[1], 100, GREEDY))
    await gone.aclose()
    last = engine.submit(GenerationRequest(PROMPTS[2], 1, GREEDY))
    widths = record_widths(model)
    gate.set()
    await collect(first)
    await collect(last)
    assert widths == [1]


async def test_a_broken_batch_fails_its_requests_and_the_next_one_is_served(engine, model, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", broken)
        with pytest.raises(EngineFailed):
            await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY)))
    assert "no memory" in caplog.text
    assert len(await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY)))) == 3


async def test_close_fails_what_is_open_and_refuses_more(model, gate):
    engine = make_engine(model)
    running = engine.submit(GenerationRequest(PROMPTS[0], 100, GREEDY))
    await asyncio.to_thread(gate.entered.wait, 30)
    waiting = engine.submit(GenerationRequest(PROMPTS[1], 100, GREEDY))
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    with pytest.raises(EngineFailed):
        await collect(waiting)
    gate.set()
    await closing
    with pytest.raises(EngineFailed):
        await collect(running)
    with pytest.raises(EngineFailed):
        engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY))
