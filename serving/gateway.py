"""One request through the gateway: which revision answers it, and what happens when a replica dies over it.

A whole answer is asked for anew; a stream goes on behind the tokens that the client has. A canary that fails before
anything was sent is replaced by the stable revision, and the client sees nothing of it. Knows no HTTP server and no
Ray; `gateway_http.py` and `gateway_grpc.py` are the two ways in.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from serving.answers import DONE, event
from serving.backend import BackendRequest, Backends, Chunk, Head, Resume
from serving.errors import BackendFailed, DeadlineExceeded, Unavailable
from serving.failures import refusal, server_error
from serving.gateway_metrics import GatewayMetrics
from serving.live_outcomes import LiveOutcomes
from serving.mirroring import Mirroring, Outcome
from serving.routes import Backend, Route, choose, mirrored

MODEL_HEADER = "x-athanor-model"
_ATTEMPTS = 4
_DEATHS = 3
"""A request over which so many replicas died is offered to no other: it may be what kills them."""
_LITTLE_TIME_S = 60.0
"""Who gives a request less than this has nobody else to blame when it is not answered in time."""
_PAUSE_S = 0.1  # before the second attempt; twice as long before each further one
logger = logging.getLogger(__name__)
Item = Head | Chunk


@dataclass(frozen=True)
class Call:
    """A request and where it shall go."""

    route: Route
    request: BackendRequest
    key: str
    """Equal keys go to the same revision."""
    timeout_s: float
    pinned: Backend | None = None
    """The version that was asked for by its number."""


class Gateway:
    """Answers calls with the replicas behind `backends`."""

    def __init__(
        self,
        backends: Backends,
        metrics: GatewayMetrics,
        mirroring: Mirroring | None = None,
        live: LiveOutcomes | None = None,
        *,
        route: Callable[[str], Route | None],
    ) -> None:
        """`live` is told what canaries make of their users' requests; `route` knows each deployment as it is by now."""
        self._backends = backends
        self._metrics = metrics
        self._mirroring = mirroring
        self._live = live
        self._route = route

    async def answer(self, call: Call) -> AsyncGenerator[Item]:
        """A Head and Chunks. Unavailable or DeadlineExceeded, before the head alone."""
        progress = _Progress(time.monotonic(), time.monotonic() + call.timeout_s)
        call = replace(call, request=_settled(call.request))
        with self._metrics.request(call.route.name) as watched:
            try:
                async with aclosing(self._attempts(call, progress)) as items:
                    async for item in items:
                        watched.note(item, progress.backend)
                        yield item
            except (GeneratorExit, asyncio.CancelledError):
                progress.is_left = True
                raise
            finally:
                self._note_live(call, progress)
                took_s = time.monotonic() - progress.began_at
                logger.info("request %s: %s in %.3f s", call.request.request_id, progress.in_words(call), took_s)
        if self._mirroring and not progress.deaths and (revision := self._mirrored(call, progress)):
            asked = replace(call.request, deadline_s=call.timeout_s)
            self._mirroring.start(call.route, revision, asked, progress.outcome(time.monotonic()))

    async def _attempts(self, call: Call, progress: _Progress) -> AsyncGenerator[Item]:
        """One revision after the other until there is a whole answer."""
        for attempt in range(_ATTEMPTS):
            try:
                await self._pause(attempt, progress)
                if attempt and not progress.begun:
                    call = self._as_of_now(call)
                progress.backend = chosen = _next_backend(call, attempt, progress)
                async with aclosing(self._attempt(chosen, call, progress)) as items:
                    async for item in items:
                        yield item
                return
            except BackendFailed as error:
                if progress.complete:
                    return
                if not isinstance(error, _Full):
                    progress.broken.add(chosen)
                    self._metrics.failed(call.route.name, chosen)
                logger.warning("request %s: %s: %s", call.request.request_id, chosen.app, error)
                if progress.deaths >= _DEATHS:
                    break
            except TimeoutError as error:
                late = DeadlineExceeded(f"no complete answer within {call.timeout_s:g} s")
                if not progress.begun:
                    raise late from error
                yield Chunk(event(refusal(late)))
                return
        if not progress.begun:
            raise Unavailable(f"no replica of `{call.route.name}` could answer; try again in a moment")
        yield Chunk(event(server_error(call.request.request_id)))

    async def _attempt(self, backend: Backend, call: Call, progress: _Progress) -> AsyncGenerator[Item]:
        """From one replica. Its head is held back until something follows; what is no stream, until its end."""
        request = progress.resumed(call.request, time.monotonic())
        head: Head | None = None
        whole: list[Chunk] = []
        async with aclosing(self._backends.call(backend.app, request)) as items:
            while (item := await self._next(items, progress)) is not None:
                if isinstance(item, Head):
                    head = _marked(item, backend)
                    self._check(head, backend, call, progress)
                    continue
                whole.append(item)
                if head is not None and head.is_stream:
                    for ready in progress.taken(head, whole):
                        yield ready
                    whole.clear()
        if head is None:
            raise BackendFailed("a replica sent nothing")
        for ready in progress.taken(head, whole):
            yield ready
        progress.complete = progress.complete or not head.is_stream

    def _as_of_now(self, call: Call) -> Call:
        """With the deployment and the version as they live by now: either may have moved since the last attempt."""
        route = self._route(call.route.name) or Route(name=call.route.name, backends=())
        if call.pinned is None:
            return replace(call, route=route)
        return replace(call, route=route, pinned=_of_version(route, call.pinned.model))

    def _check(self, head: Head, backend: Backend, call: Call, progress: _Progress) -> None:
        """BackendFailed for an answer that another replica, or the stable revision, may give better."""
        broke = head.status >= 500 and head.status != 504 and progress.attempts < _ATTEMPTS
        full_canary = head.status == 429 and backend not in (call.route.stable, call.pinned)
        if full_canary:
            raise _Full(f"a replica answered {head.status}")
        if broke or (progress.begun and head.status != 200):
            raise BackendFailed(f"a replica answered {head.status}")

    async def _next(self, items: AsyncGenerator[Item], progress: _Progress) -> Item | None:
        async with asyncio.timeout(max(progress.ends_at - time.monotonic(), 0)):
            try:
                return await anext(items, None)
            except BackendFailed:
                progress.deaths += not progress.complete
                raise

    async def _pause(self, attempt: int, progress: _Progress) -> None:
        progress.attempts = attempt + 1
        if attempt:
            async with asyncio.timeout(max(progress.ends_at - time.monotonic(), 0)):
                await asyncio.sleep(_PAUSE_S * 2 ** (attempt - 1))

    def _note_live(self, call: Call, progress: _Progress) -> None:
        judge = call.route.judge_app
        if self._live is None or judge is None or call.pinned is not None:
            return
        canary = next((each for each in call.route.backends if each != call.route.stable), None)
        if canary is not None and (failed := progress.failed_by(canary, call.timeout_s)) is not None:
            self._live.note(judge, failed=failed)

    def _mirrored(self, call: Call, progress: _Progress) -> Backend | None:
        """The revision that is asked the same in the dark: only what the stable one answered well is compared."""
        answered = progress.head is not None and progress.head.status == 200 and progress.complete
        by_stable = progress.backend == call.route.stable and call.pinned is None
        return mirrored(call.route, call.request.request_id) if answered and by_stable else None


