from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from athanor.v1 import job_service_pb2, model_service_pb2, token_service_pb2
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert, update

from cluster.errors import DataLoss, StoreUnavailable
from cluster.security.audit import AuditLog, resource_of, verify
from cluster.store.audit_rows import Call, Wanted
from cluster.store.store import Store
from cluster.store.tables import audit

CALL = Call("ann", "ipv4:127.0.0.1:1", "athanor.v1.JobService/CancelJob", "bot-abcdefgh", "OK", "", "req-1")
COLUMNS = ("create_time_us", "actor", "peer", "method", "resource", "code", "reason", "request_id", "hash")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path / 'athanor.db'}")
    yield store
    store.close()


def filled(store: Store, count: int = 5) -> None:
    for number in range(count):
        store.append_audit([Call(**{**vars(CALL), "request_id": f"req-{number}"})])


def test_the_chain_fits_over_batches_and_its_head_is_the_last_hash(store: Store) -> None:
    assert verify(store.audit_in_order()) == (0, "0" * 64)
    entries = [entry for size in (1, 3, 2000) for entry in store.append_audit([CALL] * size)]
    assert [entry.number for entry in entries] == list(range(1, 2005))
    assert verify(store.audit_in_order()) == (2004, entries[-1].hash)


@pytest.mark.parametrize("column", COLUMNS)
def test_an_altered_entry_is_named(store: Store, column: str) -> None:
    filled(store)
    with store.database.write() as write:
        value = 7 if column == "create_time_us" else "x"
        write.connection.execute(update(audit).where(audit.c.number == 3).values({column: value}))
    with pytest.raises(DataLoss, match="entry 3 of the audit log is not what was written"):
        verify(store.audit_in_order())


@pytest.mark.parametrize("number", [1, 3])
def test_a_removed_entry_is_named(store: Store, number: int) -> None:
    filled(store)
    with store.database.write() as write:
        write.connection.execute(delete(audit).where(audit.c.number == number))
    with pytest.raises(DataLoss, match=f"entry {number} of the audit log is missing"):
        verify(store.audit_in_order())


def test_closing_the_gap_does_not_help(store: Store) -> None:
    filled(store)
    with store.database.write() as write:
        write.connection.execute(delete(audit).where(audit.c.number == 3))
        for number in (4, 5):
            write.connection.execute(update(audit).where(audit.c.number == number).values(number=number - 1))
    with pytest.raises(DataLoss, match="entry 3"):
        verify(store.audit_in_order())


def test_an_inserted_entry_is_named(store: Store) -> None:
    filled(store)
    with store.database.write() as write:
        row = {"number": 6, "create_time_us": 1, "hash": "ab" * 32, **vars(CALL)}
        write.connection.execute(insert(audit).values(**row))
    with pytest.raises(DataLoss, match="entry 6"):
        verify(store.audit_in_order())


def test_cutting_the_end_off_shows_only_in_a_head_that_was_kept(store: Store) -> None:
    filled(store)
    kept = verify(store.audit_in_order())
    with store.database.write() as write:
        write.connection.execute(delete(audit).where(audit.c.number == 5))
    number, head = verify(store.audit_in_order())
    assert (number, head) != kept
    assert number < kept[0]


@given(st.lists(st.text(max_size=3), min_size=2, max_size=2, unique=True))
def test_moving_text_between_fields_changes_the_hash(texts: list[str]) -> None:
    from cluster.store.audit_rows import StoredEntry

    one, two = texts
    seals = {
        StoredEntry(1, 1, Call(**{**vars(CALL), "actor": actor, "peer": peer}), "").seal("")
        for actor, peer in ((one, two), (two, one), (one + two, ""), ("", one + two))
    }
    assert len(seals) >= 2 + (one != "" and two != "")


