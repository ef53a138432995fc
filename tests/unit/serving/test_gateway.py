"""A replica that dies is not seen by clients; a canary that fails is not either."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_backends import CANARY, QUESTION, STABLE, LocalBackends, Scripted, entrance, http_client, table, whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from serving.backend import Chunk, Head
from serving.errors import BackendFailed
from serving.gateway_http import build_gateway
from serving.gateway_metrics import GatewayMetrics
from serving.mirroring import Mirroring
from serving.routes import Backend, Mirror, Route, RouteTable

CHAT = "/v1/chat/completions"
BODY = {"model": "support-bot", "messages": QUESTION, "max_tokens": 12, "seed": 7}
OPTIONS = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 14), "temperature": st.sampled_from([0, 1.2]), "seed": st.just(11)},
    optional={
        "n": st.integers(2, 3),
        "stop": st.sampled_from(["e", " ", "you"]),
        "logprobs": st.just(True),
        "top_k": st.just(40),
        "frequency_penalty": st.just(1.5),
        "guided_regex": st.just("[a-f ]{0,9}"),
        "stream_options": st.just({"include_usage": True}),
    },
)


def events(text: str) -> list[dict]:
    """Of a stream that ended well."""
    *found, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in found]


def said(documents: list[dict]) -> dict[int, tuple]:
    """Of each choice: its text, log-probabilities, roles, ends; and the usage of all."""
    choices: dict[int, list] = {}
    for choice in (choice for document in documents for choice in document["choices"]):
        text, tokens, roles, ends = choices.setdefault(choice["index"], ["", [], [], []])
        delta = choice["delta"]
        # A token that was decoded alone and one that was read with its prompt differ in the last digits.
        scored = choice["logprobs"]["content"] if choice["logprobs"] else []
        tokens += [(token["token"], token["bytes"], round(token["logprob"], 4)) for token in scored]
        roles += [delta["role"]] if "role" in delta else []
        ends += [choice["finish_reason"]] if choice["finish_reason"] else []
        choices[choice["index"]][0] = text + (delta.get("content") or "")
    usage = [document["usage"] for document in documents if document.get("usage")]
    return {**{index: tuple(parts) for index, parts in choices.items()}, "usage": usage}


async def streamed(backends, options, **changes) -> tuple[dict, set]:
    """What a stream says, and the envelopes of its chunks."""
    async with http_client(entrance(backends, **changes)) as http:
        reply = await http.post(CHAT, json={**BODY, **options, "stream": True}, headers={"x-request-id": "same"})
    assert reply.status_code == 200, reply.text
    documents = events(reply.text)
    return said(documents), {(document["id"], document["model"]) for document in documents}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(options=OPTIONS, kills=st.lists(st.integers(0, 9), min_size=1, max_size=2))
async def test_a_stream_is_the_same_whenever_replicas_die(loaded, monkeypatch, options, kills):
    monkeypatch.setattr("serving.gateway._PAUSE_S", 0)
    backends = LocalBackends(**{STABLE: (1, loaded)})
    undisturbed = await streamed(backends, options)
    backends.kills[STABLE] = [*kills]
    assert await streamed(backends, options) == undisturbed
    ends = [parts[3] for index, parts in undisturbed[0].items() if index != "usage"]
    assert all(len(end) == 1 for end in ends)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12)
@given(kills=st.lists(st.integers(0, 9), min_size=1, max_size=2), echo=st.booleans(), n=st.integers(1, 2))
async def test_a_plain_completion_is_the_same_whenever_replicas_die(loaded, monkeypatch, kills, echo, n):
    monkeypatch.setattr("serving.gateway._PAUSE_S", 0)
    backends = LocalBackends(**{STABLE: (1, loaded)})
    body = {"model": "support-bot", "prompt": ["Where is", "How do"], "n": n, "echo": echo, "logprobs": 1, "seed": 3}

    async def said() -> dict[int, list]:
        async with http_client(entrance(backends)) as http:
            reply = await http.post("/v1/completions", json={**body, "max_tokens": 7, "stream": True})
        choices: dict[int, list] = {}
        for choice in (choice for document in events(reply.text) for choice in document["choices"]):
            parts = choices.setdefault(choice["index"], ["", [], []])
            parts[0] += choice["text"]
            parts[1] += choice["logprobs"]["tokens"]
            parts[2] += choice["logprobs"]["text_offset"]
        return choices

    undisturbed = await said()
    backends.kills[STABLE] = [*kills]
    assert await said() == undisturbed
    assert len(undisturbed) == 2 * n


async def test_a_stream_without_a_seed_goes_on_with_the_same_draws(loaded):
    backends = LocalBackends(**{STABLE: (1, loaded)})
    backends.kills[STABLE] = [4]
    await streamed(backends, {"seed": None, "temperature": 1.5})
    (_, first), (_, second) = backends.calls
    assert first.seed == second.seed is not None
    assert len(second.resume.token_ids[0]) > 0
    assert (first.created, first.request_id) == (second.created, second.request_id)


@pytest.mark.parametrize("kill", [0, 1])
async def test_a_whole_answer_is_asked_for_anew(loaded, kill):
    backends = LocalBackends(**{STABLE: (1, loaded)})
    async with http_client(entrance(backends)) as http:
        expected = await http.post(CHAT, json=BODY)
        backends.kills[STABLE] = [kill, kill]
        reply = await http.post(CHAT, json=BODY)
    assert reply.json()["choices"] == expected.json()["choices"]
    assert reply.headers["x-athanor-model"] == "support-student@1"
    assert len(backends.calls) == 4


async def test_replicas_that_die_again_and_again_are_503_before_and_an_error_event_after_the_first_byte(
    loaded, monkeypatch
):
    monkeypatch.setattr("serving.gateway._PAUSE_S", 0)
    backends = LocalBackends(**{STABLE: (1, loaded)})
    async with http_client(entrance(backends)) as http:
        backends.kills[STABLE] = [0] * 3
        refused = await http.post(CHAT, json=BODY)
        assert len(backends.calls) == 3  # at most two more, once a replica has died over it
        backends.kills[STABLE] = [3, 0, 0]
        broken = await http.post(CHAT, json={**BODY, "stream": True})
        assert len(backends.calls) == 6
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert refused.headers["retry-after"] == "1"
    last = json.loads(broken.text.split("\n\n")[-2].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert "DONE" not in broken.text


@pytest.mark.parametrize(
    "items", [(BackendFailed("died"),), whole(500), whole(503), whole(429), (Head(200, ()), BackendFailed("died"))]
)
async def test_a_canary_that_fails_is_replaced_by_the_stable_revision(loaded, items):
    backends = LocalBackends(**{STABLE: (1, loaded)})
    canary = Scripted(*items)
    local, backends.call = backends.call, lambda app, request: (canary if app == CANARY else own).call(app, request)
    own = type("Own", (), {"call": staticmethod(local)})
    async with http_client(entrance(backends, table(0, 10_000))) as http:
        replaced = await http.post(CHAT, json=BODY)
    assert (replaced.status_code, replaced.headers["x-athanor-model"]) == (200, "support-student@1")
    gate = entrance(backends, table(1, 9_999), metrics=GatewayMetrics("g1"))
    async with http_client(gate) as http:
        reply = await http.post(CHAT, json=BODY, headers={"x-athanor-session": "in-the-canary"})
        numbers = (await http.get("/metrics")).text
    assert (reply.status_code, reply.headers["x-athanor-model"]) == (200, "support-student@1")
    counted = 'backend_failures_total{deployment="support-bot",gateway="g1",model="support-student@2"} 1.0' in numbers
    assert counted is (items[0] != whole(429)[0]), "that a queue is full is no failure"
    assert 'requests_total{code="200",deployment="support-bot",gateway="g1",model="support-student@1"} 1.0' in numbers


async def test_a_canary_that_dies_in_the_middle_is_gone_on_with_by_its_own_replicas(loaded):
    backends = LocalBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})
    backends.kills[CANARY] = [3]
    await streamed(backends, {}, routes=table(1, 9_999))
    assert [app for app, _ in backends.calls] == [CANARY, CANARY]


class Moves(LocalBackends):
    """A replica that dies as its revision is replaced: the gateway has another table before the next attempt."""

    def to(self, gate, table):
        self.gate, self.table = gate, table

    async def call(self, app, request):
        async for item in super().call(app, request):
            if app == STABLE:
                self.gate.table = self.table
                raise BackendFailed("the replica died")
            yield item


@pytest.mark.parametrize("model", ["support-bot", "support-student@1"])
async def test_the_next_attempt_goes_by_the_table_of_its_time(loaded, model):
    again = Backend(app="support-bot--r3", model="support-student@1", revision=3, weight=10_000)
    backends = Moves(**{STABLE: (1, loaded), again.app: (1, loaded)})
    gate = entrance(backends)
    backends.to(gate, RouteTable(routes=(Route(name="support-bot", backends=(again,)),)))
    async with http_client(gate) as http:
        reply = await http.post(CHAT, json={**BODY, "model": model})
    assert reply.status_code == 200
    assert [app for app, _ in backends.calls] == [STABLE, again.app]


@pytest.mark.parametrize("model", ["support-bot", "support-student@1"])
async def test_a_deployment_that_is_gone_by_the_next_attempt_is_not_asked_again(loaded, model):
    backends = Moves(**{STABLE: (1, loaded)})
    gate = entrance(backends)
    backends.to(gate, RouteTable())
    async with http_client(gate) as http:
        reply = await http.post(CHAT, json={**BODY, "model": model})
    assert (reply.status_code, len(backends.calls)) == (503, 1)


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_what_is_the_clients_own_fault_passes_through(status):
    backends = Scripted(*whole(status, b'{"error": {"message": "yours"}}'))
    async with http_client(entrance(backends)) as http:
        reply = await http.post(CHAT, json=BODY)
    assert (reply.status_code, reply.json()) == (status, {"error": {"message": "yours"}})
    assert len(backends.calls) == 1


async def test_a_session_stays_with_its_version_and_a_version_can_be_asked_by_number(loaded):
    backends = LocalBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})
    async with http_client(entrance(backends, table(5_000, 5_000))) as http:

        async def version(**options):
            reply = await http.post(CHAT, json={**BODY, "max_tokens": 1, **options})
            return reply.headers["x-athanor-model"]

        seen = [await version(user=f"user-{n}") for n in range(12)]
        assert len(set(seen)) == 2
        assert [await version(user=f"user-{n}") for n in range(12)] == seen
        assert await version(model="support-student@2") == "support-student@2"


async def test_a_deadline_is_504_and_reaches_the_engine(loaded):
    class Hangs(Scripted):
        async def call(self, app, request):
            self.calls.append((app, request))
            await never.wait()
            yield

    never, backends = asyncio.Event(), Hangs()
    async with http_client(entrance(backends)) as http:
        reply = await http.post(CHAT, json=BODY, headers={"x-athanor-timeout": "0.05"})
        wrong = await http.post(CHAT, json=BODY, headers={"x-athanor-timeout": "soon"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
    assert 0 < backends.calls[0][1].deadline_s <= 0.05
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-athanor-timeout")


async def test_a_deadline_in_the_middle_of_a_stream_is_an_error_event():
    class Slow(Scripted):
        async def call(self, app, request):
            yield Head(200, (("content-type", "text/event-stream; charset=utf-8"),))
            yield Chunk(b"data: {}\n\n", {0: (5,)})
            await asyncio.Event().wait()

    async with http_client(entrance(Slow())) as http:
        reply = await http.post(CHAT, json={**BODY, "stream": True}, headers={"x-athanor-timeout": "0.2"})
    first, last, end = reply.text.split("\n\n")
    assert (reply.status_code, first, end) == (200, "data: {}", "")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"


async def test_a_mirrored_request_is_asked_in_the_dark_and_handed_over_with_both_outcomes(loaded):
    pairs: asyncio.Queue = asyncio.Queue()
    backends = LocalBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})
    mirror = Mirror(app=CANARY, revision=2, share=1.0)
    gate = entrance(backends, table(10_000, 0, mirror=mirror), mirroring=Mirroring(backends, pairs.put))
    async with http_client(gate) as http:
        reply = await http.post(CHAT, json=BODY)
        pair = await pairs.get()
        refused = await http.post(CHAT, json={**BODY, "temperature": 9})
    assert reply.headers["x-athanor-model"] == "support-student@1"
    assert (pair.stable.backend.app, pair.canary.backend.app) == (STABLE, CANARY)
    assert len(pair.stable.token_ids[0]) == reply.json()["usage"]["completion_tokens"]
    assert pair.stable.token_ids == pair.canary.token_ids  # the same model, the same seed
    assert (pair.canary.status, pair.canary.error) == (200, "")
    assert refused.status_code == 400
    assert [app for app, _ in backends.calls] == [STABLE, CANARY, STABLE]


async def test_a_request_over_which_a_replica_died_is_not_mirrored(loaded):
    backends = LocalBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})
    backends.kills[STABLE] = [0]
    mirroring = Mirroring(backends, asyncio.Queue().put)
    mirror = Mirror(app=CANARY, revision=2, share=1.0)
    async with http_client(entrance(backends, table(10_000, 0, mirror=mirror), mirroring=mirroring)) as http:
        assert (await http.post(CHAT, json=BODY)).status_code == 200
    assert not mirroring._running
    assert [app for app, _ in backends.calls] == [STABLE, STABLE]


async def test_an_answer_of_a_replica_that_is_no_good_is_no_death():
    backends = Scripted(*whole(503, b'{"error": {"message": "busy"}}'))
    async with http_client(entrance(backends)) as http:
        reply = await http.post(CHAT, json=BODY)
    assert (reply.status_code, len(backends.calls)) == (503, 4)


async def test_what_a_canary_answered_itself_is_not_asked_of_it_again(loaded):
    pairs: asyncio.Queue = asyncio.Queue()
    backends = LocalBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})
    mirror = Mirror(app=CANARY, revision=2, share=1.0)
    mirroring = Mirroring(backends, pairs.put)
    async with http_client(entrance(backends, table(0, 10_000, mirror=mirror), mirroring=mirroring)) as http:
        reply = await http.post(CHAT, json=BODY)
    await mirroring.aclose()
    assert reply.headers["x-athanor-model"] == "support-student@2"
    assert ([app for app, _ in backends.calls], pairs.qsize()) == ([CANARY], 0)


async def test_what_is_not_mirrored_as_too_much_is_under_way_is_counted(loaded):
    backends = LocalBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})
    mirror = Mirror(app=CANARY, revision=2, share=1.0)
    gate = entrance(
        backends,
        table(10_000, 0, mirror=mirror),
        mirroring=Mirroring(backends, asyncio.Queue().put, most_asked=0),
        metrics=GatewayMetrics("g1"),
    )
    async with http_client(gate) as http:
        for _ in range(2):
            await http.post(CHAT, json=BODY)
        numbers = (await http.get("/metrics")).text
    assert 'athanor_gateway_mirrored_left_out_total{gateway="g1"} 2.0' in numbers


async def test_what_is_not_compared_as_too_much_is_being_compared_is_counted(loaded):
    backends = LocalBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})
    mirroring = Mirroring(backends, asyncio.Queue().put, most_compared=0)
    mirror = Mirror(app=CANARY, revision=2, share=1.0)
    gate = entrance(backends, table(10_000, 0, mirror=mirror), mirroring=mirroring, metrics=GatewayMetrics("g1"))
    async with http_client(gate) as http, asyncio.timeout(30):
        await http.post(CHAT, json=BODY)
        while mirroring._running:
            await asyncio.sleep(0.01)
        numbers = (await http.get("/metrics")).text
    assert 'athanor_gateway_mirrored_not_compared_total{gateway="g1"} 1.0' in numbers


async def test_a_canary_that_breaks_in_the_dark_is_an_outcome_too(loaded):
    pairs: asyncio.Queue = asyncio.Queue()
    backends = LocalBackends(**{STABLE: (1, loaded)})
    mirror = Mirror(app=CANARY, revision=2, share=1.0)
    gate = entrance(backends, table(10_000, 0, mirror=mirror), mirroring=Mirroring(backends, pairs.put))
    async with http_client(gate) as http:
        await http.post(CHAT, json={**BODY, "stream": True})
    pair = await pairs.get()
    assert (pair.stable.status, pair.canary.status, pair.canary.error) == (200, 0, "the replica died")
    assert (pair.stable.complete, pair.canary.complete) == (True, False)
    assert pair.stable.first_token_s <= pair.stable.duration_s


async def test_a_stream_that_ends_with_an_error_is_not_mirrored_and_not_whole():
    pairs: asyncio.Queue = asyncio.Queue()
    head = Head(200, (("content-type", "text/event-stream; charset=utf-8"),))
    broken = (head, Chunk(b"data: {}\n\n", {0: (5,)}), Chunk(b'data: {"error": {}}\n\n'))
    whole_stream = (*broken[:2], Chunk(b"data: [DONE]\n\n"))
    answers = Scripted(*broken)
    mirroring = Mirroring(answers, pairs.put)
    mirror = Mirror(app=CANARY, revision=2, share=1.0)
    async with http_client(entrance(answers, table(10_000, 0, mirror=mirror), mirroring=mirroring)) as http:
        await http.post(CHAT, json={**BODY, "stream": True})
        await mirroring.aclose()
        assert ([app for app, _ in answers.calls], pairs.qsize()) == ([STABLE], 0)
        answers.items = whole_stream
        await http.post(CHAT, json={**BODY, "stream": True})
        pair = await pairs.get()
        assert (pair.stable.complete, pair.canary.complete) == (True, True)
        mirroring.start(table(10_000, 0).routes[0], pair.canary.backend, pair.request, pair.stable)
        answers.items = broken
        pair = await pairs.get()
    assert (pair.canary.complete, pair.canary.token_ids) == (False, {0: (5,)})


async def test_a_client_that_goes_ends_the_work():
    """Played as a server plays it: the client disconnects after the first chunk."""
    gone, ended = asyncio.Event(), asyncio.Event()
    body = json.dumps({**BODY, "stream": True}).encode()
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    class Endless(Scripted):
        async def call(self, app, request):
            try:
                yield Head(200, (("content-type", "text/event-stream; charset=utf-8"),))
                yield Chunk(b"data: {}\n\n", {0: (5,)})
                await asyncio.Event().wait()
            finally:
                ended.set()

    async def receive():
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message.get("body"):
            gone.set()

    headers = [(b"authorization", b"Bearer good")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "state": {}}
    gate = entrance(Endless())
    await build_gateway(gate)(scope, receive, send)
    assert ended.is_set()
    numbers = generate_latest(gate.metrics.registry).decode()
    assert 'requests_total{code="cancelled",deployment="support-bot",model="support-student@1"} 1.0' in numbers
    assert 'open_requests{deployment="support-bot"} 0.0' in numbers
