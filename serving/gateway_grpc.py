"""The gRPC side of the gateway: `athanor.v1.InferenceService`, and `grpc.health.v1` for whoever balances load.

A call is turned into the request of the HTTP side and goes the same way, so both know the same deployments, tokens,
limits and versions. Knows no server: Ray Serve's proxy, or any other, brings requests and contexts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Protocol
from uuid import uuid4

import grpc
from athanor.v1 import inference_service_pb2 as pb
from grpc_health.v1 import health_pb2

from serving.answers import DONE
from serving.backend import BackendRequest, Chunk, Head
from serving.errors import InvalidRequest, RequestError, ServingError
from serving.gateway import MODEL_HEADER, Call
from serving.gateway_http import SESSION_HEADER, Entrance, timeout_of
from serving.middleware import REQUEST_ID, safe_id
from serving.schemas import MAX_TIMEOUT_S

_SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
_STATUS: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}
_SAME = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
_REQUEST_IDS = (REQUEST_ID, "request_id")
"""The name of the HTTP side, and that of Serve's proxy."""
_WATCH_S = 1.0
_WATCHED_S = 600.0
_MOST_WATCHES = 64
"""Each holds a place of the gateway, and needs no token."""
Fields = dict[str, Any]


class Context(Protocol):
    """What is asked of a call's context; grpc's own has it, and that of Ray Serve."""

    def invocation_metadata(self) -> Any: ...

    def peer(self) -> str: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: Any) -> None: ...


class Refused(ServingError):
    """The call ends with the status that its context was given."""


class GrpcGateway:
    """One method per RPC. A call that is refused has its status set, and raises Refused."""

    def __init__(self, entrance: Entrance) -> None:
        self._entrance = entrance
        self._num_watches = 0

    async def generate(self, request: pb.GenerateRequest, context: Context) -> AsyncGenerator[pb.GenerateResponse]:
        """Pieces of the answers as they come, and at last the count of their tokens."""
        try:
            path, fields = _generation(request)
            async with aclosing(self._items(path, fields, context)) as data:
                async for document in _events(data):
                    for response in _pieces(document):
                        yield response
        except RequestError as error:
            raise _refused(error.status, error.message, context) from error

    async def classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        """The labels of each text."""
        answer = await self._whole("/v1/classify", {"model": request.model, "input": [*request.inputs]}, context)
        results = [
            pb.Classification(labels=[pb.LabelProbability(**label) for label in each["labels"]])
            for each in answer["data"]
        ]
        return pb.ClassifyResponse(results=results, prompt_tokens=answer["usage"]["prompt_tokens"])

    async def embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """The vector of each text."""
        answer = await self._whole("/v1/embeddings", {"model": request.model, "input": [*request.inputs]}, context)
        vectors = [pb.Embedding(values=each["embedding"]) for each in answer["data"]]
        return pb.EmbedResponse(embeddings=vectors, prompt_tokens=answer["usage"]["prompt_tokens"])

    async def check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Of the gateway (``), of inference as such, or of one deployment by its name."""
        status = self._health(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise _refused(404, f"there is no service or deployment {request.service!r}", context)
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse]:
        """The same, again whenever it changes; for ten minutes, then a client that still wants to know asks anew."""
        if self._num_watches >= _MOST_WATCHES:
            raise _refused(429, f"{_MOST_WATCHES} health watches are open already; ask with Check", context)
        self._num_watches += 1
        try:
            last, ends_at = None, time.monotonic() + _WATCHED_S
            while time.monotonic() < ends_at:
                if (status := self._health(request.service)) != last:
                    last = status
                    yield health_pb2.HealthCheckResponse(status=status)
                await asyncio.sleep(_WATCH_S)
        finally:
            self._num_watches -= 1

    def _health(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if service in ("", _SERVICE):
            return health_pb2.HealthCheckResponse.SERVING
        route = self._entrance.table.route(service)
        if route is None:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        ready = bool(route.backends)
        return health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING

    async def _whole(self, path: str, fields: Fields, context: Context) -> Fields:
        try:
            if not fields["input"]:
                raise InvalidRequest("inputs: at least one", param="inputs")
            async with aclosing(self._items(path, fields, context)) as data:
                answer: Fields = json.loads(b"".join([piece async for piece in data]))
        except RequestError as error:
            raise _refused(error.status, error.message, context) from error
        return answer

    async def _items(self, path: str, fields: Fields, context: Context) -> AsyncGenerator[bytes]:
        """What the answer consists of; Refused where it is none."""
        metadata = {str(key): str(value) for key, value in context.invocation_metadata()}
        caller = await self._entrance.caller(metadata.get("authorization", ""), _host(context.peer()))
        request_id = next(filter(None, (safe_id(metadata.get(name)) for name in _REQUEST_IDS)), f"req_{uuid4().hex}")
        context.set_trailing_metadata([(REQUEST_ID, request_id)])
        timeout_s = min(timeout_of(metadata), _time_left(context))
        with self._entrance.admitted(caller):
            route, pinned = self._entrance.target(fields["model"])
            body = json.dumps(fields).encode()
            seed = 0 if fields.get("seed") is not None else None
            asked = BackendRequest("POST", path, (("content-type", "application/json"),), body, request_id, seed=seed)
            call = Call(route, asked, metadata.get(SESSION_HEADER) or request_id, timeout_s, pinned)
            async with aclosing(self._entrance.gateway.answer(call)) as items:
                async for piece in _checked(items, context, request_id):
                    yield piece


def _time_left(context: Context) -> float:
    """Until the call's deadline, where the server knows it: the context of Ray Serve's proxy does not tell."""
    asked = getattr(context, "time_remaining", None)
    left_s = asked() if asked is not None else None
    return MAX_TIMEOUT_S if left_s is None else float(left_s)


async def _checked(items: AsyncGenerator[Head | Chunk], context: Context, request_id: str) -> AsyncGenerator[bytes]:
    """The body's bytes; an answer of another status than 200 is a refusal."""
    status, body = 0, b""
    async for item in items:
        if isinstance(item, Head):
            status = item.status
            model = dict(item.headers)[MODEL_HEADER]
            context.set_trailing_metadata([(MODEL_HEADER, model), (REQUEST_ID, request_id)])
        elif status == 200:
            yield item.data
        else:
            body += item.data
    if status != 200:
        raise _refused(status, json.loads(body)["error"]["message"], context)


