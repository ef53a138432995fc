"""A replica's side of a request: what comes of an application that answers, breaks, or is no longer wanted."""

from __future__ import annotations

import asyncio
import json
import pickle
from contextlib import aclosing
from dataclasses import replace

import pytest
from fake_backends import QUESTION, card

from serving.backend import BackendRequest, Chunk, Head, Resume, respond
from serving.engine import Delta, Load
from serving.errors import BackendFailed, EngineFailed
from serving.loading import LoadedModel
from serving.openai_api import build_api


class Stream:
    """Deltas, errors, and events that it waits for."""

    def __init__(self, *items):
        self.items = [*items]
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, asyncio.Event):
            await item.wait()
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self):
        self.closed = True


class OneStream:
    """An engine that gives the same stream to every request."""

    context_length = 128
    load = Load(0, 0)

    def __init__(self, *items):
        self.stream = Stream(*items)
        self.requests = []

    def submit(self, request):
        self.requests.append(request)
        return self.stream

    def close(self):
        pass


def delta(text: str, token: int, reason=None) -> Delta:
    return Delta(text, 1, reason, (token,))


def asked(**fields) -> BackendRequest:
    body = {"model": "support-bot", "messages": QUESTION, **fields}
    headers = (("content-type", "application/json"),)
    return BackendRequest("POST", "/v1/chat/completions", headers, json.dumps(body).encode(), "req_7", created=5)


@pytest.fixture
def answered(loaded):
    """All items of an answer by a given engine."""

    async def answered(engine, request):
        api = build_api(card(1), LoadedModel(frozenset({"generate"}), loaded.prompts, engine))
        return [item async for item in respond(api, request)]

    return answered


async def test_chunks_carry_the_tokens_since_the_last_one(answered):
    engine = OneStream(delta("It", 5), delta("", 6), delta(" is", 7), delta("", 8, "stop"))
    head, *chunks = await answered(engine, asked(stream=True))
    assert head.status == 200
    assert [chunk.token_ids for chunk in chunks] == [{0: (5,)}, {0: (6, 7)}, {0: (8,)}, {}]
    assert [chunk.finished for chunk in chunks] == [(), (), (0,), ()]
    assert chunks[-1].data == b"data: [DONE]\n\n"
    assert b'"id":"chatcmpl-7"' in chunks[0].data
    assert b'"created":5' in chunks[0].data
    assert engine.stream.closed


async def test_a_whole_answer_comes_in_one_piece_with_all_its_tokens(answered):
    head, chunk = await answered(OneStream(delta("It", 5), delta(" is", 7, "stop")), asked())
    assert (head.status, chunk.token_ids, chunk.finished) == (200, {0: (5, 7)}, (0,))
    assert json.loads(chunk.data)["choices"][0]["message"]["content"] == "It is"


async def test_a_stream_that_is_gone_on_with_says_no_role_again_and_counts_all(answered):
    engine = OneStream(delta(" is", 7, "stop"))
    request = asked(stream=True, stream_options={"include_usage": True}, n=2)
    resume = Resume({0: (5, 6), 1: (9, 9, 9)}, frozenset({1}))
    _, chunk, last = await answered(engine, replace(request, resume=resume))
    assert [request.given_ids for request in engine.requests] == [(5, 6)]
    assert json.loads(chunk.data[6:])["choices"][0]["delta"] == {"content": " is"}
    assert json.loads(last.data.split(b"\n\n")[0][6:])["usage"]["completion_tokens"] == 6


async def test_an_engine_that_breaks_is_500_before_and_a_failure_after_the_first_byte(answered):
    [head, chunk] = await answered(OneStream(EngineFailed("cuda is gone")), asked())
    assert (head.status, json.loads(chunk.data)["error"]["type"]) == (500, "server_error")
    with pytest.raises(BackendFailed, match="broke off") as caught:
        await answered(OneStream(delta("It", 5), EngineFailed("cuda is gone")), asked(stream=True))
    assert "cuda" not in str(caught.value)


async def test_whoever_stops_listening_ends_the_work(loaded):
    engine = OneStream(delta("x", 5), asyncio.Event())
    api = build_api(card(1), LoadedModel(frozenset({"generate"}), loaded.prompts, engine))
    async with aclosing(respond(api, asked(stream=True))) as items:
        assert isinstance(await anext(items), Head)
        assert isinstance(await anext(items), Chunk)
        assert not engine.stream.closed
    assert engine.stream.closed


@pytest.mark.parametrize("item", [asked(), Head(200, ()), Chunk(b"x", {0: (5,)}), BackendFailed("died")])
def test_what_is_said_travels_between_processes(item):
    copy = pickle.loads(pickle.dumps(item))
    assert repr(copy) == repr(item)
