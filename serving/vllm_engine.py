"""`Engine` over vLLM (the extra `vllm`, for GPUs): its scheduler, paged cache and kernels behind our contract.

Written against `vllm.v1.engine.async_llm.AsyncLLM` (0.11 and later), compared with the source of 0.33.0; tests run it
over a fake of that interface. Tokens become text here, so stop strings and resumed answers are exactly those of the
other engine. Not so: a resumed answer that is drawn goes on with other draws, since vLLM's depend on what came before;
a `Guide` is refused, since it lives in another process than vLLM's sampler.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from serving.detokenizer import AnswerText, remembering
from serving.engine import Delta, FinishReason, GenerationRequest, Load, Sampling, Scored, TokenLogprob, TokenStream
from serving.errors import DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)
_MEMORY, _MEMORY_SHARE = "gpu_memory_utilization", 0.9
MAX_TOP_LOGPROBS = 128
"""So many alternatives a score may ask for."""


class Client(Protocol):
    """What is used of `AsyncLLM`."""

    @property
    def errored(self) -> bool:
        """Its core died, and with it every request."""

    def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> AsyncGenerator[Any, None]:
        """Closing it aborts the request."""

    def shutdown(self) -> None: ...


class VllmEngine:
    """Requests go to vLLM as token ids, and come back as token ids."""

    def __init__(
        self,
        client: Client,
        make_params: Callable[..., Any],
        decode: Callable[[Sequence[int]], str],
        *,
        context_length: int,
        end_ids: frozenset[int],
        max_ongoing: int = 512,
        refusals: tuple[type[Exception], ...] = (ValueError,),
    ) -> None:
        """`make_params`: vLLM's `SamplingParams`, with deltas as its kind of output; `refusals`: what it raises over a
        request that is wrong."""
        self._client = client
        self._refusals = refusals
        self._make_params = make_params
        self._decode = remembering(decode)
        self._context_length = context_length
        self._end_ids = end_ids
        self._max_ongoing = max_ongoing
        self._ongoing = 0
        self._closed = False
        self._numbers = count()

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def load(self) -> Load:
        """vLLM tells in its own metrics which of them wait, and how full its cache is."""
        return Load(running=self._ongoing, waiting=0)

    @property
    def is_healthy(self) -> bool:
        return not self._closed and not self._client.errored

    def submit(self, request: GenerationRequest) -> TokenStream:
        if request.guide is not None:
            raise InvalidRequest("constrained output is not supported by the engine `vllm`", param="response_format")
        self._enter()
        try:
            return _Stream(self._answer(request), self._leave, request.deadline_s)
        except BaseException as error:
            self._leave()
            if isinstance(error, self._refusals):
                raise _refused(error) from error
            raise

    def _answer(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        text = AnswerText(request, self._decode, self._end_ids)
        for token in request.given_ids:
            if (reason := text.push(token)[1]) is not None:
                return _only(Delta("", 0, reason))
        left = request.max_tokens - len(request.given_ids)
        options = sampling_options(request.sampling, len(request.given_ids))
        params = self._make_params(**options, **self._ends(left), logprobs=request.logprobs)
        prompt = {"prompt_token_ids": [*request.prompt_ids, *request.given_ids]}
        outputs = self._client.generate(prompt, params, self._name(request.request_id))
        return _deltas(outputs, text, told=request.logprobs, refusals=self._refusals)

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
        if not 1 <= start < len(token_ids) or top_k > MAX_TOP_LOGPROBS:
            raise InvalidRequest(f"start must be before the last token, and top_k at most {MAX_TOP_LOGPROBS}")
        self._enter()
        try:
            params = self._make_params(temperature=0.0, prompt_logprobs=top_k, **self._ends(1))
            outputs = self._client.generate({"prompt_token_ids": list(token_ids)}, params, self._name("score"))
            found: Sequence[Mapping[int, Any] | None] = ()
            async for output in outputs:
                found = found or output.prompt_logprobs or ()
            if len(found) != len(token_ids):
                raise EngineFailed("vLLM told no log-probabilities of this text")
            pairs = list(zip(token_ids, found, strict=True))[start:]
            return Scored(tuple(_logprob(token, entries or {}, top_k) for token, entries in pairs))
        except self._refusals as error:
            raise _refused(error) from error
        finally:
            self._leave()

    def close(self) -> None:
        self._closed = True
        self._client.shutdown()

    def _ends(self, max_tokens: int) -> dict[str, Any]:
        """Every token is ours to read: text, and what stops it, is made here."""
        return {"max_tokens": max_tokens, "stop_token_ids": sorted(self._end_ids), "detokenize": False}

    def _name(self, request_id: str) -> str:
        """vLLM wants names that are not in use; a client may give the same one twice."""
        return f"{request_id or uuid4().hex}-{next(self._numbers)}"

    def _enter(self) -> None:
        if self._closed:
            raise EngineFailed("the engine is closed")
        if self._ongoing >= self._max_ongoing:
            raise Overloaded(f"{self._ongoing} requests are ongoing already; try again in a moment")
        self._ongoing += 1

    def _leave(self) -> None:
        self._ongoing -= 1


class _Stream:
    """The deltas of one answer, under its deadline."""

    def __init__(
        self, deltas: AsyncGenerator[Delta, None], leave: Callable[[], None], deadline_s: float | None
    ) -> None:
        self._deltas = deltas
        self._leave = leave
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s
        self._open = True

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Delta:
        if not self._open:
            raise StopAsyncIteration
        try:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            async with asyncio.timeout(left):
                delta = await anext(self._deltas)
        except TimeoutError as error:
            await self.aclose()
            raise DeadlineExceeded("the answer was not complete in the time allowed") from error
        except Exception as error:
            await self.aclose()
            if isinstance(error, EngineFailed | InvalidRequest | StopAsyncIteration):
                raise
            logger.exception("vLLM failed on a request")
            raise EngineFailed("the engine could not finish this request") from error
        if delta.finish_reason is not None:
            await self.aclose()
        return delta

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self._leave()
            await self._deltas.aclose()


async def _only(delta: Delta) -> AsyncGenerator[Delta, None]:
    yield delta


async def _deltas(
    outputs: AsyncGenerator[Any, None], text: AnswerText, *, told: int | None, refusals: tuple[type[Exception], ...]
) -> AsyncGenerator[Delta, None]:
    """One for each output of vLLM; the answer ends where its text does, and vLLM is told by closing its generator."""
    begun = False
    try:
        async for output in outputs:
            begun = True
            [completion] = output.outputs
            if completion.finish_reason not in (None, "stop", "length"):
                raise EngineFailed(f"vLLM ended the request: {completion.finish_reason}")
            delta = _delta(completion, text, told)
            if delta.num_tokens or delta.finish_reason:
                yield delta
            if delta.finish_reason:
                return
        raise EngineFailed("vLLM ended the answer without a reason")
    except refusals as error:
        if begun:
            raise
        raise _refused(error) from error
    finally:
        await outputs.aclose()


def _refused(error: BaseException) -> InvalidRequest:
    """What vLLM cannot do with a request it says before anything else, and as this."""
    return InvalidRequest(f"the engine refuses this request: {error}")


def _delta(completion: Any, text: AnswerText, told: int | None) -> Delta:
    pieces, tokens, reason = [], [], None
    for token in completion.token_ids:
        piece, reason = text.push(token)
        pieces.append(piece)
        tokens.append(token)
        if reason is not None:
            break
    found = completion.logprobs if told is not None and completion.logprobs else ()
    logprobs = tuple(_logprob(token, entries, told or 0) for token, entries in zip(tokens, found, strict=False))
    ended: FinishReason | None = reason or completion.finish_reason
    return Delta("".join(pieces), len(tokens), ended, tuple(tokens), logprobs)


def _logprob(token: int, entries: Mapping[int, Any], most: int) -> TokenLogprob:
    """From vLLM's entries (token -> logprob and rank), which hold the token itself beside the most likely ones."""
    ranked = sorted(entries.items(), key=lambda entry: -entry[1].logprob)
    return TokenLogprob(token, entries[token].logprob, tuple((each, entry.logprob) for each, entry in ranked[:most]))


