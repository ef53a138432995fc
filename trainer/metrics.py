"""The figures of a run, one JSON line per logged step: what the report draws and people watch.

A resumed run cuts off what an earlier attempt wrote past its checkpoint, so every step is there once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trainer.atomic import write_text


class MetricsLog:
    """Appends to `metrics.jsonl`; lines of steps after `step` (and a torn last one) are dropped first."""

    def __init__(self, path: Path, *, step: int) -> None:
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
        write_text(path, "".join(kept))
        self._path = path

    def write(self, figures: Mapping[str, object]) -> None:
        """Flushed at once, so that a killed worker has told all it knew."""
        with self._path.open("a") as file:
            file.write(json.dumps(figures, allow_nan=False) + "\n")


def _whole_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
