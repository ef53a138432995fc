"""Bearer tokens: how one is made, read and believed, and the first one of an installation.

A token is `ath_<id>_<secret>`; the store holds the SHA-256 of the secret, which has 256 bits: nothing slower is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from cluster.errors import StoreUnavailable, Unauthenticated
from cluster.ids import new_token_id
from cluster.security.caller import Caller, Role
from cluster.store.store import Store
from cluster.store.token_rows import StoredToken
from trainer import atomic

log = structlog.get_logger(__name__)

FIRST_NAME = "admin"
_TEXT = re.compile(r"ath_([a-z2-9]{8})_([A-Za-z0-9_-]{43})")
_MINUTE_US = 60_000_000
_FRESH_S = 1.0
_MOST_CACHED = 1024


@dataclass(frozen=True)
class TokenText:
    """What a client sends, in its parts."""

    id: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> TokenText:
        return cls(new_token_id(), secrets.token_urlsafe(32))

    @classmethod
    def parse(cls, text: str) -> TokenText | None:
        """None for what is no token of ours."""
        found = _TEXT.fullmatch(text)
        return cls(*found.groups()) if found else None

    @property
    def sha256(self) -> str:
        """Of the secret, hex: what is stored."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def __str__(self) -> str:
        return f"ath_{self.id}_{self.secret}"


class Tokens:
    """Who a token stands for. A row is believed for a second; what this process revokes is forgotten at once."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, StoredToken]] = OrderedDict()

    def remembered(self, authorization: str) -> Caller | None:
        """The caller, where nothing has to be asked for; None where `ask` must be."""
        text = _text_of(authorization)
        read_at, token = self._known.get(text.id, (0.0, None))
        return self._caller(text, token) if token and self._clock() - read_at < _FRESH_S else None

    def ask(self, authorization: str) -> Caller:
        """The caller, as the store has it. Unauthenticated / NO_TOKEN, TOKEN_UNKNOWN, TOKEN_EXPIRED, TOKEN_REVOKED."""
        text = _text_of(authorization)
        token = self._store.find_token(text.id)
        if token is None:
            raise _unknown()
        caller = self._caller(text, token)
        self._note_use(token)
        self._known[text.id] = (self._clock(), token)
        if len(self._known) > _MOST_CACHED:
            self._known.popitem(last=False)
        return caller

    def forget(self, token_id: str) -> None:
        """Read its row again before it is believed again."""
        self._known.pop(token_id, None)

    def _caller(self, text: TokenText, token: StoredToken) -> Caller:
        """A wrong secret is told nothing about the token."""
        if not hmac.compare_digest(text.sha256, token.secret_sha256):
            raise _unknown()
        if token.revoke_time_us is not None:
            raise Unauthenticated("TOKEN_REVOKED", f"the token {token.name!r} was revoked; ask an admin for another")
        if token.expire_time_us is not None and token.expire_time_us <= self._store.wall_us():
            raise Unauthenticated("TOKEN_EXPIRED", f"the token {token.name!r} has expired; ask an admin for another")
        return Caller(token.name, Role[token.role], token.projects, token.id)

    def _note_use(self, token: StoredToken) -> None:
        """To the minute, so that a busy token costs one small write a minute. Not worth refusing a call for."""
        minute_us = self._store.now_us() // _MINUTE_US * _MINUTE_US
        if (token.last_use_time_us or 0) >= minute_us:
            return
        try:
            self._store.note_token_use(token.id, minute_us)
        except StoreUnavailable as error:
            log.warning("token.use_not_noted", token=token.id, error=str(error))


def _text_of(authorization: str) -> TokenText:
    scheme, _, text = authorization.partition(" ")
    if not authorization:
        hint = "log in with ATHANOR_TOKEN or ATHANOR_TOKEN_FILE; `athanor token create` makes tokens"
        raise Unauthenticated("NO_TOKEN", f"no token was sent; {hint}")
    found = TokenText.parse(text.strip()) if scheme.lower() == "bearer" else None
    if found is None:
        raise _unknown()
    return found


def _unknown() -> Unauthenticated:
    return Unauthenticated("TOKEN_UNKNOWN", "this control plane does not know the token that was sent; is it whole?")


def ensure_first_token(store: Store, path: Path) -> None:
    """See to it that some token may make others: without one, make it and leave its text in `path`, 0600.

    The file comes first: killed in between, the next start finds the text and stores what belongs to it.
    """
    if store.has_admin_token():
        return
    text = _written(store, path)
    if text is None:
        text = TokenText.new()
        atomic.write_text(path, f"{text}\n", mode=0o600)
    token = StoredToken(text.id, FIRST_NAME, text.sha256, Role.ADMIN.name, created_by="")
    if store.create_first_token(token):
        log.info("token.first", path=str(path), token=text.id)
    else:  # another control plane of this store was faster, and has its own file
        path.unlink(missing_ok=True)


def _written(store: Store, path: Path) -> TokenText | None:
    """What an earlier start wrote and did not live to store."""
    try:
        text = TokenText.parse(path.read_text().strip())
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return text if text and store.find_token(text.id) is None else None
