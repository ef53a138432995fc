from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.errors import AlreadyExists, NotFound, Unauthenticated
from cluster.security.caller import Role
from cluster.security.tokens import Tokens, TokenText, ensure_first_token
from cluster.store.store import Store
from cluster.store.token_rows import StoredToken


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path / 'athanor.db'}", clock)
    yield store
    store.close()


def made(store: Store, **fields: object) -> TokenText:
    text = TokenText.new()
    values = {"name": "ann", "role": "SUBMITTER", "projects": ("care",), **fields}
    store.create_token(StoredToken(text.id, secret_sha256=text.sha256, **values))  # type: ignore[arg-type]
    return text


def refusal(tokens: Tokens, sent: str) -> str:
    with pytest.raises(Unauthenticated) as refused:
        _ = tokens.remembered(sent) or tokens.ask(sent)
    return refused.value.reason


def test_a_token_stands_for_its_name_role_and_projects(store: Store, clock: Clock) -> None:
    text = made(store)
    tokens = Tokens(store, clock)
    assert tokens.remembered(f"Bearer {text}") is None
    caller = tokens.ask(f"Bearer {text}")
    assert (caller.name, caller.role, caller.projects, caller.token_id) == ("ann", Role.SUBMITTER, ("care",), text.id)
    assert tokens.remembered(f"bearer {text}") == caller


def test_the_secret_is_stored_nowhere(store: Store, tmp_path: Path) -> None:
    text = made(store)
    assert len(text.secret) == 43
    files = b"".join(path.read_bytes() for path in tmp_path.glob("athanor.db*"))
    assert text.secret.encode() not in files
    assert text.sha256.encode() in files
    assert text.secret not in repr(text)


@pytest.mark.parametrize("sent", ["Bearer x", "Basic YTpi", "Bearer ath_aaaaaaaa_short", "Bearer "])
def test_what_is_no_token_is_unknown(store: Store, clock: Clock, sent: str) -> None:
    assert refusal(Tokens(store, clock), sent) == "TOKEN_UNKNOWN"


def test_each_refusal_has_its_reason_and_a_wrong_secret_learns_nothing(store: Store, clock: Clock) -> None:
    tokens = Tokens(store, clock)
    assert refusal(tokens, "") == "NO_TOKEN"
    text = made(store, expire_time_us=int((clock.now + 60) * 1e6))
    forged = TokenText(text.id, TokenText.new().secret)
    assert refusal(tokens, f"Bearer {forged}") == refusal(tokens, f"Bearer {TokenText.new()}") == "TOKEN_UNKNOWN"
    tokens.ask(f"Bearer {text}")
    assert refusal(tokens, f"Bearer {forged}") == "TOKEN_UNKNOWN"
    clock.now += 61
    assert refusal(tokens, f"Bearer {text}") == "TOKEN_EXPIRED"
    store.revoke_token(text.id)
    assert refusal(tokens, f"Bearer {text}") == "TOKEN_REVOKED"
    assert refusal(tokens, f"Bearer {forged}") == "TOKEN_UNKNOWN"


def test_an_expired_token_is_refused_from_memory_too(store: Store) -> None:
    text = made(store, expire_time_us=int(1_000_000.5e6))
    tokens = Tokens(store, lambda: 0.0)
    tokens.ask(f"Bearer {text}")
    store.database._wall = lambda: 1_000_001.0
    assert refusal(tokens, f"Bearer {text}") == "TOKEN_EXPIRED"


def test_a_revoked_token_is_out_at_once_here_and_within_a_second_elsewhere(store: Store, clock: Clock) -> None:
    text = made(store)
    here, elsewhere = Tokens(store, clock), Tokens(store, clock)
    for tokens in (here, elsewhere):
        tokens.ask(f"Bearer {text}")
    store.revoke_token(text.id)
    here.forget(text.id)
    assert refusal(here, f"Bearer {text}") == "TOKEN_REVOKED"
    clock.now += 1.0
    assert refusal(elsewhere, f"Bearer {text}") == "TOKEN_REVOKED"


def test_use_is_noted_to_the_minute(store: Store, clock: Clock) -> None:
    text, tokens = made(store), Tokens(store, clock)
    seen = set()
    for _ in range(12):
        tokens.ask(f"Bearer {text}")
        clock.now += 10
        token = store.find_token(text.id)
        assert token is not None
        seen.add(token.last_use_time_us)
    assert len(seen) == 3
    assert all(time_us is not None and time_us % 60_000_000 == 0 for time_us in seen)


def test_one_name_is_one_token_in_use(store: Store) -> None:
    text = made(store)
    with pytest.raises(AlreadyExists, match=text.id):
        made(store)
    first = store.revoke_token(text.id)
    assert store.revoke_token(text.id) == first
    made(store)
    with pytest.raises(NotFound):
        store.revoke_token("nonesuch")


def test_the_first_token_is_there_once_and_for_its_owner_alone(store: Store, tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "admin-token"
    ensure_first_token(store, path)
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Tokens(store, clock).ask(f"Bearer {text.strip()}").role is Role.ADMIN
    ensure_first_token(store, path)
    assert path.read_text() == text
    assert len(store.list_tokens()) == 1


def test_killed_between_file_and_row_the_file_still_lets_in(store: Store, tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "admin-token"
    path.write_text(f"{TokenText.new()}\n")
    text = path.read_text()
    ensure_first_token(store, path)
    assert path.read_text() == text
    assert Tokens(store, clock).ask(f"Bearer {text.strip()}").role is Role.ADMIN


def test_without_a_usable_admin_token_the_next_start_makes_one(store: Store, tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "admin-token"
    ensure_first_token(store, path)
    store.revoke_token(store.list_tokens()[0].id)
    old = path.read_text()
    ensure_first_token(store, path)
    assert path.read_text() != old
    assert Tokens(store, clock).ask(f"Bearer {path.read_text().strip()}").role is Role.ADMIN


def test_of_two_first_tokens_one_counts_and_the_other_file_goes(store: Store, tmp_path: Path) -> None:
    """Two control planes of one store that start together: the slower one finds that a token is there by now."""

    class Slower:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def has_admin_token(self) -> bool:
            return False

    ensure_first_token(store, tmp_path / "faster")
    ensure_first_token(Slower(), tmp_path / "slower")  # type: ignore[arg-type]
    assert (tmp_path / "faster").exists()
    assert not (tmp_path / "slower").exists()
    assert len(store.list_tokens()) == 1
