from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.errors import StartUpError
from cluster.server import check_advertise
from cluster.settings import Settings, unknown_variables
from cluster.store.store import Store


def test_everything_lives_under_home_by_default() -> None:
    settings = Settings.from_env({"ATHANOR_HOME": "/srv/athanor"})
    assert settings.database_url == "sqlite:////srv/athanor/athanor.db"
    assert settings.storage == Path("/srv/athanor/storage")
    assert settings.listen == "127.0.0.1:50051"
    assert settings.store_kind == "sqlite"
    assert settings.job_dir("x-1") == Path("/srv/athanor/storage/jobs/x-1")
    assert settings.publish_dir("m", "x-1") == Path("/srv/athanor/storage/models/m/x-1")


def test_each_variable_is_read() -> None:
    settings = Settings.from_env(
        {
            "ATHANOR_DATABASE_URL": "postgresql+psycopg://a@b/c",
            "ATHANOR_STORAGE": "/data",
            "ATHANOR_LISTEN": "0.0.0.0:1",
            "ATHANOR_SERVE_PORT": "8001",
            "ATHANOR_MAX_RUNNING_JOBS": "4",
            "RAY_AUTH_TOKEN_PATH": "/run/token",
            "DS_ACCELERATOR": "cpu",
        }
    )
    assert (settings.store_kind, settings.storage, settings.serve_url) == (
        "postgresql",
        Path("/data"),
        "http://127.0.0.1:8001",
    )
    assert (settings.max_running_jobs, settings.token_file) == (4, Path("/run/token"))
    assert settings.driver_env == {"DS_ACCELERATOR": "cpu"}


def test_relative_paths_become_absolute() -> None:
    assert Settings.from_env({"ATHANOR_HOME": "here"}).home == Path.cwd() / "here"


def test_token_file_is_rays_own_place_only_in_token_mode() -> None:
    assert Settings.from_env({}).token_file is None
    assert Settings.from_env({"RAY_AUTH_MODE": "token"}).token_file == Path.home() / ".ray" / "auth_token"


def test_secrets_of_the_environment_do_not_reach_drivers() -> None:
    assert Settings.from_env({"HF_TOKEN": "secret", "ATHANOR_TOKEN": "secret"}).driver_env == {}


@pytest.mark.parametrize("name", ["ATHANOR_SERVE_PORT", "ATHANOR_MAX_RUNNING_JOBS", "ATHANOR_LEASE_S"])
def test_wrong_value_names_the_variable(name: str) -> None:
    with pytest.raises(StartUpError, match=name):
        Settings.from_env({name: "-1"})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().listen = "x:1"  # type: ignore[misc]


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_an_address_that_nobody_can_reach_needs_another_one(host: str) -> None:
    settings = Settings(listen=f"{host}:50051")
    with pytest.raises(StartUpError, match="ATHANOR_ADVERTISE"):
        check_advertise(settings)
    check_advertise(settings.model_copy(update={"advertise": "control-plane.example:50051"}))
    check_advertise(Settings())


def test_endpoints_that_listen_everywhere_are_shown_where_the_dashboard_is() -> None:
    environ = {"ATHANOR_SERVE_HOST": "0.0.0.0", "ATHANOR_RAY_DASHBOARD_URL": "http://ray-head.example:8265"}
    assert Settings.from_env(environ).serve_url == "http://ray-head.example:8000"


def test_tables_of_a_newer_release_are_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "athanor.db"
    Store.open(f"sqlite:///{path}").close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartUpError, match="newer than this release") as caught:
        Store.open(f"sqlite:///{path}")
    assert caught.value.reason == "STORE_IS_NEWER"


def test_a_wrong_value_is_told_by_its_variable_in_plain_words() -> None:
    with pytest.raises(StartUpError) as caught:
        Settings.from_env({"ATHANOR_SERVE_PORT": "99999", "ATHANOR_LEASE_S": "soon", "ATHANOR_AUTH": "tokens"})
    assert caught.value.reason == "INVALID_SETTINGS"
    assert {each.path: each.message for each in caught.value.violations} == {
        "ATHANOR_SERVE_PORT": "'99999' is too large; it must be at most 65535",
        "ATHANOR_LEASE_S": "'soon' is not a number; write for example 3.0e-4",
        "ATHANOR_AUTH": "'tokens' is not one of token, none; did you mean 'token'?",
    }


def test_a_variable_that_says_nothing_to_anybody_is_named_with_what_was_meant() -> None:
    known = dict.fromkeys(("ATHANOR_LISTEN", "ATHANOR_TOKEN", "ATHANOR_SECRET_HUB", "PATH"), "x")
    assert unknown_variables(known) == {}
    assert unknown_variables({**known, "ATHANOR_LISTN": "x", "ATHANOR_Q": ""}) == {
        "ATHANOR_LISTN": "; did you mean 'ATHANOR_LISTEN'?",
        "ATHANOR_Q": unknown_variables({"ATHANOR_Q": ""})["ATHANOR_Q"],
    }


def test_every_variable_of_ours_in_the_code_is_known() -> None:
    root = Path(__file__).parents[3]
    texts = [path.read_text() for name in ("cluster", "trainer") for path in (root / name).rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"\"(ATHANOR_[A-Z_]*[A-Z])\"", text)}
    assert len(named) > 20
    assert unknown_variables(dict.fromkeys(named, "x")) == {}
