"""What the teacher wrote for the student to learn (sequence-level KD): one JSON line for each training prompt.

Lines are appended as they come, so a killed worker loses the line it was at and no other. A part may be read by any
later attempt, whatever its number of workers. Turning lines into samples is `prepare.finish_labels`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType


class LabelWriter:
    """Appends to one part; a torn last line of an earlier attempt is cut off first."""

    def __init__(self, path: Path, *, max_new_tokens: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._max_new_tokens = max_new_tokens
        self._file = path.open("ab")
        _cut_torn_line(path)

    def write(self, sample_id: int, completion_ids: Sequence[int]) -> None:
        """`completion_ids` without the end token; it was reached if there are fewer than `max_new_tokens`."""
        ended = len(completion_ids) < self._max_new_tokens
        line = {"sample_id": sample_id, "completion_ids": list(completion_ids), "ended": ended}
        self._file.write(json.dumps(line).encode() + b"\n")

    def flush(self) -> None:
        """Makes what was written durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._file.close()


def read_labels(labels_dir: Path) -> dict[int, tuple[list[int], bool]]:
    """sample_id -> (completion ids without the end token, whether the end was reached), from all parts."""
    found: dict[int, tuple[list[int], bool]] = {}
    for path in sorted(labels_dir.glob("part-*.jsonl")):
        for line in _whole_lines(path):
            record = json.loads(line)
            found.setdefault(record["sample_id"], (record["completion_ids"], record["ended"]))
    return found


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _cut_torn_line(path: Path) -> None:
    whole = sum(len(line) for line in _whole_lines(path))
    if whole < path.stat().st_size:
        os.truncate(path, whole)
