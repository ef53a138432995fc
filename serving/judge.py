"""Compares a canary with the version that answers, on requests that both were asked: by the teacher, and by the clock.

Teacher and both students read the answer that the client got, or the texts that it wants labels of. What follows from
the comparison is the control plane's to decide. Knows neither Ray nor gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from serving.backend import BackendRequest
from serving.divergence import agreement, label_agreement, label_divergence, mean_divergence
from serving.engine import Scored
from serving.errors import Overloaded, ServingError
from serving.mirroring import MirroredPair, Outcome

if TYPE_CHECKING:
    from serving.reading import Labels

TEACHER_TOP = 16
STUDENT_TOP = 64
_OVERLOADED = 429
_CLASSIFY = "/v1/classify"
_MOST_TOKENS = 256
"""Of an answer, the first so many are compared."""
Read = TypeVar("Read")
logger = logging.getLogger(__name__)


class LabelMeasure(Protocol):
    """Of the labels of one text."""

    def __call__(self, teacher: Mapping[str, float], student: Mapping[str, float], *, exclusive: bool) -> float: ...


class Reader(Protocol):
    """A model that says how likely it finds what it reads."""

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored: ...

    async def labels(self, request: BackendRequest) -> Labels: ...


class Student(Reader, Protocol):
    """A revision of the deployment."""

    async def prompt_ids(self, request: BackendRequest) -> tuple[int, ...]:
        """A request's prompt as this revision reads it; empty where it asks for no text."""


@dataclass(frozen=True)
class Finding:
    """What one pair, one request of the canary's own or one example has shown; the fields of `athanor.v1.Observation`.

    Latencies are seconds per token.
    """

    stable_divergence: float = 0.0
    canary_divergence: float = 0.0
    stable_agreement: float = 0.0
    canary_agreement: float = 0.0
    stable_latency_s: float = 0.0
    canary_latency_s: float = 0.0
    canary_failed: bool = False
    kind: Literal["MIRRORED", "LIVE", "TASK"] = "MIRRORED"
    stable_right: bool = False
    canary_right: bool = False
    task_index: int = 0
    task_size: int = 0


class Judge:
    """Of one canary."""

    def __init__(
        self,
        teacher: Reader,
        students: Callable[[str], Student],
        canary_app: str,
        *,
        at_once: int = 4,
        within_s: float = 60.0,
    ) -> None:
        """`students` gives the revision behind the name of an application.

        So many pairs are compared at once, each in so much time: a version that does not answer delays few others.
        """
        self._teacher = teacher
        self._students = students
        self._canary_app = canary_app
        self._places = asyncio.Semaphore(at_once)
        self._within_s = within_s

    async def compare(self, pair: MirroredPair) -> Finding | None:
        """None where there is nothing to compare, by no fault of the canary; so is a pair of another canary."""
        is_its_own = pair.canary.backend.app == self._canary_app
        if not is_its_own or not pair.stable.is_whole or pair.canary.status == _OVERLOADED:
            return None
        if pair.request.path.partition("?")[0] == _CLASSIFY:
            is_answered, compare = pair.canary.is_whole, self._compare_labels
        elif pair.stable.wrote:
            is_answered, compare = pair.canary.is_whole and pair.canary.wrote, self._compare_text
        else:
            return None
        return await self._in_time(compare, pair) if is_answered else Finding(canary_failed=True)

    async def _in_time(
        self, compare: Callable[[MirroredPair], Awaitable[Finding | None]], pair: MirroredPair
    ) -> Finding | None:
        try:
            async with self._places, asyncio.timeout(self._within_s):
                return await compare(pair)
        except TimeoutError:
            words = "request %s is not compared: it took more than %g s"
            logger.warning(words, pair.request.request_id, self._within_s)
            return None

    async def _compare_text(self, pair: MirroredPair) -> Finding | None:
        """All read the answer that the client got."""
        answer_ids = pair.stable.token_ids.get(0, ())[:_MOST_TOKENS]
        stable = self._students(pair.stable.backend.app)
        prompt_ids = await stable.prompt_ids(pair.request) if answer_ids else ()
        if not prompt_ids:
            return None
        text, start = (*prompt_ids, *answer_ids), len(prompt_ids)
        taught = await self._teacher.score(text, start=start, top_k=TEACHER_TOP)
        known = await stable.score(text, start=start, top_k=STUDENT_TOP)
        if not (_is_sound(taught) and _is_sound(known)):
            words = "request %s is not compared: the teacher or %s gave no numbers for its answer"
            logger.warning(words, pair.request.request_id, pair.stable.backend.app)
            return None
        canary = self._students(pair.canary.backend.app)
        new = await _of_canary(pair, canary.score(text, start=start, top_k=STUDENT_TOP))
        if isinstance(new, Overloaded):
            return None
        if new is None or not _is_sound(new):
            return Finding(canary_failed=True)
        return Finding(
            mean_divergence(taught.tokens, known.tokens),
            mean_divergence(taught.tokens, new.tokens),
            agreement(taught.tokens, known.tokens),
            agreement(taught.tokens, new.tokens),
            _per_token_s(pair.stable),
            _per_token_s(pair.canary),
        )

    async def _compare_labels(self, pair: MirroredPair) -> Finding | None:
        """All read the client's texts."""
        taught = await self._teacher.labels(pair.request)
        known = await self._students(pair.stable.backend.app).labels(pair.request)
        new = await _of_canary(pair, self._students(pair.canary.backend.app).labels(pair.request))
        if isinstance(new, Overloaded):
            return None
        if new is None:
            return Finding(canary_failed=True)
        return Finding(
            _mean(label_divergence, taught, known),
            _mean(label_divergence, taught, new),
            _mean(label_agreement, taught, known),
            _mean(label_agreement, taught, new),
            pair.stable.duration_s,
            pair.canary.duration_s,
        )


async def _of_canary(pair: MirroredPair, asked: Awaitable[Read]) -> Read | Overloaded | None:
    """None where it failed; that it is busy is no failure."""
    try:
        return await asked
    except Overloaded as error:
        return error
    except ServingError as error:
        logger.warning("request %s: the canary could not read its answer: %s", pair.request.request_id, error)
        return None


def _mean(measure: LabelMeasure, teacher: Labels, student: Labels) -> float:
    """Over the texts."""
    pairs = zip(teacher.texts, student.texts, strict=True)
    found = [measure(taught, known, exclusive=teacher.exclusive) for taught, known in pairs]
    return sum(found) / len(found)


def _is_sound(scored: Scored) -> bool:
    return all(math.isfinite(each.logprob) for each in scored.tokens)


def _per_token_s(outcome: Outcome) -> float:
    """Answers differ in length, and long ones are no worse."""
    return outcome.duration_s / max(sum(map(len, outcome.token_ids.values())), 1)