class _Full(BackendFailed):
    """A canary's queue is full: the stable revision answers, and nobody is to blame."""


@dataclass
class _Progress:
    """How far the answer has come that the client sees."""

    began_at: float
    ends_at: float
    backend: Backend | None = None
    head: Head | None = None
    attempts: int = 0
    deaths: int = 0
    """Attempts that ended without an answer, good or bad: the replica died or broke."""
    broken: set[Backend] = field(default_factory=set)
    """Revisions of which a replica died or broke."""
    is_left: bool = False
    """The client went before the end."""
    complete: bool = False
    token_ids: dict[int, tuple[int, ...]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    first_at: float | None = None

    @property
    def begun(self) -> bool:
        """Something was sent, so the status can no longer change."""
        return self.head is not None

    def taken(self, head: Head, chunks: Sequence[Chunk]) -> Iterator[Item]:
        """What of this goes to the client, noted as sent."""
        if self.head is None:
            self.head = head
            yield head
        for chunk in chunks:
            for index, ids in chunk.token_ids.items():
                self.token_ids[index] = self.token_ids.get(index, ()) + ids
            self.finished.update(chunk.finished)
            self.complete = chunk.data.endswith(DONE)
            if self.first_at is None and chunk.token_ids:
                self.first_at = time.monotonic()
            yield chunk

    def in_words(self, call: Call) -> str:
        """For the log: who answered, with what status, after how many attempts."""
        status = self.head.status if self.head else "no answer"
        return f"{status} by {self.backend.app if self.backend else call.route.name}, attempt {self.attempts}"

    def resumed(self, request: BackendRequest, now: float) -> BackendRequest:
        """What the next replica is asked: the rest, in the time that is left."""
        left_s = max(self.ends_at - now, 0.0)
        resume = Resume(dict(self.token_ids), frozenset(self.finished)) if self.begun else None
        return replace(request, deadline_s=left_s, resume=resume)

    def failed_by(self, canary: Backend, timeout_s: float) -> bool | None:
        """Whether the canary failed its user; None for a request that says nothing of it.

        Such are those of others; of clients that went, or gave little time; bad ones; and those that nobody answered.
        """
        if (self.is_left and not self.complete) or not (canary in self.broken or self.backend == canary):
            return None
        if self.backend != canary or (canary in self.broken and not self.begun):
            is_answered = self.complete and self.head is not None and self.head.status < 500
            return True if is_answered else None
        status = self.head.status if self.head is not None else 504
        if 400 <= status < 500:
            return None
        failed = canary in self.broken or status >= 500 or not self.complete
        is_late_alone = failed and canary not in self.broken and status in (200, 504)
        return None if is_late_alone and timeout_s < _LITTLE_TIME_S else failed

    def outcome(self, now: float) -> Outcome:
        assert self.backend is not None
        assert self.head is not None
        first_s = self.first_at - self.began_at if self.first_at is not None else None
        took_s = now - self.began_at
        return Outcome(self.backend, self.head.status, dict(self.token_ids), first_s, took_s, self.complete)


def _next_backend(call: Call, attempt: int, progress: _Progress) -> Backend:
    """Who is asked: whoever began to answer; else what was chosen, and from then on the stable revision."""
    if progress.begun and progress.backend is not None:
        return progress.backend
    if call.pinned is not None:
        return call.pinned
    if attempt and call.route.stable is not None:
        return call.route.stable
    try:
        return choose(call.route, call.key)
    except LookupError as error:
        raise Unavailable(f"`{call.route.name}` is not ready yet; try again in a moment") from error


def _of_version(route: Route, model: str) -> Backend:
    """Unavailable where that version lives no more."""
    living = [backend for backend in route.backends if backend.model == model]
    if living:
        return max(living, key=lambda backend: backend.weight)
    raise Unavailable(f"`{model}` of `{route.name}` is not there any more")


def _settled(request: BackendRequest) -> BackendRequest:
    """With all that an answer depends on, so that whoever answers, answers the same."""
    seed = secrets.randbits(63) if request.seed is None else request.seed
    return replace(request, seed=seed, created=request.created or int(time.time()))


def _marked(head: Head, backend: Backend) -> Head:
    """With the version that answers; without what concerns one connection."""
    kept = tuple((name, value) for name, value in head.headers if name not in _DROPPED)
    return Head(head.status, (*kept, (MODEL_HEADER, backend.model)))


_DROPPED: Sequence[str] = ("x-request-id", "connection", "transfer-encoding", "content-length", "date", "server")