def sampling_options(sampling: Sampling, num_given: int) -> dict[str, Any]:
    """Ours by vLLM's names. Behind given tokens the seed is another one: else the same draws would come once more."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "seed": None if sampling.seed is None else (sampling.seed + num_given) % 2**63,
    }


def engine_arguments(limits: Mapping[str, float]) -> dict[str, int | float]:
    """vLLM's own arguments: counts whole, shares as they are."""
    whole = {name: int(value) for name, value in limits.items() if name != _MEMORY}
    return {**whole, _MEMORY: limits.get(_MEMORY, _MEMORY_SHARE)}


def start(
    path: Path,
    decode: Callable[[Sequence[int]], str],
    *,
    end_ids: frozenset[int],
    context_length: int,
    limits: Mapping[str, float] | None = None,
) -> VllmEngine:
    """Load a model directory in vLLM, with limits by its own names.

    Needs `pip install athanor-cluster[vllm]` and a GPU.
    """
    from functools import partial

    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=str(path),
        max_model_len=context_length,
        max_logprobs=MAX_TOP_LOGPROBS,
        load_format="safetensors",
        trust_remote_code=False,
        enable_prefix_caching=True,
        **engine_arguments(limits or {}),
    )
    make_params = partial(SamplingParams, output_kind=RequestOutputKind.DELTA)
    client = AsyncLLM.from_engine_args(arguments)
    return VllmEngine(client, make_params, decode, context_length=context_length, end_ids=end_ids, refusals=_refusals())


def _refusals() -> tuple[type[Exception], ...]:
    """ValueError at first; newer releases (0.33 is one) have a base of their own for errors of the client's side."""
    from vllm import exceptions

    base: type[Exception] = getattr(exceptions, "VLLMClientError", ValueError)
    return (ValueError, base)
