"""Everything this process and its workers print goes on to where stdout went, and into a file as well.

Works on the file descriptors, so that native code and Ray's forwarded worker output are caught too. Both streams become
one, in the order in which they were written, without the values of secrets.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path

from trainer.secrets import Redactor, known_here

_STREAMS = (1, 2)
_CHUNK = 64 * 1024


_children: list[subprocess.Popen[bytes]] = []


def copy_output(path: Path) -> None:
    """As `copied_output`, until this process ends: by a process beside it, which a crash's last words outlive.

    Where the file cannot be made, nothing is copied, and nothing else happens.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        reader, writer = os.pipe()
        try:
            _children.append(subprocess.Popen(_copier(path), stdin=reader, start_new_session=True))
            _redirect([writer, writer])
        finally:
            os.close(reader)
            os.close(writer)


def _copier(path: Path) -> list[str | Path]:
    """Where this node has no secrets, there is nothing to take out, and a smaller program will do."""
    if not known_here():
        return ["tee", "-a", "--", path]
    return [sys.executable, "-m", "cluster.driver.log_copier", path]


@contextmanager
def copied_output(path: Path) -> Iterator[None]:
    """Copies stdout and stderr to the end of `path`; when the block ends, all of it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    originals = [os.dup(number) for number in _STREAMS]
    copier = threading.Thread(target=_copy, args=(reader, os.dup(1), path), name="log-copier", daemon=True)
    _redirect([writer, writer])
    os.close(writer)
    copier.start()
    try:
        yield
    finally:
        _redirect(originals)
        for original in originals:
            os.close(original)
        copier.join(timeout=5.0)  # a child that inherited the pipe may keep it open


def _redirect(targets: list[int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    for number, target in zip(_STREAMS, targets, strict=True):
        os.dup2(target, number)


def _copy(reader: int, onward: int, path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        copy(reader, file, onward, Redactor())
    os.close(reader)
    os.close(onward)


def copy(reader: int, file: RawIOBase, onward: int, redactor: Redactor) -> None:
    """Until whoever writes is gone."""
    while chunk := os.read(reader, _CHUNK):
        _write(redactor.pass_on(chunk), file, onward)
    _write(redactor.rest(), file, onward)


def _write(data: bytes, file: RawIOBase, onward: int) -> None:
    with suppress(OSError):  # the disk is full, or whoever listened is gone: the attempt goes on
        file.write(data)
    with suppress(OSError):
        os.write(onward, data)
