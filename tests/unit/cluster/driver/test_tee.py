"""What is printed, natively too, goes on and is kept."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_the_last_words_of_a_process_that_crashes_are_kept(tmp_path: Path) -> None:
    """Of a worker: nobody inside it could write them any more."""
    path = tmp_path / "logs" / "student-0.log"
    words = (
        "import faulthandler, os, sys; from pathlib import Path; from cluster.driver.tee import copy_output;"
        f"copy_output(Path({str(path)!r})); print('begins', flush=True); faulthandler.enable(); os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode < 0
    assert "begins" in done.stdout
    assert "Fatal Python error: Aborted" in done.stdout
    assert path.read_text() == done.stdout


def test_a_worker_that_prints_a_secret_prints_stars(tmp_path: Path) -> None:
    """Whatever it was read for: the value may be in an environment, an error, a URL."""
    path, secrets = tmp_path / "logs" / "student-0.log", tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "hub").write_text("hf_from_a_file\n")
    words = (
        "import sys; from pathlib import Path; from cluster.driver.tee import copy_output;"
        f"copy_output(Path({str(path)!r}));"
        "print('token hf_from_a_file', flush=True); sys.stderr.write('and hf_from_env_'); sys.stderr.flush();"
        "sys.stderr.write('ironment here')"
    )
    known = {**os.environ, "ATHANOR_SECRETS_DIR": str(secrets), "ATHANOR_SECRET_other": "hf_from_env_ironment"}
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=known)
    assert done.stdout == "token ********\nand ******** here"
    assert path.read_text() == done.stdout


def test_a_place_that_takes_no_file_costs_the_copy_alone(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file in the way")
    words = (
        "from pathlib import Path; from cluster.driver.tee import copy_output;"
        f"copy_output(Path({str(tmp_path / 'logs' / 'student-0.log')!r})); print('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "goes on\n"
