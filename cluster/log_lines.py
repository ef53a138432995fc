"""Log lines on a stream that may be full. No line is worth an error to whoever was being served when it was written:
what cannot be written is counted, and told with the next line that can.
"""

from __future__ import annotations

import json
from typing import TextIO


class LogLines:
    """What structlog writes to: one line a call, and nobody else between (its loggers hold a lock)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._num_lost = 0

    def write(self, line: str) -> int:
        try:
            if self._num_lost:
                told = {"event": "log.lines_lost", "level": "warning", "lines": self._num_lost}
                self._stream.write(json.dumps(told) + "\n")
            self._stream.write(line)
            self._stream.flush()
            self._num_lost = 0
        except OSError:
            self._num_lost += 1
        return len(line)

    def flush(self) -> None:
        """Each line is, as it is written."""
