"""ATHANOR_HOME: private, and its record says the same after a round trip."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import StartUpError
from cluster.home import ClusterRecord, Home
from cluster.process import ProcessRef

RECORD = ClusterRecord(
    control_plane="127.0.0.1:50077",
    ray_address="127.0.0.1:6379",
    dashboard_url="http://127.0.0.1:8265",
    serve_url="http://127.0.0.1:8000",
    owns_ray=True,
    ray_token_path="/home/ada/.athanor/ray-token",
    temp_dir="/tmp/athanor-x",
    ray_process=ProcessRef(11, 1.5, "aa"),
    control_plane_process=ProcessRef(12, 2.5, "bb"),
)


def test_only_the_owner_looks_in(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    home.create()
    home.write_record(RECORD)
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.record_path.stat().st_mode) == 0o600


@pytest.mark.parametrize("record", [RECORD, replace(RECORD, control_plane="", control_plane_process=None)])
def test_the_record_comes_back(tmp_path: Path, record: ClusterRecord) -> None:
    home = Home(tmp_path)
    home.write_record(record)
    assert home.read_record() == record


def test_the_file_has_the_agreed_shape(tmp_path: Path) -> None:
    Home(tmp_path).write_record(RECORD)
    document = json.loads((tmp_path / "cluster.json").read_text())
    assert document["control_plane"] == "127.0.0.1:50077"
    assert document["pids"]["ray"] == {"pid": 11, "create_time": 1.5, "mark": "aa"}
    assert document["pids"]["control_plane"]["pid"] == 12
    assert document["owns_ray"] is True


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"control_plane": 3}', '{"pids": 3}'])
def test_an_unreadable_record_is_refused_with_the_mend(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    assert home.read_record() is None
    home.record_path.write_text(text)
    with pytest.raises(StartUpError, match=r"cluster\.json cannot be read .* delete it") as refused:
        home.read_record()
    assert refused.value.reason == "RECORD_UNREADABLE"
