"""A learner's figures as TensorBoard event files, beside the metrics.jsonl that they are made of.

What an earlier attempt wrote is thrown away and written anew from the lines that count, so that no step is there twice.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from trainer.step_log import StepLog

_PREFIX = "events.out.tfevents"
_NO_CURVES = frozenset({"step", "time"})


class Curves:
    """One event file in `directory`, with a point per figure and step. Flushed at once, as the step log is."""

    def __init__(self, directory: Path, lines: Iterable[Mapping[str, object]]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for earlier in directory.glob(f"{_PREFIX}*"):
            earlier.unlink()
        self._path = directory / f"{_PREFIX}.{int(time.time()):010}.athanor"
        self._record(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A TensorBoard that has read an earlier file forgets its points from this step on.
        self._record(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        for line in lines:
            self.write(line)

    def write(self, line: Mapping[str, object]) -> None:
        """A line of metrics.jsonl; figures within figures are named by their path: `terms/divergence`."""
        step, moment = line["step"], line.get("time")
        assert isinstance(step, int | float)
        values = [Summary.Value(tag=name, simple_value=value) for name, value in _figures(line)]
        wall_time = moment if isinstance(moment, int | float) else time.time()
        self._record(Event(wall_time=wall_time, step=int(step), summary=Summary(value=values)))

    def _record(self, event: Event) -> None:
        """Length and bytes, each with its checksum: a TFRecord."""
        body = event.SerializeToString()
        length = struct.pack("<Q", len(body))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, body)]
        record = b"".join((length, checks[0], body, checks[1]))
        with self._path.open("ab") as file:
            file.write(record)


class FigureLog(StepLog):
    """metrics.jsonl, and the same as curves in `tensorboard/` beside it."""

    def __init__(self, path: Path, *, step: int) -> None:
        super().__init__(path, step=step)
        self._curves = Curves(path.parent / "tensorboard", map(json.loads, path.read_text().splitlines()))

    def write(self, line: Mapping[str, object]) -> None:
        super().write(line)
        self._curves.write(line)


def _figures(line: Mapping[str, object], path: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{path}{name}/")
        elif isinstance(value, int | float) and not (path == "" and name in _NO_CURVES):
            yield f"{path}{name}", float(value)
