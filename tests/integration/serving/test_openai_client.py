"""The whole API over real HTTP, through a gateway: with the real `openai` client, and with what Schemathesis draws."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import httpx
import jsonschema
import openai
import pytest
import schemathesis
from fake_backends import QUESTION, STABLE, TOKEN, LocalBackends, entrance, listening_in_thread, pooling_model, table
from fake_backends import loaded as loaded
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.gateway_http import build_gateway
from serving.limits import CallerLimits, Limits
from serving.routes import Backend, Route, RouteTable

GREEDY = {"model": "support-bot", "temperature": 0}


@pytest.fixture(scope="module")
def address(loaded):
    backends = LocalBackends(**{STABLE: (1, loaded), "reader--r1": (3, pooling_model(loaded.prompts))})
    reader = Backend(app="reader--r1", model="reader@3", revision=1, weight=10_000)
    routes = RouteTable(routes=(*table(10_000).routes, Route(name="reader", backends=(reader,))))
    limits = CallerLimits(Limits(requests_per_s=1e6, burst=1e6))
    with listening_in_thread(build_gateway(entrance(backends, routes, limits=limits))) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    token = TOKEN["authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0) as client:
        yield client


def test_models(client):
    bot, reader = client.models.list().data
    assert (bot.id, bot.tasks, bot.version) == ("support-bot", ["generate"], 1)
    assert (reader.id, reader.tasks) == ("reader", ["classify", "embed"])
    assert client.models.retrieve("support-bot").manifest_sha256 == "ab" * 32


def test_a_chat_whole_and_streamed(client):
    asked = {**GREEDY, "messages": QUESTION, "max_tokens": 9}
    whole = client.chat.completions.create(**asked)
    chunks = [*client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_several_choices_draw_with_seeds_one_after_the_other(client):
    def texts(**options):
        asked = {"model": "support-bot", "messages": QUESTION, "max_tokens": 8, **options}
        return [choice.message.content for choice in client.chat.completions.create(**asked).choices]

    together = texts(n=3, seed=40)
    assert together == [*texts(seed=40), *texts(seed=41), *texts(seed=42)]
    assert len({*together}) == 3


def test_several_choices_stream_side_by_side(client):
    asked = {"model": "support-bot", "messages": QUESTION, "max_tokens": 8, "n": 2, "seed": 40}
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [*texts.values()] == [each.message.content for each in client.chat.completions.create(**asked).choices]


def test_several_prompts_in_one_request(client):
    asked = {**GREEDY, "max_tokens": 6}
    together = client.completions.create(prompt=["Where is", "How do"], n=2, **asked)
    alone = [client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in ("Where is", "How do")]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in together.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert together.usage.completion_tokens == 24


def test_log_probabilities_of_a_chat(client):
    asked = {**GREEDY, "messages": QUESTION, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**asked).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 6
    for token in tokens:
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
    assert bytes(byte for token in tokens for byte in token.bytes).decode(errors="replace") == choice.message.content
    streamed = client.chat.completions.create(**asked, stream=True)
    pieces = [chunk.choices[0].logprobs.content for chunk in streamed]
    assert [token.token for piece in pieces for token in piece] == [token.token for token in tokens]


def test_log_probabilities_of_a_completion_with_its_prompt(client):
    asked = {**GREEDY, "prompt": "Where is my", "max_tokens": 4, "logprobs": 2}
    plain = client.completions.create(**asked).choices[0]
    echoed = client.completions.create(**asked, echo=True).choices[0]
    prompt_only = client.completions.create(**{**asked, "max_tokens": 0}, echo=True).choices[0]
    assert echoed.text == "Where is my" + plain.text
    assert (prompt_only.text, prompt_only.finish_reason) == ("Where is my", "length")
    size = len(prompt_only.logprobs.tokens)
    assert "".join(echoed.logprobs.tokens[:size]) == "Where is my"
    assert echoed.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in echoed.logprobs.token_logprobs[1:])
    assert echoed.logprobs.tokens[size:] == plain.logprobs.tokens
    assert [round(value, 3) for value in echoed.logprobs.token_logprobs[size:]] == [
        round(value, 3) for value in plain.logprobs.token_logprobs
    ]
    offsets = echoed.logprobs.text_offset
    assert [end - begin for begin, end in pairwise(offsets)] == [len(token) for token in echoed.logprobs.tokens[:-1]]
    assert all(len(top) in (2, 3) for top in plain.logprobs.top_logprobs)


def test_bias_and_penalties_change_what_is_said(client):
    asked = {**GREEDY, "prompt": "Where is", "max_tokens": 12}
    plain = client.completions.create(**asked).choices[0].text
    biased = client.completions.create(**asked, logit_bias={"40": 20}).choices[0].text
    penalised = client.completions.create(
        **asked, logit_bias={"40": 20}, frequency_penalty=2, presence_penalty=2
    ).choices[0]
    assert biased == biased[0] * 12 != plain
    assert 0 < penalised.text.count(biased[0]) < 12


def test_structured_output_of_both_kinds(client):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    asked = {"model": "support-bot", "max_tokens": 60, "seed": 1}
    chat = client.chat.completions.create(**asked, messages=QUESTION, response_format=wanted)
    assert [*json.loads(chat.choices[0].message.content)] == ["ok"]
    plain = client.completions.create(**asked, prompt="x", extra_body={"guided_choice": ["yes", "no"]})
    assert plain.choices[0].text in ("yes", "no")
    assert plain.choices[0].finish_reason == "stop"


def test_embeddings_as_numbers_and_as_base64(client):
    asked = {"model": "reader", "input": ["Where is it?", "?"]}
    numbers = client.embeddings.create(**asked, encoding_format="float")
    encoded = client.embeddings.with_raw_response.create(**asked, encoding_format="base64")
    packed = json.loads(encoded.text)["data"][1]["embedding"]
    assert list(struct.unpack("<3f", base64.b64decode(packed))) == numbers.data[1].embedding == [1.0, -0.5, 0.125]
    assert client.embeddings.create(**asked).data[1].embedding == numbers.data[1].embedding
    assert client.embeddings.create(**asked, dimensions=3).usage.prompt_tokens == numbers.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="3 dimensions") as caught:
        client.embeddings.create(**asked, dimensions=2)
    assert caught.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError, match="context is 32 tokens"):
        client.embeddings.create(model="reader", input="x " * 40)
    with pytest.raises(openai.BadRequestError, match="cannot embed; it can generate"):
        client.embeddings.create(model="support-bot", input="x")


def test_labels(client):
    reply = client.post(
        "/classify", cast_to=dict[str, object], body={"model": "reader", "input": ["?", "Where is it?"]}
    )
    first, second = reply["data"]
    assert (first["label"], first["probs"], first["num_classes"]) == ("top_up", [0.25, 0.5, 0.25], 3)
    assert [each["label"] for each in second["labels"]] == ["arrival", "other", "top_up"]


def examples(language: str) -> list[str]:
    page = (Path(__file__).parents[3] / "docs" / "serving-api.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_examples_of_the_docs_run(address, capsys):
    """As they stand there, but for address and token."""
    [example] = [block for block in examples("python") if "openai" in block]
    example = example.replace("http://127.0.0.1:8000", address).replace("ath_...", "good")
    exec(compile(example, "serving-api.md", "exec"), {})
    assert capsys.readouterr().out
    [curl] = examples("bash")
    environ = {**os.environ, "ATHANOR_TOKEN": "good", "no_proxy": "*"}
    command = curl.replace("http://127.0.0.1:8000", address)
    said = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(said.stdout)["choices"][0]["finish_reason"] in ("stop", "length")


CHECKS = (status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance)


def closed(schemas):
    """No answer has a field that its schema does not name: stricter than what clients are told, who shall bear more."""
    for name, schema in schemas.items():
        if name.endswith("Answer") and "properties" in schema:
            schema["additionalProperties"] = False
    return schemas


def drawn(operation):
    """Requests as the document wants them, and others."""
    asked = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if operation.method == "post" else [])]
    return strategies.one_of([operation.as_strategy(generation_mode=mode) for mode in asked])


def test_whatever_is_sent_is_answered_as_the_document_says_and_never_by_a_server_error(address):
    """Schemathesis draws requests, good and bad; then the same to a model that is there."""
    document = httpx.get(f"{address}/openapi.json", headers=TOKEN, trust_env=False).json()
    closed(document["components"]["schemas"])
    schema = schemathesis.openapi.from_dict(document)
    seen: set[tuple[str, int]] = set()

    def check(case):
        (case.headers or {}).pop("x-athanor-timeout", None)  # who gives no time gets 504, and that is right
        reply = case.call(base_url=address, headers=TOKEN)
        seen.add((case.operation.path, reply.status_code))
        assert reply.status_code < 500, (case.as_curl_command(), reply.text)
        case.validate_response(reply, checks=[*CHECKS])

    for found in schema.get_all_operations():
        operation = found.ok()
        model = "reader" if operation.path.endswith(("embeddings", "classify")) else "support-bot"

        @settings(
            max_examples=12 if operation.method == "post" else 2, deadline=None, suppress_health_check=[*HealthCheck]
        )
        @given(case=drawn(operation), model=strategies.just(model))
        def both(case, model):
            check(case)
            if isinstance(case.body, dict):
                case.body["model"] = model
                check(case)
                case.body["stream"] = True
                check(case)

        both()
    paths = set(document["paths"])
    assert {path for path, code in seen if code == 200} == paths - {"/v1/models/{name}"}
    assert {400, 404} <= {code for _, code in seen}


@pytest.mark.parametrize(
    ("path", "schema", "body"),
    [
        ("/v1/chat/completions", "ChatCompletionChunk", {"messages": QUESTION, "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", "CompletionChunk", {"prompt": "Where", "logprobs": 2, "echo": True, "n": 2}),
    ],
)
def test_the_events_of_a_stream_are_as_the_document_says(address, path, schema, body):
    document = httpx.get(f"{address}/openapi.json", headers=TOKEN, trust_env=False).json()
    closed(document["components"]["schemas"])
    asked = {"model": "support-bot", "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}, **body}
    lines = httpx.post(f"{address}{path}", json=asked, headers=TOKEN, trust_env=False).text.split("\n\n")
    *events, done, rest = [line.removeprefix("data: ") for line in lines]
    assert (done, rest) == ("[DONE]", "")
    wanted = {"components": document["components"], "$ref": f"#/components/schemas/{schema}Answer"}
    validator = jsonschema.Draft202012Validator(wanted)
    for event in events:
        validator.validate(json.loads(event))
    assert json.loads(events[-1])["usage"]


def test_the_document_names_every_path_and_who_may_ask(address):
    document = httpx.get(f"{address}/openapi.json", headers=TOKEN, trust_env=False).json()
    open_paths = {path for path, item in document["paths"].items() for each in item.values() if not each["security"]}
    assert open_paths == {"/", "/healthz", "/metrics"}
    assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, item in document["paths"].items():
        [(method, operation)] = item.items()
        refused = httpx.request(method, f"{address}{path}".replace("{name}", "support-bot"), trust_env=False)
        assert (refused.status_code == 401) == (path not in open_paths)
        assert "401" in operation["responses"] or path in open_paths
        for response in operation["responses"].values():
            assert all("schema" in content for content in response["content"].values())
