"""Our contract over vLLM's interface, which a fake stands in for: it is not vLLM, and says nothing of vLLM's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from serving.engine import Delta, GenerationRequest, Load, Sampling, TokenLogprob
from serving.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded
from serving.vllm_engine import VllmEngine, engine_arguments

END = 1
REQUEST = GenerationRequest((5, 6), 10, Sampling(temperature=0), request_id="r-1")


class FakeClient:
    """Says these tokens, so many in one output, then why it ended; remembers what it was asked."""

    def __init__(self, tokens=(), finish_reason="length", at_once=1, error=None, hangs=False, prompt_logprobs=None):
        self.tokens, self.finish_reason, self.at_once = list(tokens), finish_reason, at_once
        self.error, self.hangs, self.prompt_logprobs = error, hangs, prompt_logprobs
        self.asked: list[SimpleNamespace] = []
        self.aborted: list[str] = []
        self.shut = False
        self.errored = False

    async def generate(self, prompt, sampling_params, request_id):
        self.asked.append(SimpleNamespace(prompt=prompt, params=sampling_params, request_id=request_id))
        finished = False
        try:
            if self.error:
                raise self.error
            if self.hangs:
                await asyncio.Event().wait()
            for start in range(0, len(self.tokens), self.at_once):
                some = self.tokens[start : start + self.at_once]
                finished = start + self.at_once >= len(self.tokens)
                found = [self._entries(token) for token in some] if sampling_params.logprobs is not None else None
                reason = self.finish_reason if finished else None
                completion = SimpleNamespace(token_ids=some, finish_reason=reason, logprobs=found)
                yield SimpleNamespace(outputs=[completion], finished=finished, prompt_logprobs=self.prompt_logprobs)
        except (asyncio.CancelledError, GeneratorExit):
            if not finished:
                self.aborted.append(request_id)
            raise

    def _entries(self, token):
        return {token: SimpleNamespace(logprob=-2.0), 40: SimpleNamespace(logprob=-1.0)}

    def shutdown(self):
        self.shut = True


def make(client, **options) -> VllmEngine:
    def params(**settings):
        return SimpleNamespace(**{"logprobs": None, "prompt_logprobs": None, **settings})

    def decode(ids):
        return "".join(f"{each}," for each in ids)

    return VllmEngine(client, params, decode, context_length=64, end_ids=frozenset({END}), **options)


async def collect(stream) -> list[Delta]:
    return [delta async for delta in stream]


async def test_deltas_are_what_vllm_says(monkeypatch):
    client = FakeClient([7, 8, 9], at_once=2)
    engine = make(client)
    assert await collect(engine.submit(REQUEST)) == [Delta("7,8,", 2, None, (7, 8)), Delta("9,", 1, "length", (9,))]
    [asked] = client.asked
    assert asked.prompt == {"prompt_token_ids": [5, 6]}
    assert (asked.params.max_tokens, asked.params.stop_token_ids, asked.params.detokenize) == (10, [END], False)
    assert asked.request_id.startswith("r-1")
    assert engine.load == Load(0, 0)


async def test_two_requests_of_one_name_are_told_apart():
    client = FakeClient([7])
    engine = make(client)
    await asyncio.gather(*(collect(engine.submit(REQUEST)) for _ in range(2)))
    assert len({asked.request_id for asked in client.asked}) == 2


async def test_an_end_token_has_no_text():
    deltas = await collect(make(FakeClient([7, END], "stop")).submit(REQUEST))
    assert deltas == [Delta("7,", 1, None, (7,)), Delta("", 1, "stop", (END,))]


async def test_a_stop_string_ends_the_answer_and_vllms_work():
    client = FakeClient([7, 8, 9, 10])
    deltas = await collect(make(client).submit(replace(REQUEST, stop=("8,9",))))
    assert "".join(delta.text for delta in deltas) == "7,"
    assert deltas[-1].finish_reason == "stop"
    assert len(client.aborted) == 1


async def test_what_was_given_is_part_of_the_prompt_and_not_repeated():
    client = FakeClient([9])
    request = replace(REQUEST, given_ids=(7, 8), sampling=Sampling(seed=3))
    assert await collect(make(client).submit(request)) == [Delta("9,", 1, "length", (9,))]
    [asked] = client.asked
    assert asked.prompt == {"prompt_token_ids": [5, 6, 7, 8]}
    assert asked.params.max_tokens == 8
    assert asked.params.seed == 5


async def test_nothing_is_asked_when_all_was_given():
    client = FakeClient()
    engine = make(client)
    assert await collect(engine.submit(replace(REQUEST, given_ids=(7, END)))) == [Delta("", 0, "stop")]
    assert client.asked == []
    assert engine.load.running == 0


async def test_sampling_goes_by_vllms_names():
    client = FakeClient([7])
    sampling = Sampling(0.7, 0.9, 4, 5, 0.1, 1.2, 0.3, 0.4, ((8, -1.0),))
    await collect(make(client).submit(replace(REQUEST, sampling=sampling)))
    params = vars(client.asked[0].params)
    expected = {"temperature": 0.7, "top_p": 0.9, "seed": 4, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2}
    expected |= {"presence_penalty": 0.3, "frequency_penalty": 0.4, "logit_bias": {8: -1.0}}
    assert {name: params[name] for name in expected} == expected


async def test_logprobs():
    deltas = await collect(make(FakeClient([7])).submit(replace(REQUEST, logprobs=1)))
    assert deltas[0].logprobs == (TokenLogprob(7, -2.0, ((40, -1.0),)),)


async def test_a_score():
    entries = [
        None,
        {6: SimpleNamespace(logprob=-0.5)},
        {9: SimpleNamespace(logprob=-3.0), 7: SimpleNamespace(logprob=-0.1)},
    ]
    engine = make(FakeClient([7], prompt_logprobs=entries))
    scored = await engine.score((5, 6, 9), start=2, top_k=2)
    assert scored.tokens == (TokenLogprob(9, -3.0, ((7, -0.1), (9, -3.0))),)
    with pytest.raises(InvalidRequest):
        await engine.score((5, 6), start=2)
    assert engine.load.running == 0


async def test_a_client_that_goes_aborts():
    client = FakeClient([7, 8, 9])
    engine = make(client)
    stream = engine.submit(REQUEST)
    await anext(stream)
    assert engine.load.running == 1
    await stream.aclose()
    await stream.aclose()
    assert len(client.aborted) == 1
    assert await collect(stream) == []
    assert engine.load.running == 0


async def test_a_deadline_aborts():
    client = FakeClient([7], hangs=True)
    engine = make(client)
    with pytest.raises(DeadlineExceeded):
        await collect(engine.submit(replace(REQUEST, deadline_s=0.01)))
    assert len(client.aborted) == 1
    assert engine.load.running == 0


@pytest.mark.parametrize("client", [FakeClient(error=RuntimeError("dead")), FakeClient([7], "abort"), FakeClient()])
async def test_whatever_breaks_there_is_an_engine_that_failed(client):
    engine = make(client)
    with pytest.raises(EngineFailed):
        await collect(engine.submit(REQUEST))
    assert engine.load.running == 0


async def test_what_it_cannot_do_is_refused():
    engine = make(FakeClient([7]), max_ongoing=1)
    with pytest.raises(InvalidRequest, match="constrained output"):
        engine.submit(replace(REQUEST, guide=object()))
    stream = engine.submit(REQUEST)
    with pytest.raises(Overloaded):
        engine.submit(REQUEST)
    await stream.aclose()
    engine.close()
    with pytest.raises(EngineFailed):
        engine.submit(REQUEST)


def test_it_is_as_healthy_as_vllm():
    client = FakeClient()
    engine = make(client)
    assert engine.is_healthy
    client.errored = True
    assert not engine.is_healthy


class ClientError(Exception):
    """As newer releases of vLLM have one, which is no ValueError."""


@pytest.mark.parametrize("error", [ValueError("the prompt is too long"), ClientError("the prompt is too long")])
async def test_what_vllm_refuses_is_the_requests_own_fault_and_keeps_no_place(error):
    engine = make(FakeClient(error=error), max_ongoing=1, refusals=(ValueError, ClientError))
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="the prompt is too long"):
            await collect(engine.submit(REQUEST))
        with pytest.raises(InvalidRequest, match="the prompt is too long"):
            await engine.score((5, 6))
    assert engine.load.running == 0


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError("no such seed"), InvalidRequest), (KeyError("x"), KeyError)]
)
async def test_parameters_that_cannot_be_made_keep_no_place(monkeypatch, error, expected):
    engine = make(FakeClient([7]), max_ongoing=1)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_make_params", lambda **_: (_ for _ in ()).throw(error))
        for _ in range(3):
            with pytest.raises(expected):
                engine.submit(REQUEST)
            with pytest.raises(expected):
                await engine.score((5, 6))
    assert engine.load.running == 0
    assert len(await collect(engine.submit(REQUEST))) == 1


def test_limits_are_vllms_own_arguments():
    assert engine_arguments({}) == {"gpu_memory_utilization": 0.9}
    found = engine_arguments({"max_num_seqs": 8.0, "gpu_memory_utilization": 0.5})
    assert found == {"max_num_seqs": 8, "gpu_memory_utilization": 0.5}
    assert isinstance(found["max_num_seqs"], int)
