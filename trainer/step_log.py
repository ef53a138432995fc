"""A log of what happened in which step, as JSON Lines: its base, for the figures and the sample ids of a run.

A resumed run cuts off what an earlier attempt wrote past its checkpoint, so what belongs to a step is there once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trainer.atomic import write_text


class StepLog:
    """Appends lines that name their `step`; those of steps after `step` (and a torn last one) are dropped first."""

    def __init__(self, path: Path, *, step: int) -> None:
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        write_text(path, "".join(kept))
        self._path = path

    def write(self, line: Mapping[str, object]) -> None:
        """Flushed at once, so that a killed worker has told all it knew."""
        with self._path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
