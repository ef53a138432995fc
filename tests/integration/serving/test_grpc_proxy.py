"""Inference and health over gRPC through the real proxy of Ray Serve."""

from __future__ import annotations

import grpc
import httpx
import pytest
from athanor.v1 import inference_service_pb2 as pb
from athanor.v1 import inference_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from installation import Installation
from prometheus_client.parser import text_string_to_metric_families

from cluster.ray_head import HOST

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ASKED = pb.GenerateRequest(
    model="over-grpc",
    conversation=pb.Conversation(messages=[pb.ChatMessage(role="user", content="Where is my card?")]),
    max_tokens=12,
    temperature=0,
)


@pytest.fixture(scope="module")
def channel(installation: Installation, models):
    installation.deploy("over-grpc", models.good)
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(f"{HOST}:{installation.settings.serve_grpc_port}", options=options) as channel:
        yield channel
    installation.take_down("over-grpc")


@pytest.fixture
def token(installation: Installation):
    return (*installation.authorization.items(),)


def test_without_a_token_nobody_is_answered(channel):
    with pytest.raises(grpc.RpcError) as caught:
        [*pb_grpc.InferenceServiceStub(channel).Generate(ASKED, timeout=60)]
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_answer_streams_and_is_that_of_the_http_side(channel, installation, token):
    call = pb_grpc.InferenceServiceStub(channel).Generate(ASKED, timeout=60, metadata=token)
    *pieces, last = [*call]
    asked = {"model": "over-grpc", "messages": [{"role": "user", "content": "Where is my card?"}]}
    with installation.openai() as client:
        expected = client.chat.completions.create(**asked, max_tokens=12, temperature=0)
    assert "".join(piece.text for piece in pieces) == expected.choices[0].message.content
    assert len(pieces) > 3
    assert last.usage.completion_tokens == 12
    trailing = dict(call.trailing_metadata())
    assert trailing["x-athanor-model"].startswith("student@")
    assert trailing["x-request-id"]


def test_the_address_is_told_and_options_go_through_the_proxy(channel, installation, token):
    deployment = installation.client.get_deployment("over-grpc")
    assert deployment.grpc_endpoint == f"{HOST}:{installation.settings.serve_grpc_port}"
    request = pb.GenerateRequest(
        model="over-grpc", prompt="Where", max_tokens=8, choice=pb.Choices(texts=["yes", "no"]), logprobs=2
    )
    pieces = [*pb_grpc.InferenceServiceStub(channel).Generate(request, timeout=60, metadata=token)]
    assert "".join(piece.text for piece in pieces) in ("yes", "no")
    assert all(each.logprob <= 0 and len(each.top) >= 2 for piece in pieces for each in piece.logprobs)
    assert sum(len(piece.logprobs) for piece in pieces) >= 1


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, "`other` is not here"),
        ({"temperature": 7}, grpc.StatusCode.INVALID_ARGUMENT, "temperature"),
    ],
)
def test_a_refusal_has_its_status_and_no_traceback(channel, token, change, code, words):
    request = pb.GenerateRequest()
    request.CopyFrom(ASKED)
    for name, value in change.items():
        setattr(request, name, value)
    with pytest.raises(grpc.RpcError) as caught:
        [*pb_grpc.InferenceServiceStub(channel).Generate(request, timeout=60, metadata=token)]
    assert caught.value.code() is code
    assert words in caught.value.details()
    assert "Traceback" not in caught.value.details()


def test_a_unary_call_is_refused_the_same_way(channel, token):
    with pytest.raises(grpc.RpcError) as caught:
        pb_grpc.InferenceServiceStub(channel).Embed(
            pb.EmbedRequest(model="over-grpc", inputs=["x"]), timeout=60, metadata=token
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot embed; it can generate" in caught.value.details()


def test_health_in_the_standard_way(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "athanor.v1.InferenceService", "over-grpc"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status == serving
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == serving
    watch.cancel()


def test_the_numbers_of_every_replica_and_the_page_are_reached_over_http(channel, installation, token):
    [*pb_grpc.InferenceServiceStub(channel).Generate(ASKED, timeout=60, metadata=token)]
    numbers = httpx.get(f"{installation.url}/metrics", trust_env=False, timeout=30).text
    families = {family.name: family for family in text_string_to_metric_families(numbers)}
    tokens = [
        sample.value
        for sample in families["athanor_serve_generation_tokens"].samples
        if sample.labels["deployment"] == "over-grpc" and sample.name.endswith("_total")
    ]
    assert sum(tokens) >= 12
    assert families["athanor_serve_requests"].samples
    page = httpx.get(f"{installation.url}/", trust_env=False, timeout=30)
    assert "default-src 'none'" in page.headers["content-security-policy"]
