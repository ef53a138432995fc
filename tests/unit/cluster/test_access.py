from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.access import Access, Contexts, find_access
from cluster.errors import InvalidInput, StartUpError
from cluster.home import ClusterRecord, Home

RECORD = ClusterRecord("127.0.0.1:50077", "127.0.0.1:6379", "http://127.0.0.1:8265", "http://127.0.0.1:8000", True)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"ATHANOR_HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}


@pytest.fixture
def home(environ: dict[str, str]) -> Home:
    home = Home.from_env(environ)
    home.create()
    home.admin_token_path.write_text("local-token\n")
    return home


def test_flags_come_before_environment_before_context_before_the_local_cluster(
    environ: dict[str, str], home: Home
) -> None:
    assert find_access(environ=environ) == Access(), "without a cluster of ours nothing is asked, and no token shown"
    home.write_record(RECORD)
    assert find_access(environ=environ).address == "127.0.0.1:50077"
    Contexts.load(environ).with_context("far", Access("far:1")).save()
    assert find_access(environ=environ).address == "far:1"
    environ["ATHANOR_ADDRESS"] = "farther:1"
    assert find_access(environ=environ).address == "farther:1"
    assert find_access(Access("farthest:1"), environ).address == "farthest:1"


def test_a_token_goes_only_to_the_address_it_is_for(environ: dict[str, str], home: Home) -> None:
    home.write_record(RECORD)
    assert find_access(environ=environ).secret == "local-token"
    assert find_access(Access("127.0.0.1:50077"), environ).secret == "local-token"
    assert find_access(Access("far:1"), environ).secret == ""
    Contexts.load(environ).with_context("far", Access("far:1", token="far-token", tls_ca="/ca.pem")).save()
    assert find_access(Access("far:1"), environ) == Access("far:1", token="far-token", tls_ca="/ca.pem")
    assert find_access(Access("127.0.0.1:50077"), environ).secret == "local-token"
    assert find_access(environ={**environ, "ATHANOR_TOKEN": "mine"}).secret == "mine"


def test_a_token_of_the_environment_replaces_the_file_of_the_context(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from a file")
    Contexts.load(environ).with_context("far", Access("far:1", token="x")).save()
    assert find_access(environ={**environ, "ATHANOR_TOKEN_FILE": str(tmp_path / "token")}).secret == "from a file"
    with pytest.raises(InvalidInput, match="nowhere"):
        _ = Access(token_file="/nowhere").secret


def test_whoever_names_an_address_needs_no_readable_record(environ: dict[str, str], home: Home) -> None:
    home.record_path.write_text("{")
    with pytest.raises(StartUpError):
        find_access(environ=environ)
    assert find_access(environ={**environ, "ATHANOR_ADDRESS": "far:1"}).address == "far:1"


def test_contexts_are_for_their_owner_alone_and_the_first_is_in_use(environ: dict[str, str]) -> None:
    contexts = Contexts.load(environ).with_context("a", Access("a:1", token="secret")).with_context("b", Access("b:1"))
    contexts.save()
    assert stat.S_IMODE(contexts.path.stat().st_mode) == 0o600
    assert Contexts.load(environ) == contexts
    assert contexts.in_use == "a"
    assert contexts.use("b").current == Access("b:1")
    assert contexts.use("").current is None
    with pytest.raises(InvalidInput, match="there are: a, b"):
        contexts.use("c")
    assert "secret" not in repr(contexts)


@pytest.mark.parametrize("text", ["{", "[1]", "contexts: {a: {nonsense: 1}}", "contexts: 3"])
def test_an_unreadable_file_is_named(environ: dict[str, str], text: str) -> None:
    path = Contexts.load(environ).path
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"config\.yaml cannot be read"):
        find_access(environ=environ)
