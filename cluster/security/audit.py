"""The audit log: what is written of a call, when, and whether all that was written is still there.

An entry is durable before its call is answered. Calls that end together share one transaction. What anybody on the
network can bring about without end (no good token, too many calls) is written a few times a minute, with how many more
there were: else the log itself would fill the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import structlog

from cluster.errors import DataLoss
from cluster.security.limits import Rate
from cluster.store.audit_rows import FIRST_HASH, Call, StoredEntry
from cluster.store.store import Store
from cluster.together import Together
from cluster.wire import clean

log = structlog.get_logger(__name__)

_CHEAP = frozenset({"UNAUTHENTICATED", "RESOURCE_EXHAUSTED"})
"""Refused before anything was done: whoever is refused can ask again at once."""
_CHEAP_PER_S, _CHEAP_AT_ONCE = 0.2, 20.0
_RESOURCE_LENGTH = 200
# Where the name of what a call was about stands, in the answer or in the request; the first one that is there.
_IN_RESPONSE = ("job.uid", "token.id", "deployment.name", "project.name")
_IN_REQUEST = ("uid", "id", "reference", "project", "name", "job.name", "token.name", "deployment.name")


@dataclass
class Line:
    """What will be said of the call that is being handled, if it ends well.

    A handler that writes may write it in the same transaction, and leaves its entry here.
    """

    call: Call
    entry: StoredEntry | None = None


_LINE: ContextVar[Line | None] = ContextVar("athanor_audit_line", default=None)


def line() -> Line | None:
    """Of the call that is being handled; None: nothing is written of it."""
    return _LINE.get()


def begin_line(call: Call) -> Line:
    """From here to the end of this task, which is the call's own."""
    begun = Line(call)
    _LINE.set(begun)
    return begun


class AuditLog:
    """Writes entries, many at a time when many wait."""

    def __init__(self, store: Store) -> None:
        self._together: Together[Call, StoredEntry] = Together(lambda calls: store.append_audit(calls))
        self._cheap = Rate(_CHEAP_PER_S, _CHEAP_AT_ONCE)
        self._unwritten = 0

    async def write(self, call: Call) -> None:
        """Returns when it is durable; whatever the store raises when it is not."""
        if call.code in _CHEAP:
            if self._cheap.wait_s("") > 0.0:
                self._unwritten += 1
                return
            call, self._unwritten = replace(call, resource=_more(call.resource, self._unwritten)), 0
        self.written(await self._together.add(call))

    def written(self, entry: StoredEntry) -> None:
        """It is durable: the server's log has it too, so that the chain's head is known elsewhere."""
        log.info("audit.entry", number=entry.number, hash=entry.hash, **vars(entry.call))


def _more(resource: str, unwritten: int) -> str:
    return f"{resource} (and {unwritten} refused calls more)".strip() if unwritten else resource


def resource_of(request: Any, response: Any) -> str:
    """What a call was about: a uid, an id, a name; empty when neither message says it."""
    found = _version(request, response) or _named(response, _IN_RESPONSE) or _named(request, _IN_REQUEST)
    is_dry = bool(getattr(request, "validate_only", False))
    return clean(found, _RESOURCE_LENGTH) + (" (validate_only)" if is_dry else "")


def _version(request: Any, response: Any) -> str:
    """`bot@champion -> 3` of an alias, `bot@3` of a version."""
    name, alias, version = _at(request, "name"), _at(request, "alias"), _at(response, "model_version.version")
    if alias:
        return f"{name}@{alias} -> {version}" if version else f"{name}@{alias}"
    return f"{_at(response, 'model_version.name')}@{version}" if version else ""


def _named(message: Any, paths: Sequence[str]) -> str:
    return next(filter(None, (_at(message, path) for path in paths)), "")


def _at(message: Any, path: str) -> str:
    for name in path.split("."):
        if message is None or name not in message.DESCRIPTOR.fields_by_name:
            return ""
        message = getattr(message, name)
    return str(message)


def verify(entries: Iterable[StoredEntry]) -> tuple[int, str]:
    """How many entries there are, and the hash of the last; DataLoss / AUDIT_ALTERED names the first that does not fit.

    That the newest ones were taken away shows only to whoever kept a number and its hash from before.
    """
    number, head = 0, FIRST_HASH
    for entry in entries:
        if entry.number != number + 1:
            raise DataLoss("AUDIT_ALTERED", f"entry {number + 1} of the audit log is missing")
        if entry.seal(head) != entry.hash:
            raise DataLoss("AUDIT_ALTERED", f"entry {entry.number} of the audit log is not what was written")
        number, head = entry.number, entry.hash
    return number, head
