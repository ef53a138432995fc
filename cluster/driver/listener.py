"""A worker's voice: progress and events go to small files in the job's directory, which the driver reads and forwards.

Files, because they outlive the worker, cross nodes on the shared storage, and need no call that could fail. Nothing
here talks to the control plane.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.driver.attempt import Attempt
from trainer.atomic import write_json
from trainer.secrets import without_secrets
from trainer.time_left import TimeLeft

log = logging.getLogger(__name__)

_STAGES = {"student": "train"}
_SHORTEST_INTERVAL_S = 0.5


class WorkerListener:
    """Implements `trainer.listener.Listener` for one worker of the student group."""

    def __init__(self, attempt: Attempt, rank: int, *, clock: Callable[[], float] = time.time) -> None:
        self._rank = rank
        self._events_path = attempt.events_path(rank)
        self._pause_path = attempt.pause_path
        self._listening_path = attempt.listening_path
        self._is_listening = False
        self._progress_path = attempt.ctx.progress_path
        self._clock = clock
        self._stage = ""
        self._time_left = TimeLeft()
        self._written_at = 0.0

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None:
        """Kept at most twice a second, and always at the first and the last step of a stage; the first rank's alone."""
        now = self._clock()
        is_new = self._stage != stage
        if is_new:
            self._stage, self._time_left = stage, TimeLeft()
            self.log(f"{time.strftime('%H:%M:%S', time.localtime(now))} {stage}")
        self._time_left.done(step, now)
        if self._rank == 0 and math.isfinite(figures.get("loss", math.nan)):
            self.log(_line(stage, step, total, figures, now))
        if self._rank == 0 and (is_new or step == total or now - self._written_at >= _SHORTEST_INTERVAL_S):
            self._written_at = now
            figures.setdefault("eta_s", self._eta_s(total - step))
            write_json(self._progress_path, _document(stage, step, total, figures, now))

    def event(self, reason: str, message: str) -> None:
        self.log(f"{reason}: {message}")
        write_event(self._events_path, reason, message)

    def log(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def should_stop(self) -> bool:
        """When the job is to be paused: a checkpoint is written then. To cancel it, the driver ends its workers.

        The driver writes its word first and looks for ours second; here it is the other way, so one sees the other.
        """
        if not self._is_listening:
            self._listening_path.touch()
            self._is_listening = True
        return self._pause_path.exists()

    def _eta_s(self, steps_left: int) -> float:
        """Of a stage that does not say it itself."""
        seconds = self._time_left.seconds(steps_left)
        return math.nan if seconds is None else seconds


def _document(
    stage: str, step: int, total: int, figures: dict[str, float], now: float
) -> dict[str, str | float | None]:
    finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
    first_word = stage.split()[0]
    return {
        "stage": _STAGES.get(first_word, first_word),
        "step": step,
        "total_steps": total,
        "tokens": int(finite.get("tokens", 0)),
        "tokens_per_second": finite.get("tokens_per_second", 0.0),
        "loss": finite.get("loss"),
        "eta_s": finite.get("eta_s"),
        "update_time_us": int(now * 1e6),
    }


def _line(stage: str, step: int, total: int, figures: dict[str, float], now: float) -> str:
    """`12:30:01 student 20/2000  loss 1.234  5,678 tokens/s`: as often as the loop tells."""
    moment, speed = time.strftime("%H:%M:%S", time.localtime(now)), figures.get("tokens_per_second", 0.0)
    parts = [
        f"{moment} {stage} {step}/{total}",
        f"loss {figures['loss']:.4g}",
        f"{speed:,.0f} tokens/s" if speed else "",
    ]
    return "  ".join(part for part in parts if part)


def write_event(path: Path, reason: str, message: str) -> None:
    """One line for the job's history; the file is named `events-*.jsonl`, and has one writer."""
    with path.open("a") as file:
        file.write(json.dumps({"reason": reason, "message": without_secrets(message)}) + "\n")


class EventTail:
    """What the workers of an attempt wrote as events, each line once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._offsets: dict[Path, int] = {}
        self._unread: dict[Path, int] = {}

    def read(self) -> list[dict[str, str]]:
        """New whole lines; they come again until `confirm` says that they arrived."""
        events: list[dict[str, str]] = []
        for path in sorted(self._directory.glob("events-*.jsonl")):
            start = self._offsets.get(path, 0)
            lines = _whole_lines(path, start)
            end = start + sum(len(line) for line in lines)
            found = [event for line in lines if (event := _parsed(line))]
            # Lines that say nothing are passed by at once: there is nothing to confirm.
            (self._unread if found else self._offsets)[path] = end
            events.extend(found)
        return events

    def confirm(self) -> None:
        self._offsets.update(self._unread)
        self._unread.clear()


def _whole_lines(path: Path, start: int) -> list[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return [line for line in file if line.endswith(b"\n")]
    except OSError as error:
        log.warning("events cannot be read now: %s", error)
        return []


def _parsed(line: bytes) -> dict[str, str] | None:
    """None for what is no event: half a line of a worker that was killed, and another one after it."""
    try:
        event = json.loads(line)
        return {"reason": str(event["reason"]), "message": str(event["message"])}
    except (ValueError, KeyError, TypeError):
        return None
