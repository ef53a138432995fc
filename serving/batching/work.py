"""One request on its way: which tokens it has, how many of them the model has seen, and when it is over."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from serving.batching.prefixes import block_names
from serving.batching.streams import Outbox, Stream
from serving.detokenizer import AnswerText
from serving.engine import Delta, EndReason, FinishReason, GenerationRequest, Scored, TokenLogprob
from serving.errors import DeadlineExceeded, EngineFailed
from serving.sampling import Chooser, Chosen, logprobs

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Vocabulary:
    """What the engine must know of a model's tokens."""

    decode: Callable[[Sequence[int]], str]
    num_tokens: int
    end_ids: frozenset[int]
    device: torch.device | str = "cpu"


class Work(ABC):
    """Anything that takes a row. `tokens` is what the model shall see, `computed` how much of that it has seen."""

    stream: Stream[object]
    deadline: float | None = None
    """On the monotonic clock."""

    def __init__(self, tokens: Sequence[int], reserved: int, name: str) -> None:
        self.tokens = list(tokens)
        self.computed = 0
        self.reserved = reserved
        self.name = name
        self.names: list[bytes] = []
        """Of the blocks of the prompt, where it may begin as another one did."""
        self.sound = True
        """All that the row holds are numbers, as logits behind it have shown; else nobody may find it there."""
        self.submitted = time.monotonic()
        self.ended: EndReason | None = None

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.computed

    def next(self, num_tokens: int) -> Sequence[int]:
        """What the model sees next."""
        return self.tokens[self.computed : self.computed + num_tokens]

    def logits_wanted(self, num_tokens: int) -> int:  # noqa: ARG002
        """Of how many of the next tokens to be computed, counted from the last."""
        return 1

    @abstractmethod
    def begin(self, outbox: Outbox) -> None:
        """The request got its row."""

    def fail(self, outbox: Outbox, error: Exception, reason: EndReason = "error") -> None:
        """Tell the client; why is in the log alone."""
        if self.ended is None:
            self.ended = reason
            outbox.add(self.stream, error, last=True)

    def check(self, outbox: Outbox, now: float) -> None:
        """Is there still somebody who waits for this?"""
        if self.ended is None and self.stream.cancelled:
            self.ended = "cancelled"
        elif self.deadline is not None and now >= self.deadline:
            self.fail(outbox, DeadlineExceeded("the answer was not complete in the time allowed"), "timeout")


class Generation(Work):
    """A prompt that is continued: tokens become text, and the text goes to the stream."""

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary, wake: Callable[[], None]) -> None:
        tokens = (*request.prompt_ids, *request.given_ids)
        super().__init__(tokens, len(request.prompt_ids) + request.max_tokens, request.request_id)
        self.stream: Stream[Delta] = Stream(wake)  # type: ignore[assignment]
        self.names = block_names(tokens)
        self.last_token: float | None = None
        self.chooser: Chooser
        self._num_output = 0
        if request.deadline_s is not None:
            self.deadline = self.submitted + request.deadline_s
        self._request = request
        self._vocabulary = vocabulary
        self._text = AnswerText(request, vocabulary.decode, vocabulary.end_ids)

    @property
    def num_output(self) -> int:
        """Tokens that came here; what the client had already was counted where it was made."""
        return self._num_output

    def begin(self, outbox: Outbox) -> None:
        """Go in silence through what the client has already, which may turn out to have been all."""
        request, vocabulary = self._request, self._vocabulary
        self.chooser = Chooser(
            request.sampling,
            num_tokens=vocabulary.num_tokens,
            device=vocabulary.device,
            prompt_ids=request.prompt_ids,
            logprobs=request.logprobs,
            guide=request.guide,
        )
        for token in request.given_ids:
            if self.ended is None:
                reason = self._advance(token)[1]
                if reason is not None:
                    self._end(outbox, Delta("", 0, reason))

    def take(self, outbox: Outbox, chosen: Chosen) -> None:
        """The next token; the end token counts as one and has no text."""
        text, reason = self._advance(chosen.token)
        self.tokens.append(chosen.token)
        self._num_output += 1
        told = () if chosen.logprob is None else (chosen.logprob,)
        delta = Delta(text, 1, reason, (chosen.token,), told)
        if reason is None:
            outbox.add(self.stream, delta, last=False)
        else:
            self._end(outbox, delta)

    def _end(self, outbox: Outbox, delta: Delta) -> None:
        self.ended = delta.finish_reason
        outbox.add(self.stream, delta, last=True)

    def _advance(self, token: int) -> tuple[str, FinishReason | None]:
        guide = self.chooser.guide
        if token not in self._vocabulary.end_ids:
            self.chooser.advance(token)
        return self._text.push(token, complete=guide is not None and guide.finished)


class Scoring(Work):
    """A text whose tokens are given."""

    def __init__(self, tokens: Sequence[int], start: int, top_k: int, wake: Callable[[], None]) -> None:
        super().__init__(tokens, len(tokens), "score")
        self.stream: Stream[Scored] = Stream(wake)  # type: ignore[assignment]
        self._start = start
        self._top_k = top_k
        self._found: list[TokenLogprob] = []

    def begin(self, outbox: Outbox) -> None:
        """Nothing was given before."""

    def logits_wanted(self, num_tokens: int) -> int:
        return num_tokens

    def read(self, outbox: Outbox, logits_TV: Tensor) -> None:
        """Those of the tokens that were computed last: each speaks of the token behind it."""
        if not bool(logits_TV.amax(-1).isfinite().all()):  # of no numbers there is no greatest
            logger.error("the logits of a text to be scored are no numbers")
            self.fail(outbox, failed())
            return
        self.sound = True
        first = max(self.computed - len(logits_TV) + 1, self._start)
        targets = self.tokens[first : self.computed + 1]
        if targets:
            begin = len(logits_TV) - (self.computed + 1 - first)
            some_NV = logits_TV[begin : begin + len(targets)]
            self._found += logprobs(some_NV, targets, [self._top_k] * len(targets))
        if not self.remaining:
            self.ended = "stop"
            outbox.add(self.stream, Scored(tuple(self._found)), last=True)


def failed() -> EngineFailed:
    return EngineFailed("the engine could not finish this request")
