"""Inference over gRPC: a real server and a real client, the gateway between them, replicas in this process."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import grpc
import pytest
from athanor.v1 import inference_service_pb2 as pb
from athanor.v1 import inference_service_pb2_grpc as pb_grpc
from fake_backends import CANARY, QUESTION, STABLE, TOKEN, LocalBackends, entrance, http_client, pooling_model, table
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.gateway_grpc import GrpcGateway, Refused
from serving.routes import Backend, Route, RouteTable

GOOD = tuple(TOKEN.items())
ASKED = pb.GenerateRequest(
    model="support-bot",
    conversation=pb.Conversation(messages=[pb.ChatMessage(role="user", content="Where is my card?")]),
    max_tokens=9,
    temperature=0,
)


class Servicer(pb_grpc.InferenceServiceServicer, health_pb2_grpc.HealthServicer):
    """Ends refused calls as Serve's proxy does: with the status that was set."""

    def __init__(self, gateway: GrpcGateway) -> None:
        self.gateway = gateway

    async def _unary(self, answer, context):
        try:
            return await answer
        except Refused:
            await context.abort(context.code(), context.details())

    async def _stream(self, answers, context):
        try:
            async for each in answers:
                yield each
        except Refused:
            await context.abort(context.code(), context.details())

    async def Classify(self, request, context):
        return await self._unary(self.gateway.classify(request, context), context)

    async def Embed(self, request, context):
        return await self._unary(self.gateway.embed(request, context), context)

    async def Check(self, request, context):
        return await self._unary(self.gateway.check(request, context), context)

    async def Generate(self, request, context):
        async for each in self._stream(self.gateway.generate(request, context), context):
            yield each

    async def Watch(self, request, context):
        async for each in self._stream(self.gateway.watch(request, context), context):
            yield each


@pytest.fixture
def backends(loaded):
    return LocalBackends(
        **{STABLE: (1, loaded), CANARY: (2, loaded), "vectors--r1": (3, pooling_model(loaded.prompts))}
    )


@pytest.fixture
def gate(backends):
    vectors = Backend(app="vectors--r1", model="support-student@3", revision=1, weight=10_000)
    waits = Route(name="not-yet", backends=())
    return entrance(
        backends, RouteTable(routes=(*table(10_000).routes, Route(name="vectors", backends=(vectors,)), waits))
    )


@pytest.fixture
async def channel(gate):
    server = grpc.aio.server()
    servicer = Servicer(GrpcGateway(gate))
    pb_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gate.grpc_address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.fixture
def stub(channel):
    return pb_grpc.InferenceServiceStub(channel)


