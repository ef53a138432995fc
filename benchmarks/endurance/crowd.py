"""People who ask a deployment again and again, half of them for a stream, and note how each answer went."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

_TIMEOUT_S = 180.0
_REFUSED = (429, 503)
"""Not accepted: nothing of it was begun."""
_DONE = "[DONE]"
_PROMPT = "A student learns from its teacher, and the teacher"


@dataclass(frozen=True)
class Answer:
    """One request; times are seconds, since the beginning or of their own."""

    at_s: float
    latency_s: float
    version: str
    failure: str = ""
    """Empty: it was answered as asked."""
    is_refused: bool = False


@dataclass
class Crowd:
    """So many people at once, until told to stop."""

    url: str
    model: str
    num_people: int
    answers: list[Answer] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def now_s(self) -> float:
        return time.monotonic() - self._began

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._ask_on, args=(each,)) for each in range(self.num_people)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the answers that are under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, person: int) -> None:
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT_S, trust_env=False) as client:
            number = 0
            while not self._stop.is_set():
                number += 1
                self.answers.append(self._ask(client, f"person-{person}-{number // 20}", is_stream=number % 2 == 0))

    def _ask(self, client: httpx.Client, session: str, *, is_stream: bool) -> Answer:
        began, version, failure, is_refused = self.now_s(), "", "", False
        body = {"model": self.model, "prompt": _PROMPT, "max_tokens": 24, "temperature": 0.7, "stream": is_stream}
        try:
            with client.stream("POST", "/v1/completions", json=body, headers={"x-athanor-session": session}) as reply:
                version = reply.headers.get("x-athanor-model", "")
                text = reply.read().decode()
            is_refused = reply.status_code in _REFUSED
            failure = _failure(reply.status_code, text, is_stream=is_stream)
        except httpx.HTTPError as error:
            failure = repr(error)
        return Answer(began, self.now_s() - began, version, failure, is_refused)


def failures(answers: Sequence[Answer]) -> dict[str, int]:
    """Of requests that were accepted, by what went wrong."""
    return dict(Counter(each.failure[:120] for each in answers if each.failure and not each.is_refused))


def _failure(status: int, text: str, *, is_stream: bool) -> str:
    """What is wrong with an answer; empty for one that is whole."""
    if status != httpx.codes.OK:
        return f"{status} {text[:100]}"
    if is_stream:
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        events = [json.loads(line) for line in lines if line != _DONE]
        errors = [str(event["error"]) for event in events if "error" in event]
        ends = [choice["finish_reason"] for event in events for choice in event.get("choices", ())]
        is_whole = lines[-1:] == [_DONE] and any(ends) and not errors
        return "" if is_whole else f"broken stream: {(errors or [text[-60:]])[0]}"
    return "" if json.loads(text)["choices"][0]["finish_reason"] else "no end"
