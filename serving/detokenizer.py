"""Token ids to text, piece by piece: never half a character, never past a stop string, and where an answer ends.

What has been handed out is never taken back, and all pieces together are what the whole sequence decodes to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from serving.engine import FinishReason, GenerationRequest

Decode = Callable[[Sequence[int]], str]
_REMEMBERED = 1 << 15
_INCOMPLETE = "\ufffd"  # what decoders put where bytes do not (yet) make a character


def remembering(decode: Decode) -> Decode:
    """The same, for many answers of one tokenizer: what one or two tokens say is asked for again and again."""

    @lru_cache(_REMEMBERED)
    def known(ids: tuple[int, ...]) -> str:
        return decode(ids)

    return lambda ids: known(tuple(ids)) if len(ids) <= 2 else decode(ids)


class Detokenizer:
    """Text of a growing sequence. Decodes a short window of it: the tokens since the last whole character, and the
    ones just before as context, since a decoder may write a token differently at the start of a text."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._settled = 0  # tokens of the window that are context
        self._given = ""  # text of the window that was handed out

    def push(self, token: int) -> str:
        """The text that became certain with this token, often none."""
        self._window.append(token)
        text = self._decode(self._window)
        piece = self._advance(text.rstrip(_INCOMPLETE))
        if self._given == text:
            self._settle()
        return piece

    def finish(self) -> str:
        """What was held back: bytes that never became a character."""
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        if not text.startswith(self._given):
            return ""
        piece = text[len(self._given) :]
        self._given = text
        return piece

    def _settle(self) -> None:
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._given = self._decode(self._window)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that may be handed out, and whether a stop string came right after it."""

    text: str
    stopped: bool


class StopStrings:
    """Cuts a stream of text before the first stop string, also when that arrives in parts."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> Piece:
        """Hand out all that cannot be the beginning of a stop string."""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return Piece(text[: min(found)], stopped=True)
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return Piece(text[: len(text) - keep], stopped=False)

    def finish(self) -> str:
        """What was held back in case more would come."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """The text of one answer. What it gives depends on the tokens alone, so an answer that is begun anew with the same
    tokens goes on as it would have."""

    def __init__(self, request: GenerationRequest, decode: Decode, end_ids: frozenset[int]) -> None:
        self.num_tokens = 0
        self._most = request.max_tokens
        self._end_ids = end_ids
        self._detokenizer = Detokenizer(decode)
        self._stops = StopStrings(request.stop)

    def push(self, token: int, *, complete: bool = False) -> tuple[str, FinishReason | None]:
        """The text that became certain, and whether the answer ends here: by a stop string, an end token, which counts
        as one and has no text, because it is `complete`, or because it may have no more tokens."""
        self.num_tokens += 1
        ended = token in self._end_ids
        stopped = ended or complete
        last = stopped or self.num_tokens >= self._most
        text = "" if ended else self._detokenizer.push(token)
        piece = self._stops.push(text + self._detokenizer.finish() if last else text)
        if piece.stopped:
            return piece.text, "stop"
        if last:
            return piece.text + self._stops.finish(), "stop" if stopped else "length"
        return piece.text, None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
