"""What the API asks of an engine, and what an engine tells: requests, streams of text, scores, load. No code runs here.

Implementations: `serving.batching` (any causal model of `transformers`), `serving.vllm_engine` (vLLM, an extra) and
`serving.pooling` (classification and embedding). This module loads neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]
EndReason = Literal["stop", "length", "cancelled", "timeout", "error"]
Task = Literal["generate", "classify", "embed"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one request draws its tokens. Temperature 0 is greedy.

    Penalties act on the logits before anything else: `repetition_penalty` on tokens of prompt and answer (arXiv
    1909.05858), `presence_penalty` and `frequency_penalty` on those of the answer (as OpenAI defines them). Then
    `logit_bias` is added, the guide's mask applied, the temperature divided by, and `top_k`, `top_p` (arXiv
    1904.09751) and `min_p` (arXiv 2407.01082) cut the distribution, in this order.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """The draw of token i depends on (seed, i) alone; without a seed every request draws anew."""
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


class Guide(Protocol):
    """Which tokens may come next, for constrained output. State of one answer; used by the engine's thread alone.

    A guide that raises fails its own request and no other.
    """

    @property
    def finished(self) -> bool:
        """Nothing may follow: the answer ends here, with `stop`."""

    def mask(self) -> NDArray[np.int32]:
        """Packed bits, as llguidance and xgrammar write them: token t may come where bit t % 32 of word t // 32 is set.

        End tokens are allowed where the text may end.
        """

    def advance(self, token_id: int) -> None:
        """This token came; also called for each of `given_ids`, but not for a token that ended the answer."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt as token ids, and how to go on from it."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    given_ids: tuple[int, ...] = ()
    """Tokens of the answer that the client has already: they count towards `max_tokens`, and the text goes on behind
    them exactly as if this engine had made them (for the same seed), but no delta repeats them."""
    logprobs: int | None = None
    """None: no log-probabilities; n: of each token, and of the n most likely ones."""
    guide: Guide | None = None
    deadline_s: float | None = None
    """From submission; then the stream raises DeadlineExceeded."""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probabilities under the model's own distribution: before penalties, bias, mask and temperature."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens, best first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added: text (may be empty), the tokens behind it, and on the last one why it ended."""

    text: str
    num_tokens: int
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token, where the request asked for them."""


class TokenStream(Protocol):
    """The answer to one request, an async iterator; closing it early frees its place in the batch."""

    def __aiter__(self) -> TokenStream: ...

    async def __anext__(self) -> Delta:
        """Raises EngineFailed, or DeadlineExceeded."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Scored:
    """The tokens of a text from `start` on, each given all before it."""

    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is. Cache in tokens."""

    running: int
    waiting: int
    kv_used: int = 0
    kv_total: int = 0


class Observer(Protocol):
    """Who counts. Called from the engine's thread, so it must be quick and must not raise. Seconds throughout."""

    def admitted(self, queued_s: float, prompt_tokens: int, reused_tokens: int) -> None:
        """A request got its place; that many tokens of its prompt need no computing."""

    def first_token(self, since_submitted_s: float) -> None: ...

    def inter_token(self, since_last_s: Sequence[float]) -> None:
        """Of one step: for each request that got a token and had one before."""

    def finished(self, reason: EndReason, output_tokens: int, since_submitted_s: float) -> None: ...

    def stepped(self, load: Load, prefilled_tokens: int, decoded_rows: int, step_s: float) -> None: ...


class Engine(Protocol):
    """Anything that continues prompts."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def load(self) -> Load: ...

    @property
    def is_healthy(self) -> bool:
        """Otherwise it answers nobody any more; it was closed, or another process must take its place."""

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Enqueue from a running event loop; raises Overloaded when too many wait."""

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
        """Log-probabilities of the tokens from `start` >= 1 on; raises Overloaded or EngineFailed."""

    def close(self) -> None:
        """End all work. Streams that are open fail."""


class PoolingEngine(Protocol):
    """A model that reads a whole text at once. Each text is token ids as the model expects them."""

    @property
    def context_length(self) -> int: ...

    @property
    def load(self) -> Load: ...

    @property
    def is_healthy(self) -> bool: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Of `classify`, in the order of its probabilities; empty where the model cannot classify."""

    @property
    def exclusive(self) -> bool:
        """One label is true of a text, so the probabilities of `classify` add up to 1."""

    async def classify(self, texts: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """One probability per label for each text: they add up to 1, or stand alone where labels exclude none."""

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """One vector for each text."""

    def close(self) -> None: ...
