"""The names that the control plane gives: job uids, Ray submission ids, request ids, lease tokens, ids of tokens."""

from __future__ import annotations

import hashlib
import re
import secrets
import string

# Without 0, 1: they are read as o and l.
_ALPHABET = string.ascii_lowercase + "23456789"
_SUFFIX_LENGTH = 8
_JOB_UID = re.compile(rf"[a-z][a-z0-9-]{{0,39}}-[{_ALPHABET}]{{{_SUFFIX_LENGTH}}}")


def _random_suffix(length: int) -> str:
    number, letters = secrets.randbelow(len(_ALPHABET) ** length), ""
    for _ in range(length):
        number, at = divmod(number, len(_ALPHABET))
        letters += _ALPHABET[at]
    return letters


def new_job_uid(name: str) -> str:
    """`<name>-<8 of a-z2-9>`."""
    return f"{name}-{_random_suffix(_SUFFIX_LENGTH)}"


def new_request_id() -> str:
    """The id under which one RPC is found in the log."""
    return f"req-{_random_suffix(12)}"


def ray_job_id(job_uid: str, attempt: int) -> str:
    """Ray's submission id of one attempt. Ray itself refuses a second job of the same id."""
    return f"{job_uid}-{attempt}"


def new_installation_id() -> str:
    """What tells the Ray jobs and the storage of one installation from those of another."""
    return f"ath-{_random_suffix(12)}"


def is_job_uid(text: str) -> bool:
    """Whether a name is of the form that `new_job_uid` gives."""
    return _JOB_UID.fullmatch(text) is not None


def new_token_id() -> str:
    """The public part of a bearer token."""
    return _random_suffix(_SUFFIX_LENGTH)


def new_lease_token() -> str:
    """The secret of one attempt: only its attempt.json holds it, the store holds its hash."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """What the store keeps of a lease token: SHA-256, hex."""
    return hashlib.sha256(token.encode()).hexdigest()