def _host(peer: str) -> str:
    """Of `ipv4:10.0.0.1:5555`, without the port: that is another for each connection."""
    return peer.rpartition(":")[0]


def _refused(status: int, message: str, context: Context) -> Refused:
    context.set_code(_STATUS.get(status, grpc.StatusCode.INTERNAL))
    context.set_details(message)
    return Refused(message)


def _generation(request: pb.GenerateRequest) -> tuple[str, Fields]:
    """The same request as the HTTP side knows it."""
    given = {field.name: value for field, value in request.ListFields()}
    fields: Fields = {"model": request.model, "stream": True, "stream_options": {"include_usage": True}}
    fields |= {name: given[name] for name in _SAME if name in given}
    fields |= {"n": request.num_choices or 1, "stop": [*request.stop], **_form(request)}
    fields |= {"logit_bias": {str(token): bias for token, bias in request.logit_bias.items()}}
    told = request.logprobs if request.HasField("logprobs") else None
    match request.WhichOneof("input"):
        case "prompt":
            return "/v1/completions", {**fields, "prompt": request.prompt, "logprobs": told}
        case "conversation":
            turns = [{"role": turn.role, "content": turn.content} for turn in request.conversation.messages]
            fields |= {"logprobs": told is not None, "top_logprobs": told}
            return "/v1/chat/completions", {**fields, "messages": turns}
    raise InvalidRequest("give `conversation` or `prompt`")


def _form(request: pb.GenerateRequest) -> Fields:
    """How the answer must look."""
    match request.WhichOneof("form"):
        case "json_schema":
            return {"guided_json": request.json_schema}
        case "regex":
            return {"guided_regex": request.regex}
        case "choice":
            return {"guided_choice": [*request.choice.texts]}
        case "json_object":
            return {"structured_outputs": {"json_object": request.json_object}}
    return {}


async def _events(data: AsyncGenerator[bytes]) -> AsyncGenerator[Fields]:
    """The documents of server-sent events."""
    held = b""
    async for piece in data:
        *complete, held = (held + piece).split(b"\n\n")
        for event in complete:
            if event + b"\n\n" != DONE:
                yield json.loads(event.removeprefix(b"data: "))


def _pieces(document: Fields) -> Iterator[pb.GenerateResponse]:
    """Of one event; one that reports an error ends the call."""
    if error := document.get("error"):
        late = error.get("code") == "timeout"
        raise _BrokenOff(error["message"], 504 if late else 500)
    for choice in document["choices"]:
        text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
        reason = _REASONS.get(choice["finish_reason"], pb.FINISH_REASON_UNSPECIFIED)
        logprobs = _logprobs(choice.get("logprobs") or {})
        yield pb.GenerateResponse(index=choice["index"], text=text, finish_reason=reason, logprobs=logprobs)
    if usage := document.get("usage"):
        counted = pb.TokenUsage(prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
        yield pb.GenerateResponse(usage=counted)


def _logprobs(told: Fields) -> Iterator[pb.TokenLogprob]:
    """Of a chat, or of a completion, whose lists are parallel."""
    for entry in told.get("content", ()):
        top = [pb.TopLogprob(token=each["token"], logprob=each["logprob"]) for each in entry["top_logprobs"]]
        yield pb.TokenLogprob(token=entry["token"], logprob=entry["logprob"], top=top)
    lists = (told.get(name, ()) for name in ("tokens", "token_logprobs", "top_logprobs"))
    for token, logprob, others in zip(*lists, strict=True):
        ranked = sorted(others.items(), key=lambda pair: -pair[1])
        top = [pb.TopLogprob(token=each, logprob=value) for each, value in ranked]
        yield pb.TokenLogprob(token=token, logprob=logprob, top=top)


class _BrokenOff(RequestError):
    """A stream ended with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]
