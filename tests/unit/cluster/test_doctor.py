"""The doctor finds what is wrong with a machine, and for everything that is wrong it says what to do."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import doctor
from cluster.doctor import Finding, Status, examine, is_fit
from cluster.home import ClusterRecord, Home

GIB = 1024**3
Memory = namedtuple("Memory", "total available")


def finding(home: Home, name: str) -> Finding:
    return next(each for each in examine(home) if each.name == name)


def test_everything_that_is_not_ok_says_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "no-such-package"))
    findings = examine(Home(tmp_path))
    assert all(each.mend for each in findings if each.status is not Status.OK)
    assert not is_fit(findings)
    assert finding(Home(tmp_path), "packages").message == "not installed: no-such-package"


def test_only_ports_of_the_cluster_itself_are_called_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "is_free", lambda address: False)
    home = Home(tmp_path)
    assert finding(home, "ports").status is Status.WARN
    record = ClusterRecord(
        "127.0.0.1:50051", "127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:8000", owns_ray=True
    )
    home.write_record(record)
    assert finding(home, "ports").message == "in use by the local cluster"
    home.write_record(replace(record, control_plane="127.0.0.1:1"))
    assert finding(home, "ports").message.startswith("in use by others: 127.0.0.1:50051 (control plane)")


@pytest.mark.parametrize(("free_gib", "status"), [(1, Status.FAIL), (4, Status.WARN), (12, Status.OK)])
def test_memory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: int, status: Status) -> None:
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: Memory(16 * GIB, free_gib * GIB))
    assert finding(Home(tmp_path), "memory").status is status


def test_a_home_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = finding(Home(tmp_path / "file" / "home"), "home")
    assert found.status is Status.FAIL
    assert "ATHANOR_HOME" in found.mend


def test_what_is_not_up_is_a_warning_and_what_died_a_failure(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert finding(home, "ray").status is Status.WARN
    assert finding(home, "control plane").status is Status.WARN
    home.write_record(
        ClusterRecord(
            control_plane="127.0.0.1:1",
            ray_address="127.0.0.1:1",
            dashboard_url="http://127.0.0.1:1",
            serve_url="http://127.0.0.1:1",
            owns_ray=True,
        )
    )
    assert finding(home, "ray").status is Status.FAIL
    assert finding(home, "control plane").status is Status.FAIL


def test_a_record_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.record_path.write_text("{")
    assert finding(home, "record").status is Status.FAIL
