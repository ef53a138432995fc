"""AuditService: shows the audit log, and computes its chain anew. Entries are written in the interceptor."""

from __future__ import annotations

import asyncio

import grpc
from athanor.v1 import audit_service_pb2 as messages
from athanor.v1 import audit_service_pb2_grpc

from cluster.security.audit import verify
from cluster.services.pages import make_token, page_size, read_token
from cluster.store.audit_rows import StoredEntry, Wanted
from cluster.store.store import Store
from cluster.wire import clean, timestamp


class AuditService(audit_service_pb2_grpc.AuditServiceServicer):
    """Handlers only."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ListAuditEntries(
        self, request: messages.ListAuditEntriesRequest, context: grpc.ServicerContext
    ) -> messages.ListAuditEntriesResponse:
        del context
        since_us = request.since.ToMicroseconds() if request.HasField("since") else 0
        wanted = Wanted(clean(request.actor), clean(request.resource), since_us)
        size, question = page_size(request.page_size), ("audit", *map(str, vars(wanted).values()))
        cursor = read_token(request.page_token, question, [int])
        before = int(cursor[0]) if cursor else None
        found = await asyncio.to_thread(self._store.audit_page, before, wanted, size + 1)
        more = make_token([found[size - 1].number], question) if len(found) > size else ""
        return messages.ListAuditEntriesResponse(entries=map(_to_proto, found[:size]), next_page_token=more)

    async def VerifyAuditLog(
        self, request: messages.VerifyAuditLogRequest, context: grpc.ServicerContext
    ) -> messages.VerifyAuditLogResponse:
        del request, context
        num_entries, head = await asyncio.to_thread(lambda: verify(self._store.audit_in_order()))
        return messages.VerifyAuditLogResponse(num_entries=num_entries, head=head)


def _to_proto(entry: StoredEntry) -> messages.AuditEntry:
    return messages.AuditEntry(
        number=entry.number, create_time=timestamp(entry.create_time_us), hash=entry.hash, **vars(entry.call)
    )
