"""Streams of text out of a batch that requests join and leave as they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch

from serving.batching.engine import TransformersEngine
from serving.batching.policy import Limits
from serving.engine import Delta, GenerationRequest, Load, Sampling, TokenStream
from serving.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded
from serving.replica_metrics import ReplicaMetrics
from tests.causal_models import END_ID, VOCABULARY, generated, make

GREEDY = Sampling(temperature=0)
DRAWN = Sampling(temperature=1.3, top_p=0.95, seed=5)
PROMPTS = [(9, 30, 31), (40,), tuple(range(50, 75)), (9, 30, 31, 20, 10, 7), (12, 12)]
NEVER = frozenset({VOCABULARY})


def ids_as_text(ids: Sequence[int]) -> str:
    return "".join(f"{token}," for token in ids)


@pytest.fixture(scope="module")
def shared_model():
    return make("Llama")


@pytest.fixture
def model(shared_model, monkeypatch):
    """Its forward may be patched."""
    monkeypatch.setattr(shared_model, "forward", shared_model.forward, raising=False)
    return shared_model


@pytest.fixture
def start(model):
    """Makes engines that end with the test."""
    engines = []

    def start(observer=None, end_ids=NEVER, **limits) -> TransformersEngine:
        settings = {"context_length": 128, "num_tokens": VOCABULARY, "end_ids": end_ids, "observer": observer}
        engines.append(TransformersEngine(model, ids_as_text, limits=Limits(**limits), **settings))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


@pytest.fixture
def gate(start, model, monkeypatch):
    """Holds every step of the model once it is closed; `entered` says that one is held."""
    gate, entered, forward = Event(), Event(), model.forward
    gate.set()

    def held(*args, **kwargs):
        if not gate.is_set():
            entered.set()
            assert gate.wait(30)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", held)
    gate.entered = entered
    yield gate
    gate.set()


async def held(gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, 30)


async def collect(stream: TokenStream) -> list[Delta]:
    return [delta async for delta in stream]


async def tokens_of(stream: TokenStream) -> list[int]:
    return [token async for delta in stream for token in delta.token_ids]


def record_widths(model, monkeypatch) -> list[tuple[int, int]]:
    """Rows and tokens of each run of the model from now on."""
    widths, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda **kwargs: widths.append(tuple(kwargs["input_ids"].shape)) or forward(**kwargs)
    )
    return widths


async def test_a_request_joins_those_that_run_and_ends_before_them(start):
    engine = start()
    long = engine.submit(GenerationRequest(PROMPTS[0], 100, GREEDY))
    await anext(long)
    assert len(await collect(engine.submit(GenerationRequest(PROMPTS[1], 3, GREEDY)))) == 3
    assert engine.load.running == 1
    assert len(await collect(long)) == 99


async def test_the_end_token_stops_a_row_and_has_no_text(start, model):
    tokens = generated(model, PROMPTS[2], 30, end_id=VOCABULARY)
    end_id = tokens[7]
    at = tokens.index(end_id)
    deltas = await collect(start(end_ids=frozenset({end_id})).submit(GenerationRequest(PROMPTS[2], 64, GREEDY)))
    assert "".join(delta.text for delta in deltas) == ids_as_text(tokens[:at])
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].token_ids == (end_id,)
    assert sum(delta.num_tokens for delta in deltas) == at + 1


async def test_max_tokens_ends_with_length(start):
    deltas = await collect(start().submit(GenerationRequest(PROMPTS[0], 7, GREEDY)))
    assert [delta.finish_reason for delta in deltas] == [None] * 6 + ["length"]


async def test_a_stop_string_across_tokens_cuts_the_text(start, model):
    tokens = generated(model, PROMPTS[0], 12, end_id=VOCABULARY)
    stop = f"{tokens[4]},{tokens[5]},"  # the fake text of two tokens
    expected, _, _ = ids_as_text(tokens).partition(stop)
    deltas = await collect(start().submit(GenerationRequest(PROMPTS[0], 12, GREEDY, stop=(stop,))))
    assert "".join(delta.text for delta in deltas) == expected
    assert deltas[-1].finish_reason == "stop"


async def test_a_seed_draws_the_same_whoever_else_is_in_the_batch(start):
    engine = start()
    seeded = GenerationRequest(PROMPTS[0], 20, DRAWN)
    others = [engine.submit(GenerationRequest(prompt, 30, Sampling(temperature=1.3))) for prompt in PROMPTS]
    together, *_ = await asyncio.gather(tokens_of(engine.submit(seeded)), *map(collect, others))
    assert await tokens_of(engine.submit(seeded)) == together
    assert await tokens_of(engine.submit(replace(seeded, sampling=replace(DRAWN, seed=6)))) != together


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, repetition_penalty=1.3, frequency_penalty=0.5)])
async def test_what_was_given_goes_on_exactly(start, sampling):
    engine = start()
    whole = GenerationRequest(PROMPTS[3], 14, sampling, stop=("never",))
    deltas = await collect(engine.submit(whole))
    tokens = [token for delta in deltas for token in delta.token_ids]
    for given in range(1, len(tokens) + 1):
        rest = await collect(engine.submit(replace(whole, given_ids=tuple(tokens[:given]))))
        assert [token for delta in rest for token in delta.token_ids] == tokens[given:]
        assert "".join(delta.text for delta in rest) == "".join(delta.text for delta in deltas[given:])
        assert rest[-1].finish_reason == "length"


async def test_logprobs_are_the_models_own(start, model):
    sampling = replace(DRAWN, logit_bias=((3, 5.0),), presence_penalty=1.0)
    deltas = await collect(start().submit(GenerationRequest(PROMPTS[0], 9, sampling, logprobs=2)))
    tokens = [token for delta in deltas for token in delta.token_ids]
    log_TV = model(torch.tensor([[*PROMPTS[0], *tokens]])).logits[0].log_softmax(-1)
    for at, delta in enumerate(deltas):
        [told] = delta.logprobs
        log_V = log_TV[len(PROMPTS[0]) - 1 + at]
        assert told.token_id == tokens[at]
        assert told.logprob == pytest.approx(log_V[tokens[at]].item(), abs=1e-4)
        assert [token for token, _ in told.top] == log_V.topk(2).indices.tolist()


async def test_a_score_is_of_each_token_given_all_before(start, model):
    """In parts, beside requests that are answered."""
    engine = start(prefill_tokens=4)
    text = PROMPTS[2]
    log_TV = model(torch.tensor([text])).logits[0].log_softmax(-1)
    beside = engine.submit(GenerationRequest(PROMPTS[0], 20, GREEDY))
    for first in (1, 6, len(text) - 1):
        scored = await engine.score(text, start=first, top_k=3)
        assert [each.token_id for each in scored.tokens] == list(text[first:])
        for at, each in enumerate(scored.tokens, first):
            assert each.logprob == pytest.approx(log_TV[at - 1, text[at]].item(), abs=1e-4)
            assert [token for token, _ in each.top] == log_TV[at - 1].topk(3).indices.tolist()
    assert await tokens_of(beside) == generated(model, PROMPTS[0], 20, end_id=VOCABULARY)
    with pytest.raises(InvalidRequest, match="start must be"):
        await engine.score(text, start=len(text))


async def test_a_prompt_is_computed_in_parts_while_others_go_on(start, model, gate, monkeypatch):
    engine = start(prefill_tokens=8)
    first = engine.submit(GenerationRequest(PROMPTS[1], 30, GREEDY))
    await anext(first)
    gate.clear()
    await held(gate)
    second = engine.submit(GenerationRequest(PROMPTS[2], 2, GREEDY))
    widths = record_widths(model, monkeypatch)
    gate.set()
    await collect(second)
    assert len(PROMPTS[2]) == 25
    beside = 1  # the next token of the first request, in every run
    assert [tokens - beside for _, tokens in widths[:5]] == [8, 8, 8, 1, 1]
    assert all(rows == 1 for rows, _ in widths), "in one line, so that nothing is padded"
    await collect(first)


async def test_a_prompt_that_breaks_the_model_takes_nobody_along(start, model, monkeypatch, caplog):
    engine = start(prefill_tokens=64)
    first = engine.submit(GenerationRequest(PROMPTS[1], 30, GREEDY))
    begun = await anext(first)
    forward = model.forward

    def short_of_memory(**kwargs):
        if kwargs["input_ids"].shape[1] > 8:
            raise RuntimeError("no memory")
        return forward(**kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", short_of_memory)
        with pytest.raises(EngineFailed):
            await collect(engine.submit(GenerationRequest(PROMPTS[2], 2, GREEDY)))
        rest = [token async for delta in first for token in delta.token_ids]
    assert [*begun.token_ids, *rest] == generated(model, PROMPTS[1], 30, end_id=VOCABULARY)
    assert "no memory" in caplog.text


async def test_a_shared_beginning_is_computed_once(start, model, monkeypatch):
    engine = start()
    shared = tuple(range(10, 60))
    for own in (3, 4):
        await collect(engine.submit(GenerationRequest((*shared, own), 1, GREEDY)))
    widths = record_widths(model, monkeypatch)
    assert await tokens_of(engine.submit(GenerationRequest((*shared, 5), 4, GREEDY))) == generated(
        model, (*shared, 5), 4, end_id=VOCABULARY
    )
    assert widths[0] == (1, 51 - 48)
    assert engine.load.kv_used == 48


async def test_a_beginning_that_short_requests_shared_is_found_by_a_long_one(start, model):
    """The first of its lane: nothing has been written to its part of the cache."""
    engine = start(kv_tokens=1064, prefix_tokens=40)
    assert len(engine._lanes.batches) == 2
    prompt = PROMPTS[2]
    for _ in range(2):
        await collect(engine.submit(GenerationRequest(prompt, 5, GREEDY)))
    assert engine.load.kv_used == 16
    assert await tokens_of(engine.submit(GenerationRequest(prompt, 60, GREEDY))) == generated(
        model, prompt, 60, end_id=VOCABULARY
    )


async def test_the_cache_never_passes_its_bound(start, model):
    engine = start(kv_tokens=200, prefix_tokens=32, long_share=0, max_rows=8)
    slots, seen = engine._lanes.batches[0]._runner._slots, []
    reserve = engine._lanes.batches[0]._runner.reserve
    engine._lanes.batches[0]._runner.reserve = lambda *shape: (reserve(*shape), seen.append(slots.shape))
    streams = [engine.submit(GenerationRequest(PROMPTS[row % 5], 5 + 16 * (row % 6), GREEDY)) for row in range(24)]
    await asyncio.gather(*map(collect, streams))
    assert max(rows * length for rows, length in seen) <= 168
    assert max(rows for rows, _ in seen) > 2
    assert engine.context_length == 128


async def test_too_many_waiting_are_refused(start, gate):
    engine = start(max_waiting=2, max_rows=1)
    gate.clear()
    streams = [engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY))]
    await held(gate)
    streams += [engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY)) for _ in range(2)]
    assert engine.load == Load(running=1, waiting=2, kv_used=4, kv_total=1 << 16)
    with pytest.raises(Overloaded):
        engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY))
    await streams.pop().aclose()
    streams.append(engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY)))
    gate.set()
    assert all([await collect(stream) for stream in streams])


async def test_a_client_that_goes_leaves_the_batch(start, model, monkeypatch):
    engine = start()
    gone, stays = (engine.submit(GenerationRequest(prompt, 100, GREEDY)) for prompt in PROMPTS[:2])
    await anext(gone)
    await anext(stays)
    await gone.aclose()
    assert len(await collect(stays)) == 99
    assert [delta async for delta in gone] == []
    widths = record_widths(model, monkeypatch)
    assert await tokens_of(engine.submit(GenerationRequest(PROMPTS[2], 3, GREEDY)))
    assert {rows for rows, _ in widths} == {1}
    assert engine.load.running == 0


async def test_a_request_whose_client_went_before_its_turn_is_never_run(start, gate, model, monkeypatch):
    engine = start(max_rows=1)
    gate.clear()
    first = engine.submit(GenerationRequest(PROMPTS[0], 1, GREEDY))
    await held(gate)
    gone = engine.submit(GenerationRequest(PROMPTS[1], 100, GREEDY))
    await gone.aclose()
    last = engine.submit(GenerationRequest(PROMPTS[2], 1, GREEDY))
    widths = record_widths(model, monkeypatch)
    gate.set()
    await collect(first)
    await collect(last)
    assert widths == [(1, len(PROMPTS[2]))]


async def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(start, gate):
    engine = start(max_rows=1)
    gate.clear()
    streams = [engine.submit(GenerationRequest(PROMPTS[0], 100, GREEDY, deadline_s=0.01)) for _ in range(2)]
    stays = engine.submit(GenerationRequest(PROMPTS[1], 3, GREEDY, deadline_s=600))
    await held(gate)
    await asyncio.sleep(0.02)  # the time that they had
    gate.set()
    for stream in streams:
        with pytest.raises(DeadlineExceeded):
            await collect(stream)
    assert len(await collect(stays)) == 3


async def test_a_model_that_breaks_fails_who_is_in_it_and_the_next_are_served(start, model, monkeypatch, caplog):
    engine = start()
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda **_: (_ for _ in ()).throw(RuntimeError("no memory")))
        with pytest.raises(EngineFailed):
            await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY, request_id="r-17")))
    assert "no memory" in caplog.text
    assert "r-17" in caplog.text
    assert len(await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY)))) == 3


async def test_a_step_that_breaks_outside_the_model_does_not_end_the_thread(start, monkeypatch, caplog):
    engine = start()
    with monkeypatch.context() as patch:
        patch.setattr(engine._lanes.batches[0], "_parts", lambda _: 1 / 0)
        with pytest.raises(EngineFailed):
            await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY)))
    assert "ZeroDivisionError" in caplog.text
    assert len(await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY)))) == 3


async def test_clients_are_told_even_where_nothing_can_be_cleared_and_the_engine_is_not_healthy(
    start, model, monkeypatch
):
    """As where the device is lost: the model breaks, and so does whatever touches its memory."""
    engine = start()
    assert len(await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY)))) == 3
    assert engine.is_healthy
    lost = RuntimeError("the device is lost")
    monkeypatch.setattr(model, "forward", lambda **_: (_ for _ in ()).throw(lost))
    monkeypatch.setattr(engine._lanes.batches[0]._runner, "clear", lambda _: (_ for _ in ()).throw(lost))
    for _ in range(2):
        with pytest.raises(EngineFailed):
            await asyncio.wait_for(collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY))), 30)
    assert not engine.is_healthy


async def test_an_engine_that_breaks_every_time_is_not_healthy_and_one_that_recovers_is(start, model, monkeypatch):
    engine = start()

    async def broken(times):
        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", lambda **_: (_ for _ in ()).throw(RuntimeError("no memory")))
            for _ in range(times):
                with pytest.raises(EngineFailed):
                    await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY)))

    await broken(5)
    assert len(await collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY)))) == 3
    await broken(5)
    assert engine.is_healthy
    await broken(5)
    assert not engine.is_healthy


async def test_a_thread_that_ends_fails_who_is_there_and_refuses_more(start, monkeypatch):
    """Nothing that is an Exception ends it, but something else may."""
    engine = start()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(engine._lanes.batches[0], "step", lambda _: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(collect(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY))), 30)
    await asyncio.to_thread(engine._thread.join)
    assert not engine.is_healthy
    with pytest.raises(EngineFailed):
        engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY))


BAD = 96
"""A token whose embedding is no number, where a model is `poisoned`."""


@pytest.fixture
def poisoned(model, monkeypatch):
    embed = model.get_input_embeddings()
    poison = torch.where(torch.arange(VOCABULARY) == BAD, torch.nan, 0.0)[:, None]
    monkeypatch.setattr(embed, "forward", lambda ids: torch.nn.functional.embedding(ids, embed.weight + poison))
    return model


def holds_numbers_alone(engine) -> bool:
    layers = engine._lanes.batches[0]._runner._slots.layers
    return all(bool(slots.isfinite().all()) for layer in layers for slots in (layer.keys, layer.values))


async def test_a_score_of_no_numbers_fails_and_leaves_none_behind(start, poisoned):
    engine = start(prefill_tokens=4)
    with pytest.raises(EngineFailed):
        await engine.score((5, 6, 7, 8, BAD, 5, 6, 7, 8, 9, 10), start=2)
    assert len((await engine.score(PROMPTS[2])).tokens) == len(PROMPTS[2]) - 1
    engine.close()
    assert holds_numbers_alone(engine)


async def test_a_prompt_that_leaves_half_read_leaves_nothing_behind(start, poisoned, gate, monkeypatch):
    """By then it has moved up, so nothing may lie where it stood before either."""
    engine, forward = start(prefill_tokens=4), poisoned.forward

    def closing_behind_the_bad_one(**kwargs):
        output = forward(**kwargs)
        if BAD in kwargs["input_ids"]:
            gate.clear()
        return output

    gate.clear()
    before = engine.submit(GenerationRequest(PROMPTS[0], 2, GREEDY))
    await held(gate)
    gone = engine.submit(GenerationRequest((BAD, *PROMPTS[2]), 3, GREEDY))
    monkeypatch.setattr(poisoned, "forward", closing_behind_the_bad_one)
    gate.entered.clear()
    gate.set()
    await collect(before)
    await held(gate)
    await gone.aclose()
    gate.set()
    assert await tokens_of(engine.submit(GenerationRequest(PROMPTS[0], 3, GREEDY))) == generated(
        poisoned, PROMPTS[0], 3, end_id=VOCABULARY
    )
    engine.close()
    assert holds_numbers_alone(engine)


async def test_numbers_that_are_none_fail_their_own_row_and_stay_in_no_slot(start, model, monkeypatch):
    """The row of one token overflows, in its cache too; the ones beside it and the ones after it do not notice."""
    engine, embed = start(max_rows=2), model.get_input_embeddings()
    healthy = [GenerationRequest(prompt, 12, GREEDY) for prompt in PROMPTS]
    expected = [generated(model, each.prompt_ids, 12, end_id=VOCABULARY) for each in healthy]
    used = {token for tokens in (*PROMPTS, *expected) for token in tokens}
    bad = min(set(range(VOCABULARY)) - used)
    poison = torch.where(torch.arange(VOCABULARY) == bad, torch.nan, 0.0)[:, None]
    monkeypatch.setattr(embed, "forward", lambda ids: torch.nn.functional.embedding(ids, embed.weight + poison))
    beside = engine.submit(healthy[0])
    with pytest.raises(EngineFailed):
        await collect(engine.submit(GenerationRequest((bad, 5, bad), 5, GREEDY)))
    assert [await tokens_of(engine.submit(each)) for each in healthy] == expected
    assert await tokens_of(beside) == expected[0]


class Alternating:
    """Even tokens, then odd ones, and so on; ends after `length`. Breaks where it is told to."""

    def __init__(self, length: int, breaks_at: int | None = None) -> None:
        self.seen: list[int] = []
        self._length = length
        self._breaks_at = breaks_at

    @property
    def finished(self) -> bool:
        return len(self.seen) >= self._length

    def mask(self) -> np.ndarray:
        if len(self.seen) == self._breaks_at:
            raise RuntimeError("a broken guide")
        bits = np.arange(128) % 2 == len(self.seen) % 2
        return np.packbits(bits, bitorder="little").view(np.int32)

    def advance(self, token_id: int) -> None:
        self.seen.append(token_id)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
async def test_a_guide_says_what_may_come_and_when_it_ends(start, sampling):
    guide = Alternating(6)
    deltas = await collect(start().submit(GenerationRequest(PROMPTS[0], 50, sampling, guide=guide)))
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert [token % 2 for token in tokens] == [0, 1, 0, 1, 0, 1]
    assert guide.seen == tokens
    assert deltas[-1].finish_reason == "stop"
    resumed = Alternating(6)
    rest = start().submit(GenerationRequest(PROMPTS[0], 50, sampling, guide=resumed, given_ids=tuple(tokens[:2])))
    assert await tokens_of(rest) == tokens[2:]


async def test_a_guide_that_breaks_fails_its_own_request(start, model, caplog):
    engine = start()
    healthy = engine.submit(GenerationRequest(PROMPTS[1], 20, GREEDY))
    broken = engine.submit(GenerationRequest(PROMPTS[0], 50, GREEDY, guide=Alternating(9, breaks_at=3)))
    assert len([await anext(broken) for _ in range(3)]) == 3
    with pytest.raises(EngineFailed):
        await anext(broken)
    assert "a broken guide" in caplog.text
    assert await tokens_of(healthy) == generated(model, PROMPTS[1], 20, end_id=VOCABULARY)


class Recorded:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, name):
        return lambda *values: self.calls.append((name, *values))

    def of(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


async def test_an_observer_is_told_of_everything(start):
    observer = Recorded()
    engine = start(observer, end_ids=frozenset({END_ID}))
    await collect(engine.submit(GenerationRequest(PROMPTS[0], 4, GREEDY)))
    gone = engine.submit(GenerationRequest(PROMPTS[2], 100, GREEDY))
    await anext(gone)
    await gone.aclose()
    await collect(engine.submit(GenerationRequest(PROMPTS[1], 1, GREEDY)))
    engine.close()  # what was handed out is reported a moment later
    assert [call[1:] for call in observer.of("admitted")] == [(3, 0), (25, 0), (1, 0)]
    assert len(observer.of("first_token")) == 3
    assert len([gap for (gaps,) in observer.of("inter_token") for gap in gaps]) >= 3
    assert {call[0] for call in observer.of("finished")} == {"length", "cancelled"}
    assert sum(call[1] for call in observer.of("stepped")) == 3 + 25 + 1


async def test_tokens_that_were_given_are_not_counted_again(start):
    """They are read like a prompt; as output they were counted where they were made."""
    metrics = ReplicaMetrics("bot", "student@1", "r-1")
    engine = start(metrics)
    await collect(engine.submit(GenerationRequest(PROMPTS[0], 9, GREEDY, given_ids=(4, 5, 6, 7))))
    engine.close()
    totals = {sample.name: sample.value for family in metrics.figures() for sample in family.samples}
    assert totals["athanor_serve_generation_tokens_total"] == 5
    assert totals["athanor_serve_prompt_tokens_total"] == 3 + 4


@pytest.mark.parametrize(
    "wrong",
    [{"prompt_ids": ()}, {"prompt_ids": (VOCABULARY,)}, {"max_tokens": 127}, {"max_tokens": 0}, {"given_ids": (-1,)}],
)
async def test_what_no_row_could_hold_is_refused_at_once(start, wrong):
    with pytest.raises(InvalidRequest):
        start().submit(replace(GenerationRequest(PROMPTS[0], 5, GREEDY), **wrong))


async def test_close_fails_what_is_open_and_refuses_more(start, gate):
    engine = start(max_rows=1)
    gate.clear()
    running = engine.submit(GenerationRequest(PROMPTS[0], 100, GREEDY))
    await held(gate)
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
