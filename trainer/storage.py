"""When the storage takes no more: which file, why, and how the job goes on, instead of an error number.

Only what the storage itself is to blame for becomes a StorageError; any other OSError stays as it is. No retry.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from trainer.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILED = {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENODEV}
_NUMBER_IN_WORDS = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")


def storage_error(error: OSError, place: Path) -> StorageError | None:
    """What it says of the storage, None if it is about something else; `place`: where, if the error does not know."""
    if error.errno not in _FULL | _FAILED:
        return None
    path, words = error.filename or place, error.strerror or error
    kept = "What was saved before is whole, and the next attempt goes on from there"
    if error.errno in _FULL:
        return StorageError("STORAGE_FULL", f"{path} cannot be written: {words}. {kept}; make room for it")
    return StorageError("STORAGE_FAILED", f"{path} cannot be used: {words}. {kept}; mend the storage first")


@contextmanager
def writing(final: Path, temporary: Path) -> Iterator[None]:
    """Around all that makes `final` by way of `temporary`, which does not stay to fill a full storage further."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        found = storage_error(_as_os_error(error), final)
        if found is None:
            raise
        raise found from error


def _as_os_error(error: OSError | SafetensorError) -> OSError:
    """safetensors and `shutil.copytree` tell the number of the system's error in their words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    found = _NUMBER_IN_WORDS.search(str(error))
    number = int(found.group(1) or found.group(2)) if found else None
    return OSError(number, os.strerror(number)) if number else OSError(str(error))
