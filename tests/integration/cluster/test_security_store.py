"""Tokens and the audit log on both databases, with several control planes that write at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.security.audit import verify
from cluster.security.tokens import Tokens, ensure_first_token
from cluster.store.audit_rows import Call, Wanted
from cluster.store.store import Store

CALL = Call("ann", "ipv4:127.0.0.1:1", "athanor.v1.JobService/CancelJob", "Ω-bot", "OK", "", "req-1")


def test_two_writers_make_one_chain(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: stores[number % 2].append_audit([CALL] * (number % 3 + 1)), range(60)))
    assert verify(stores[0].audit_in_order())[0] == 120
    assert [entry.number for entry in stores[1].audit_page(None, Wanted("ann"), 1000)] == list(range(120, 0, -1))


def test_control_planes_that_start_together_leave_one_first_token(
    open_store: Callable[[], Store], tmp_path: Path
) -> None:
    stores = [open_store() for _ in range(4)]
    paths = [tmp_path / f"admin-token-{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ensure_first_token, stores, paths))
    [path] = [path for path in paths if path.exists()]
    [token] = stores[0].list_tokens()
    assert Tokens(stores[1]).ask(f"Bearer {path.read_text().strip()}").token_id == token.id
