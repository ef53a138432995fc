"""`athanor token`, `audit` and `context` against a real control plane."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import Result
from control_plane import ControlPlane
from sqlalchemy import delete
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.errors import ClusterError
from cluster.rpc import RequestFailed
from cluster.store.store import Store
from cluster.store.tables import audit


@pytest.fixture(autouse=True)
def _the_server_is_silent() -> Iterator[None]:
    """It runs in this process, whose stdout the command's is for a while."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    yield
    structlog.reset_defaults()


Athanor = Callable[..., Awaitable[Result]]


@pytest.fixture
def athanor(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Athanor:
    """Runs a command as somebody who knows address and admin token from the environment."""
    for name in ("ATHANOR_TOKEN", "ATHANOR_TLS_CA", "ATHANOR_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ATHANOR_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("ATHANOR_ADDRESS", plane.address)
    monkeypatch.setenv("ATHANOR_TOKEN_FILE", str(plane.settings.admin_token_path))

    async def run(*words: str, stdin: str = "") -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, words, input=stdin)

    return run


def reason(result: Result) -> str:
    assert isinstance(result.exception, ClusterError), result.output
    return result.exception.reason


async def test_a_token_lives_from_create_to_revoke(
    athanor: Athanor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "ci.token"
    made = await athanor(
        "token", "create", "ci", "--role", "viewer", "--project", "care", "--ttl", "2h", "--file", str(path)
    )
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().strip() not in made.output
    monkeypatch.setenv("ATHANOR_TOKEN_FILE", str(path))
    who = json.loads((await athanor("token", "whoami", "-o", "json")).stdout)
    assert (who["name"], who["role"], who["projects"]) == ("ci", "ROLE_VIEWER", ["care"])
    refused = await athanor("token", "list")
    assert reason(refused) == "ROLE_TOO_LOW"
    assert isinstance(refused.exception, RequestFailed)
    monkeypatch.setenv("ATHANOR_TOKEN", (tmp_path / "admin-token").read_text().strip())
    assert "until 20" in (await athanor("token", "list")).stdout
    assert (await athanor("token", "revoke", who["id"])).exit_code == 0
    assert "revoked" in (await athanor("token", "list")).stdout
    monkeypatch.delenv("ATHANOR_TOKEN")
    assert reason(await athanor("token", "whoami")) == "TOKEN_REVOKED"


async def test_a_token_on_stdout_is_nothing_but_the_token(athanor: Athanor) -> None:
    made = await athanor("token", "create", "ann")
    assert made.stdout.startswith("ath_")
    assert len(made.stdout.split()) == 1
    assert (await athanor("token", "create", "ann", "--role", "king")).exit_code == 2
    assert (await athanor("token", "create", "ann", "--ttl", "soon")).exit_code == 2
    assert reason(await athanor("token", "create", "ann")) == "TOKEN_NAME_TAKEN"
    assert "(ann) is revoked" in (await athanor("token", "revoke", "ann")).output
    assert reason(await athanor("token", "revoke", "ann")) == "TOKEN_NOT_FOUND", "its name is free again"


async def test_a_kept_head_shows_that_the_end_was_cut_off(athanor: Athanor, plane: ControlPlane) -> None:
    for name in ("a", "b"):
        await athanor("token", "create", name)
    head = (await athanor("audit", "verify")).stdout.strip()
    assert head.startswith("2:")
    assert (await athanor("audit", "verify", "--kept", head)).exit_code == 0
    await athanor("token", "create", "c")
    assert (await athanor("audit", "verify", "--kept", head)).exit_code == 0
    listed = json.loads((await athanor("audit", "list", "--actor", "admin", "-o", "json")).stdout)
    assert [entry["number"] for entry in listed] == ["3", "2", "1"]
    assert "CreateToken" in (await athanor("audit", "list", "--since", "1h")).stdout
    about = json.loads((await athanor("audit", "list", "--resource", listed[0]["resource"], "-o", "json")).stdout)
    assert [entry["number"] for entry in about] == ["3"]
    assert (await athanor("audit", "list", "--since", "2000-01-01T00:00:00Z", "-o", "name")).stdout.split() == list(
        "321"
    )
    assert json.loads((await athanor("audit", "list", "--since", "2100-01-01", "-o", "json")).stdout) == []
    assert (await athanor("audit", "list", "--since", "yesterday")).exit_code == 2
    store = Store.open(plane.settings.database_url)
    with store.database.write() as write:
        write.connection.execute(delete(audit).where(audit.c.number >= 2))
    store.close()
    assert (await athanor("audit", "verify")).exit_code == 0, "the rest still fits"
    cut = await athanor("audit", "verify", "--kept", head)
    assert cut.exit_code == 1
    assert "AUDIT_ALTERED" in cut.output
    assert (await athanor("audit", "verify", "--kept", "nonsense")).exit_code == 2


async def test_an_altered_log_is_an_error(athanor: Athanor, plane: ControlPlane) -> None:
    for name in ("a", "b"):
        await athanor("token", "create", name)
    store = Store.open(plane.settings.database_url)
    with store.database.write() as write:
        write.connection.execute(delete(audit).where(audit.c.number == 1))
    store.close()
    assert reason(await athanor("audit", "verify")) == "AUDIT_ALTERED"


async def test_contexts_carry_address_and_token(
    athanor: Athanor, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATHANOR_ADDRESS")
    monkeypatch.delenv("ATHANOR_TOKEN_FILE")
    made = await athanor(
        "context", "set", "here", "--address", plane.address, "--token-stdin", stdin=f"{plane.token}\n"
    )
    assert made.exit_code == 0, made.output
    assert json.loads((await athanor("token", "whoami", "-o", "json")).stdout)["name"] == "admin"
    await athanor("context", "set", "there", "--address", "there.example:1", "--tls-ca", "ca.pem", "--project", "care")
    assert "there.example:1" in (await athanor("context", "list")).stdout
    shown = await athanor("context", "show", "-o", "json")
    assert json.loads(shown.stdout)["address"] == plane.address
    assert plane.token.split("_", 2)[2] not in shown.output
    there = json.loads((await athanor("context", "show", "there", "-o", "json")).stdout)
    assert there["tls_ca"] == str(Path.cwd() / "ca.pem")
    await athanor("context", "use", "there")
    assert json.loads((await athanor("context", "show", "-o", "json")).stdout)["project"] == "care"
    assert (await athanor("context", "delete", "there")).exit_code == 0
    assert reason(await athanor("context", "use", "there")) == "CONTEXT_NOT_FOUND"
    assert (await athanor("context", "set", "nowhere")).exit_code == 2
    assert (await athanor("context", "set", "no where", "--address", "a:1")).exit_code == 2
    for address in ("a", "a:", "a:b", "a:0", "a:99999", "http://a:1", "a b:1"):
        assert reason(await athanor("context", "set", "nowhere", "--address", address)) == "INVALID_ADDRESS"
