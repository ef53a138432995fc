"""Compares a canary with the version that answers, on requests that both were asked: by the teacher, and by the clock.

Teacher and both students read the answer that the client got. What follows from the comparison is the control plane's
to decide. Knows neither Ray nor gRPC.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.backend import BackendRequest
from serving.divergence import agreement, mean_divergence
from serving.engine import Scored
from serving.errors import Overloaded, ServingError
from serving.mirroring import MirroredPair, Outcome

TEACHER_TOP = 16
STUDENT_TOP = 64
_OVERLOADED = 429
_MOST_TOKENS = 256
"""Of an answer, the first so many are compared."""
logger = logging.getLogger(__name__)


class Scorer(Protocol):
    """A model that says how likely it finds the tokens of a text."""

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored: ...


class Student(Scorer, Protocol):
    """A revision of the deployment."""

    async def prompt_ids(self, request: BackendRequest) -> tuple[int, ...]:
        """A request's prompt as this revision reads it; empty where it asks for no text."""


@dataclass(frozen=True)
class Finding:
    """What one pair has shown; the fields of `athanor.v1.Observation`. Latencies are seconds per token."""

    stable_divergence: float = 0.0
    canary_divergence: float = 0.0
    stable_agreement: float = 0.0
    canary_agreement: float = 0.0
    stable_latency_s: float = 0.0
    canary_latency_s: float = 0.0
    canary_failed: bool = False


class Judge:
    """Of one canary."""

    def __init__(self, teacher: Scorer, students: Callable[[str], Student]) -> None:
        """`students` gives the revision behind the name of an application."""
        self._teacher = teacher
        self._students = students

    async def compare(self, pair: MirroredPair) -> Finding | None:
        """None where there is nothing to compare, by no fault of the canary."""
        answer_ids = pair.stable.token_ids.get(0, ())[:_MOST_TOKENS]
        if not answer_ids or _failed(pair.stable) or pair.canary.status == _OVERLOADED:
            return None
        if _failed(pair.canary):
            return Finding(canary_failed=True)
        stable = self._students(pair.stable.backend.app)
        prompt_ids = await stable.prompt_ids(pair.request)
        if not prompt_ids:
            return None
        text, start = (*prompt_ids, *answer_ids), len(prompt_ids)
        taught = await self._teacher.score(text, start=start, top_k=TEACHER_TOP)
        known = await stable.score(text, start=start, top_k=STUDENT_TOP)
        if not (_is_sound(taught) and _is_sound(known)):
            logger.warning(
                "the teacher or %s gave no numbers for an answer; it is not compared", pair.stable.backend.app
            )
            return None
        try:
            new = await self._students(pair.canary.backend.app).score(text, start=start, top_k=STUDENT_TOP)
        except Overloaded:
            return None
        except ServingError as error:
            logger.warning("the canary could not read an answer: %s", error)
            return Finding(canary_failed=True)
        if not _is_sound(new):
            return Finding(canary_failed=True)
        return Finding(
            mean_divergence(taught.tokens, known.tokens),
            mean_divergence(taught.tokens, new.tokens),
            agreement(taught.tokens, known.tokens),
            agreement(taught.tokens, new.tokens),
            _per_token_s(pair.stable),
            _per_token_s(pair.canary),
        )


def _failed(outcome: Outcome) -> bool:
    """Answered with an error, with nothing, or not to the end."""
    return outcome.status != 200 or not outcome.complete or not any(outcome.token_ids.values())


def _is_sound(scored: Scored) -> bool:
    return all(math.isfinite(each.logprob) for each in scored.tokens)


def _per_token_s(outcome: Outcome) -> float:
    """Answers differ in length, and long ones are no worse."""
    return outcome.duration_s / max(sum(map(len, outcome.token_ids.values())), 1)