async def test_calls_that_wait_together_share_a_transaction(store: Store) -> None:
    sizes: list[int] = []
    append = store.append_audit

    def counting(calls: list[Call]) -> list[object]:
        sizes.append(len(calls))
        return append(calls)  # type: ignore[return-value]

    store.append_audit = counting  # type: ignore[assignment, method-assign]
    log = AuditLog(store)
    await asyncio.gather(*(log.write(CALL) for _ in range(100)))
    assert sum(sizes) == 100
    assert len(sizes) < 10
    assert verify(store.audit_in_order())[0] == 100


async def test_whoever_waits_for_an_entry_that_cannot_be_written_is_told(store: Store) -> None:
    log, append = AuditLog(store), store.append_audit

    def failing(calls: object) -> list[object]:
        raise StoreUnavailable("STORE_UNAVAILABLE", "the disk is full")

    store.append_audit = failing  # type: ignore[assignment, method-assign]
    with pytest.raises(StoreUnavailable):
        await log.write(CALL)
    store.append_audit = append  # type: ignore[method-assign]
    await log.write(CALL)
    assert verify(store.audit_in_order())[0] == 1


async def test_a_flood_of_strangers_fills_no_disk_and_is_counted(store: Store) -> None:
    log = AuditLog(store)
    stranger = Call("", CALL.peer, CALL.method, "", "UNAUTHENTICATED", "NO_TOKEN", "req-1")
    for _ in range(1000):
        await log.write(stranger)
    await log.write(CALL)
    entries = store.audit_page(None, Wanted(), 1000)
    assert 20 < len(entries) < 40
    log._cheap._buckets.clear()
    await log.write(stranger)
    assert store.audit_page(None, Wanted(), 1)[0].call.resource == f"(and {1001 - len(entries)} refused calls more)"


def test_what_a_call_was_about_is_found_in_answer_or_request() -> None:
    made = token_service_pb2.CreateTokenResponse(secret="secret")
    made.token.id, made.token.name = "abcdefgh", "ann"
    assert resource_of(token_service_pb2.CreateTokenRequest(), made) == "abcdefgh"
    assert resource_of(job_service_pb2.CancelJobRequest(uid="bot\0-1"), None) == "bot-1"
    wish = job_service_pb2.CreateJobRequest()
    wish.job.name = "x" * 999
    assert resource_of(wish, None) == "x" * 200
    wish.job.name, wish.validate_only = "bot", True
    assert resource_of(wish, job_service_pb2.CreateJobResponse()) == "bot (validate_only)"
    assert resource_of(None, None) == ""


def test_an_alias_is_named_with_where_it_points_now() -> None:
    moved = model_service_pb2.SetAliasResponse(model_version=model_service_pb2.ModelVersion(name="bot", version=3))
    wish = model_service_pb2.SetAliasRequest(name="bot", alias="champion", version=3)
    assert resource_of(wish, moved) == "bot@champion -> 3"
    assert resource_of(wish, None) == "bot@champion"
    taken = model_service_pb2.DeleteAliasRequest(name="bot", alias="champion")
    assert resource_of(taken, model_service_pb2.DeleteAliasResponse()) == "bot@champion"
    made = model_service_pb2.CreateModelVersionResponse(model_version=moved.model_version)
    assert resource_of(model_service_pb2.CreateModelVersionRequest(name="bot"), made) == "bot@3"


def test_pages_may_be_narrowed_down(store: Store) -> None:
    store.append_audit([replace(CALL, actor=who, resource=what) for who in "ab" for what in ("x-1", "x-2", "x%")])
    first, *_, last = store.audit_page(None, Wanted(), 10)

    def numbers(**wanted: Any) -> list[int]:
        return [entry.number for entry in store.audit_page(None, Wanted(**wanted), 10)]

    assert numbers(resource="x-") == [5, 4, 2, 1]
    assert numbers(resource="x%", actor="a") == [3], "nothing is a wildcard"
    assert numbers(since_us=last.create_time_us) == [6, 5, 4, 3, 2, 1]
    assert numbers(since_us=first.create_time_us + 1) == []
