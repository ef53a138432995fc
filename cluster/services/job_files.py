"""Files of a job's directory, opened for people: never one that lies elsewhere, whatever links the job left there."""

from __future__ import annotations

import os
from contextlib import suppress
from io import FileIO
from pathlib import Path

from cluster.settings import Settings

_BLOCK = 64 * 1024


def open_inside(settings: Settings, uid: str, path: Path) -> FileIO | None:
    """For reading, unbuffered; None when there is no such file in the directory of this job."""
    root = settings.job_dir(uid)
    with suppress(OSError):
        real = path.resolve(strict=True)
        if real.is_relative_to(root.resolve()) and real.is_file():
            return FileIO(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), closefd=True)
    return None


def last_lines_offset(file: FileIO, count: int) -> int:
    """Where the last `count` lines begin; one without an end counts as a line."""
    end = at = file.seek(0, os.SEEK_END)
    left = count
    while at > 0:
        size = min(_BLOCK, at)
        at -= size
        file.seek(at)
        block = file.read(size)
        if at + size == end and block.endswith(b"\n"):
            left += 1  # the end of the last line begins no other
        while (found := block.rfind(b"\n")) >= 0:
            left -= 1
            if left == 0:
                return at + found + 1
            block = block[:found]
    return 0
