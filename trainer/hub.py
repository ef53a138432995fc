"""Why something of transformers could not be loaded: because the job is wrong, or because the hub or a disk failed.

transformers says both by the same OSError; only the first is the job's fault, and the second is worth another attempt.
"""

from __future__ import annotations

import errno

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from trainer.errors import TrainerError, UserError

_NOT_THERE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES)
_SERVER_ERROR = 500


def unreadable(source: str, reason: str, words: str, error: Exception) -> TrainerError:
    """The error for `source`, of which transformers said `error`: UserError with `reason` where the job is wrong."""
    cause = error.__cause__
    if isinstance(cause, LocalEntryNotFoundError) or _is_failing(cause):
        return TrainerError("HUB_UNREACHABLE", f"the hub cannot be reached for {source}: {error}")
    if isinstance(error, OSError) and error.errno not in _NOT_THERE:
        return TrainerError("STORAGE_FAILED", f"{source} cannot be read now: {error}")
    return UserError(reason, f"{source} {words}: {error}")


def _is_failing(cause: BaseException | None) -> bool:
    return isinstance(cause, HfHubHTTPError) and cause.response.status_code >= _SERVER_ERROR
