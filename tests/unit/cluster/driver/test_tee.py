"""What is printed, natively too, goes on and is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.driver.tee import copied_output


def test_both_streams_go_on_and_into_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "attempts" / "driver.log"
    with copied_output(path):
        os.write(1, b"talk\n")
        os.write(2, b"trouble\n")
    os.write(1, b"afterwards\n")
    assert path.read_text() == "talk\ntrouble\n"
    assert capfd.readouterr().out == "talk\ntrouble\nafterwards\n"


def test_a_later_run_adds_to_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for line in ("one", "two"):
        with copied_output(tmp_path / "driver.log"):
            os.write(1, f"{line}\n".encode())
    assert (tmp_path / "driver.log").read_text() == "one\ntwo\n"


def test_an_error_passes_through_and_the_streams_are_restored(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyError), copied_output(tmp_path / "driver.log"):
        raise KeyError
    os.write(2, b"restored\n")
    assert capfd.readouterr().err == "restored\n"
