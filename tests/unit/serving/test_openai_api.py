"""The routes, through the real `openai` client where it can send the request, over the ASGI application itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from threading import Event

import httpx
import openai
import pytest
from starlette.requests import ClientDisconnect

from serving.engine import Delta, GenerationRequest, Load
from serving.errors import EngineFailed, InvalidRequest, Overloaded
from serving.loading import LoadedModel
from serving.model_dir import Lineage
from serving.openai_api import ModelCard, build_api

LINEAGE = Lineage("support-bot-7k2m9qxa", ("support-teacher@3",), "ab" * 32)
CARD = ModelCard("support-bot", "support-student", 4, 1_700_000_000, LINEAGE)
QUESTION = [{"role": "user", "content": "Where is my card?"}]


class Script:
    """A stream that says what it was given, and then breaks if it shall."""

    def __init__(self, deltas: Sequence[Delta], error: Exception | None = None) -> None:
        self._items = [*deltas, *([error] if error else [])]
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._items:
            raise StopAsyncIteration
        item = self._items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self):
        self.closed = True


class ScriptedEngine:
    """Answers every request with the same words."""

    context_length = 64
    load = Load(running=1, waiting=2)

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.streams: list[Script] = []
        self.refusal: Exception | None = None
        self.error: Exception | None = None
        self.deltas = [Delta("It is ", 1), Delta("", 1), Delta("on its way", 1), Delta(".", 1, "stop")]

    def submit(self, request):
        if self.refusal:
            raise self.refusal
        self.requests.append(request)
        self.streams.append(Script(self.deltas, self.error))
        return self.streams[-1]

    def close(self):
        pass


def served(engine, loaded):
    """The scripted engine with a real tokenizer."""
    return LoadedModel(frozenset({"generate"}), loaded.prompts, engine)


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
async def http(engine, loaded):
    api = build_api(CARD, served(engine, loaded), max_body_bytes=20_000)
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://bot") as client:
        yield client


@pytest.fixture
def client(http):
    return openai.AsyncOpenAI(base_url="http://bot/v1", api_key="unused", http_client=http, max_retries=0)


async def test_models_carry_their_lineage(client):
    [model] = (await client.models.list()).data
    assert (model.id, model.object, model.owned_by, model.created) == ("support-bot", "model", "athanor", 1_700_000_000)
    assert (model.version, model.model) == (4, "support-student")
    assert (model.teachers, model.job_uid) == (["support-teacher@3"], "support-bot-7k2m9qxa")
    assert model.manifest_sha256 == "ab" * 32
    assert await client.models.retrieve("support-student") == model


async def test_healthz_says_how_busy_it_is(http):
    assert (await http.get("/healthz")).json() == {"status": "ok", "running": 1, "waiting": 2}


async def test_a_chat_completion(client, engine, loaded):
    answer = await client.chat.completions.create(model="support-bot", messages=QUESTION, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "It is on its way."
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    prompt_ids = loaded.prompts.chat(QUESTION)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt_ids), 4)
    assert answer.usage.total_tokens == len(prompt_ids) + 4
    assert engine.requests[0].prompt_ids == prompt_ids
    assert engine.requests[0].max_tokens == 64 - len(prompt_ids)
    assert engine.streams[0].closed


async def test_a_chat_stream(client, engine):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = [
        each async for each in await client.chat.completions.create(model="support-bot", messages=QUESTION, **options)
    ]
    *pieces, usage = chunks
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [piece.choices[0].delta.content for piece in pieces] == ["It is ", "on its way", "."]
    assert [piece.choices[0].finish_reason for piece in pieces] == [None, None, "stop"]
    assert usage.choices == []
    assert usage.usage.completion_tokens == 4
    assert engine.streams[0].closed


async def test_a_stream_is_server_sent_events_and_ends_with_done(http):
    body = {"model": "support-bot", "messages": QUESTION, "stream": True}
    reply = await http.post("/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, done, end = reply.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events)


async def test_completions_whole_and_streamed(client, engine):
    answer = await client.completions.create(model="support-student", prompt="Where is", stop=["\n", "?"], seed=3)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "It is on its way.")
    assert engine.requests[0].max_tokens == 16
    assert engine.requests[0].stop == ("\n", "?")
    assert engine.requests[0].sampling.seed == 3
    stream = await client.completions.create(model="support-bot", prompt=[5, 6, 7], stream=True, max_tokens=9)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "It is on its way."
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (engine.requests[1].prompt_ids, engine.requests[1].max_tokens) == ((5, 6, 7), 9)


async def test_text_parts_and_the_developer_role(client, engine, loaded):
    parts = [{"type": "text", "text": "Where is "}, {"type": "text", "text": "my card?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    await client.chat.completions.create(model="support-bot", messages=messages, max_completion_tokens=3, max_tokens=9)
    assert engine.requests[0].prompt_ids == loaded.prompts.chat([{"role": "system", "content": "Be brief."}, *QUESTION])
    assert engine.requests[0].max_tokens == 3


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"stream": "maybe"}, "stream", "valid boolean"),
        (
            {"stream": True, "stream_options": {"include_usage": "often"}},
            "stream_options.include_usage",
            "valid boolean",
        ),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "'assistant'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "valid string; or .* valid list"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": "a" * 300}, "stop", "at most 256"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 65}, "n", "less than or equal to 64"),
        ({"top_logprobs": 2}, "top_logprobs", "needs `logprobs: true`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs the field"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_schema'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wizard"}}}},
            "response_format",
            "Invalid type: wizard",
        ),
        ({"presence_penalty": 2.5}, "presence_penalty", "less than or equal to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "greater than or equal to -2"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "valid integer"),
        ({"logit_bias": {"10000": 1}}, "logit_bias", "must be below 312"),
        ({"extra_body": {"top_k": -2}}, "top_k", "greater than or equal to -1"),
        ({"extra_body": {"min_p": 2}}, "min_p", "less than or equal to 1"),
        ({"extra_body": {"repetition_penalty": 1e-40}}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"extra_body": {"guided_regex": "("}}, "guided_regex", "unclosed group"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}}, "guided_choice", "cannot both say"),
        ({"extra_body": {"structured_outputs": {"json": "{"}}}, "structured_outputs.json", "no JSON schema"),
        ({"extra_body": {"structured_outputs": {"grammar": "x"}}}, "structured_outputs.grammar", "should be None"),
        ({"extra_body": {"ignore_eos": True}}, "ignore_eos", "not supported"),
    ],
)
async def test_wrong_options_are_named(client, engine, options, param, words):
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        await client.chat.completions.create(**{"model": "support-bot", "messages": QUESTION, **options})
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", param)
    assert engine.requests == []


async def test_options_that_change_nothing_are_taken(client, engine):
    inert = {"n": 1, "logprobs": False, "tools": [], "presence_penalty": 0, "user": "me", "metadata": {"a": "b"}}
    await client.chat.completions.create(model="support-bot", messages=QUESTION, **inert, extra_body={"new": 1})
    assert len(engine.requests) == 1


@pytest.mark.parametrize("prompt", ["", [], [10_000], [-1], ["a", ""], [[1], []], [1, "a"], ["a"] * 65, None])
async def test_prompts_that_cannot_be_answered(http, prompt):
    reply = await http.post("/v1/completions", json={"model": "support-bot", "prompt": prompt})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("prompt")


@pytest.mark.parametrize("options", [{"prompt": [5] * 64}, {"prompt": [5] * 60, "max_tokens": 5}])
async def test_more_than_the_context_holds(client, options):
    with pytest.raises(openai.BadRequestError, match="context is 64 tokens") as caught:
        await client.completions.create(**{"model": "support-bot", "max_tokens": 1, **options})
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


async def test_another_model_is_not_here(client):
    with pytest.raises(openai.NotFoundError, match="serves `support-bot`") as caught:
        await client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-4o")


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff", b'{"model": "\\ud800", "messages": []}', b""])
async def test_bodies_that_are_no_request(http, body):
    reply = await http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_has_a_limit(client, http):
    with pytest.raises(openai.APIStatusError, match="20000 bytes") as caught:
        await client.completions.create(model="support-bot", prompt="x" * 20_001)
    assert caught.value.status_code == 413

    async def chunked():
        for _ in range(30):
            yield b"x" * 1000

    assert (await http.post("/v1/completions", content=chunked())).status_code == 413


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)])
async def test_paths_and_methods_that_are_not_there(http, method, path, status):
    reply = await http.request(method, path)
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, "invalid_request_error")


async def test_a_full_queue_is_429_with_retry_after(client, engine):
    engine.refusal = Overloaded("many wait")
    with pytest.raises(openai.RateLimitError, match="many wait") as caught:
        await client.chat.completions.create(model="support-bot", messages=QUESTION)
    assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("error", [EngineFailed("cuda is gone"), RuntimeError("secret detail")])
async def test_failures_are_500_with_a_request_id_and_no_details(client, engine, error, caplog):
    engine.refusal = error
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="support-bot", messages=QUESTION)
    request_id = caught.value.request_id
    assert request_id.startswith("req_")
    assert request_id in caught.value.message
    assert str(error) not in caught.value.response.text
    assert request_id in caplog.text
    assert str(error) in caplog.text


async def test_a_stream_that_breaks_says_so(client, engine):
    engine.error = EngineFailed("cuda is gone")
    engine.deltas = engine.deltas[:1]
    stream = await client.chat.completions.create(model="support-bot", messages=QUESTION, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "It is "
    with pytest.raises(openai.APIError, match="the server failed on this request") as caught:
        await anext(stream)
    assert "cuda" not in str(caught.value)


async def test_a_stream_that_the_engine_refuses_late_says_why(client, engine):
    engine.deltas, engine.error = [], InvalidRequest("no such seed")
    stream = await client.chat.completions.create(model="support-bot", messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="no such seed"):
        [chunk async for chunk in stream]


@pytest.mark.parametrize(
    ("path", "asked"),
    [("chat/completions", {"messages": QUESTION}), ("completions", {"prompt": "x"})],
    ids=["chat", "completion"],
)
async def test_options_that_are_ignored_are_named_in_the_log_under_the_requests_id(http, caplog, path, asked):
    caplog.set_level(logging.INFO, "serving")
    body = {"model": "support-bot", **asked, "max_tokns": 3, "line\nbreak": 1}
    assert (await http.post(f"/v1/{path}", json=body, headers={"x-request-id": "mine-7"})).status_code == 200
    [line] = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert line == "request mine-7: unknown options are ignored: 'max_tokns', 'line\\nbreak'"


async def test_a_request_id_that_was_given_is_kept(http, engine, caplog):
    engine.refusal = EngineFailed("broke")
    body = {"model": "support-bot", "messages": QUESTION}
    reply = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-7"})
    assert "mine-7" in reply.json()["error"]["message"]
    assert "x-request-id" not in reply.headers  # whoever gave it writes it
    assert (await http.get("/healthz")).headers["x-request-id"].startswith("req_")


async def test_a_client_that_goes_closes_its_stream(engine, loaded):
    """Played as a server plays it: sending fails once the client is gone."""
    api = build_api(CARD, served(engine, loaded))
    body = json.dumps({"model": "support-bot", "messages": QUESTION, "stream": True}).encode()
    incoming = [{"type": "http.disconnect"}, {"type": "http.request", "body": body}]

    async def receive():
        return incoming.pop()

    async def send(message):
        if message.get("body"):
            raise OSError("the connection is gone")

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    with pytest.raises(ClientDisconnect):
        await api({**scope, "asgi": {"version": "3.0", "spec_version": "2.4"}}, receive, send)
    assert engine.streams[0].closed


async def test_a_stream_that_never_starts_is_closed(engine, loaded):
    """The client is gone before the first byte could be sent."""
    api = build_api(CARD, served(engine, loaded))
    body = json.dumps({"model": "support-bot", "messages": QUESTION, "stream": True}).encode()
    received = iter([{"type": "http.request", "body": body}])

    async def receive():
        return next(received, {"type": "http.disconnect"})

    async def send(message):
        raise OSError("the client is gone")

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": headers}
    with suppress(OSError, ClientDisconnect):
        await api(scope, receive, send)
    assert [stream.closed for stream in engine.streams] == [True]


async def test_the_engine_ends_with_the_application(engine, loaded):
    closed, said = Event(), []
    engine.close = closed.set
    events = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive():
        assert not closed.is_set()
        return {"type": next(events)}

    async def send(message):
        said.append(message["type"])

    await build_api(CARD, served(engine, loaded))({"type": "lifespan", "state": {}}, receive, send)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert closed.is_set()