async def test_a_generated_answer_is_that_of_the_http_side(stub, gate, backends):
    call = stub.Generate(ASKED, metadata=GOOD)
    *pieces, last = [response async for response in call]
    async with http_client(gate) as http:
        body = {"model": "support-bot", "messages": QUESTION, "max_tokens": 9, "temperature": 0}
        expected = (await http.post("/v1/chat/completions", json=body)).json()
    assert "".join(piece.text for piece in pieces) == expected["choices"][0]["message"]["content"]
    assert pieces[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (expected["usage"]["prompt_tokens"], 9)
    assert dict(await call.trailing_metadata())["x-athanor-model"] == "support-student@1"


async def test_an_answer_says_under_which_id_its_request_is_in_the_logs(stub, backends):
    call = stub.Generate(ASKED, metadata=GOOD)
    [_ async for _ in call]
    assert dict(await call.trailing_metadata())["x-request-id"] == backends.calls[-1][1].request_id
    asked = pb.ClassifyRequest(model="support-bot", inputs=["x"])
    with pytest.raises(grpc.aio.AioRpcError, match="cannot classify") as caught:
        await stub.Classify(asked, metadata=(*GOOD, ("x-request-id", "mine-8")))
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "mine-8"


async def test_a_replica_that_dies_is_not_seen(stub, backends):
    expected = [response async for response in stub.Generate(ASKED, metadata=GOOD)]
    backends.kills[STABLE] = [4, 0]
    assert [response async for response in stub.Generate(ASKED, metadata=GOOD)] == expected


async def test_options_reach_the_engine_and_forms_bind(stub):
    request = pb.GenerateRequest(
        model="support-bot", prompt="Where", max_tokens=12, num_choices=2, seed=5, regex="[ab]{4}", top_k=50, stop=["x"]
    )
    texts = {0: "", 1: ""}
    async for response in stub.Generate(request, metadata=GOOD):
        texts[response.index] += response.text
    assert [sorted({*text} - {"a", "b"}) for text in texts.values()] == [[], []]
    assert [len(text) for text in texts.values()] == [4, 4]


@pytest.mark.parametrize("prompt", ["Where", None])
async def test_log_probabilities_and_bias_are_those_of_the_http_side(stub, gate, prompt):
    request = pb.GenerateRequest()
    request.CopyFrom(ASKED)
    asked = {"model": "support-bot", "max_tokens": 9, "temperature": 0, "logit_bias": {"70": 6.5}}
    if prompt:
        request.prompt = prompt
        path, asked = "/v1/completions", {**asked, "prompt": prompt, "logprobs": 3}
    else:
        path, asked = "/v1/chat/completions", {**asked, "messages": QUESTION, "logprobs": True, "top_logprobs": 3}
    request.logit_bias[70], request.logprobs = 6.5, 3
    found = [each async for response in stub.Generate(request, metadata=GOOD) for each in response.logprobs]
    async with http_client(gate) as http:
        [choice] = (await http.post(path, json=asked)).json()["choices"]
    told = choice["logprobs"]
    expected = told["token_logprobs"] if prompt else [each["logprob"] for each in told["content"]]
    assert [each.logprob for each in found] == expected
    assert len(found) == 9
    assert all(2 <= len(each.top) <= 4 for each in found)  # of a prompt by their texts, of which two may be equal
    assert [each.top[0].logprob for each in found] == [max(top.logprob for top in each.top) for each in found]


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"choice": pb.Choices(texts=["yes", "perhaps"])}, lambda text: text in ("yes", "perhaps")),
        ({"json_object": True}, lambda text: text.startswith("{")),
        ({"json_schema": '{"enum": ["a", 7]}'}, lambda text: json.loads(text) in ("a", 7)),
    ],
)
async def test_every_form_binds(stub, form, fits):
    request = pb.GenerateRequest(model="support-bot", prompt="Where", max_tokens=12, seed=5, **form)
    text = "".join([response.text async for response in stub.Generate(request, metadata=GOOD)])
    assert fits(text), text


async def test_the_deadline_of_a_call_is_that_of_its_request(stub, backends):
    [_ async for _ in stub.Generate(ASKED, metadata=GOOD, timeout=20)]
    [_ async for _ in stub.Generate(ASKED, metadata=(*GOOD, ("x-athanor-timeout", "5")), timeout=20)]
    (_, first), (_, second) = backends.calls
    assert 0 < second.deadline_s <= 5 < first.deadline_s <= 20.5  # gRPC rounds up what it sends


@pytest.mark.parametrize(
    ("change", "metadata", "code", "words"),
    [
        ({}, (), "UNAUTHENTICATED", "no token"),
        ({}, (("authorization", "Bearer bad"),), "UNAUTHENTICATED", "does not know"),
        ({"model": "gpt-4o"}, GOOD, "NOT_FOUND", "`gpt-4o` is not here"),
        ({"model": "not-yet"}, GOOD, "UNAVAILABLE", "not ready yet"),
        ({"temperature": 9}, GOOD, "INVALID_ARGUMENT", "temperature: .*less than or equal to 2"),
        ({"regex": "("}, GOOD, "INVALID_ARGUMENT", "unclosed group"),
        ({"conversation": None}, GOOD, "INVALID_ARGUMENT", "`conversation` or `prompt`"),
        ({"model": "vectors"}, GOOD, "INVALID_ARGUMENT", "cannot generate"),
    ],
)
async def test_refusals_have_their_status(stub, change, metadata, code, words):
    request = pb.GenerateRequest()
    request.CopyFrom(ASKED)
    for name, value in change.items():
        request.ClearField(name) if value is None else setattr(request, name, value)
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        [_ async for _ in stub.Generate(request, metadata=metadata)]
    assert caught.value.code() is grpc.StatusCode[code]


