"""Log lines where nothing can be written for a while."""

from __future__ import annotations

import errno
import io
import json

from cluster.log_lines import LogLines


class Disk(io.StringIO):
    """Full whenever it is told so."""

    is_full = False

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_full_disk_costs_lines_and_says_how_many() -> None:
    disk = Disk()
    lines = LogLines(disk)
    for text, disk.is_full in (("a", False), ("b", True), ("c", True), ("d", False), ("e", False)):
        lines.write(f"{text}\n")
    a, lost, d, e = disk.getvalue().splitlines()
    assert (a, d, e) == ("a", "d", "e")
    assert json.loads(lost) == {"event": "log.lines_lost", "level": "warning", "lines": 2}