async def test_replicas_that_die_again_and_again_are_unavailable(stub, backends, monkeypatch):
    monkeypatch.setattr("serving.gateway._PAUSE_S", 0)
    for kills, code in (([0] * 3, "UNAVAILABLE"), ([3, 0, 0], "INTERNAL")):
        backends.kills[STABLE] = kills
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in stub.Generate(ASKED, metadata=GOOD)]
        assert caught.value.code() is grpc.StatusCode[code]


@pytest.mark.parametrize("name", ["x-request-id", "request_id"])
async def test_a_call_has_the_id_and_the_time_that_its_metadata_say(stub, backends, name):
    [_ async for _ in stub.Generate(ASKED, metadata=(*GOOD, (name, "mine-7"), ("x-athanor-timeout", "30")))]
    [_ async for _ in stub.Generate(ASKED, metadata=(*GOOD, (name, "not one id")))]
    (_, first), (_, second) = backends.calls
    assert first.request_id == "mine-7"
    assert 0 < first.deadline_s <= 30 < second.deadline_s
    assert second.request_id.startswith("req_")
    with pytest.raises(grpc.aio.AioRpcError, match="x-athanor-timeout: seconds") as caught:
        [_ async for _ in stub.Generate(ASKED, metadata=(*GOOD, ("x-athanor-timeout", "soon")))]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_labels_and_vectors(stub):
    inputs = ["Where is it?", "?"]
    labels = await stub.Classify(pb.ClassifyRequest(model="vectors", inputs=inputs), metadata=GOOD)
    vectors = await stub.Embed(pb.EmbedRequest(model="vectors", inputs=inputs), metadata=GOOD)
    assert [result.labels[0].label for result in labels.results] == ["arrival", "top_up"]
    assert [label.probability for label in labels.results[0].labels] == [0.7, 0.2, 0.1]
    assert [list(each.values)[1:] for each in vectors.embeddings] == [[-0.5, 0.125]] * 2
    assert vectors.prompt_tokens == labels.prompt_tokens == sum(each.values[0] for each in vectors.embeddings)
    for refused in (pb.ClassifyRequest(model="vectors"), pb.ClassifyRequest(model="support-bot", inputs=["x"])):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(refused, metadata=GOOD)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_health_is_told_without_a_token(channel, gate):
    stub = health_pb2_grpc.HealthStub(channel)
    names = ("", "athanor.v1.InferenceService", "support-bot", "not-yet")
    said = [(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names]
    assert [health_pb2.HealthCheckResponse.ServingStatus.Name(each) for each in said] == [
        "SERVING",
        "SERVING",
        "SERVING",
        "NOT_SERVING",
    ]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_is_watched(channel, gate, monkeypatch):
    monkeypatch.setattr("serving.gateway_grpc._WATCH_S", 0.01)
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="not-yet"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    ready = gate.table.routes[0].model_copy(update={"name": "not-yet"})
    gate.table = RouteTable(routes=(ready,))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_only_so_many_watch_and_each_for_so_long(channel, monkeypatch):
    monkeypatch.setattr("serving.gateway_grpc._WATCH_S", 0.01)
    monkeypatch.setattr("serving.gateway_grpc._MOST_WATCHES", 2)
    stub, asked = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
    watches = [stub.Watch(asked) for _ in range(2)]
    for watch in watches:
        await watch.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Watch(asked).read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    watches[0].cancel()
    monkeypatch.setattr("serving.gateway_grpc._WATCHED_S", 0.02)
    async with asyncio.timeout(10):
        while True:  # until the server has seen that one went
            try:
                found = [each.status async for each in stub.Watch(asked)]
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
    assert found == [health_pb2.HealthCheckResponse.SERVING]
    watches[1].cancel()


async def test_the_example_of_the_docs_runs(gate, channel, capsys):
    """As it stands there, but for address and token."""
    page = (Path(__file__).parents[3] / "docs" / "serving-api.md").read_text("utf-8")
    [example] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "InferenceService" in block]
    example = example.replace("127.0.0.1:9000", gate.grpc_address).replace("ath_...", "good")
    await asyncio.to_thread(exec, compile(example, "serving-api.md", "exec"), {})
    assert capsys.readouterr().out
