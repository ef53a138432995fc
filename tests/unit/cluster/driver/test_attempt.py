"""attempt.json read, records written."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from attempts import SPEC, written_attempt

from cluster.driver.attempt import CANCELLED, USER_ERROR, ended, first_line, read_record, write_record
from trainer.errors import SpecError


def test_the_job_is_the_directory_above(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path, attempt=3)
    assert attempt.ctx.job_dir == tmp_path / "jobs" / "bot-abcdefgh"
    assert attempt.ctx.uid == attempt.job_uid
    assert attempt.ray_name == "bot-abcdefgh-3"


def test_models_are_named_by_reference_and_found_by_path(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path, models={"t@best": {"reference": "t@3", "path": "/models/t/3"}})
    assert attempt.ctx.resolve_model("t@best") == "/models/t/3"


def test_the_lease_token_is_not_shown(tmp_path: Path) -> None:
    assert "secret" not in repr(written_attempt(tmp_path))


def test_an_attempt_goes_to_other_processes(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    assert pickle.loads(pickle.dumps(attempt)) == attempt


def test_settings_this_code_does_not_know_are_an_error_of_the_job(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path, spec=SPEC | {"magic": True})
    with pytest.raises(SpecError, match="magic"):
        _ = attempt.ctx


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "terminal.json"
    assert read_record(path) is None
    record = ended(CANCELLED, "CANCELLED", "ended by request")
    record.summary.update({"student": {"exact_match": 0.5}})
    write_record(path, record)
    assert read_record(path) == record
    assert '"OUTCOME_CANCELLED"' in path.read_text()


def test_endless_words_are_cut() -> None:
    assert len(ended(USER_ERROR, "R", "x" * 10_000).message) == 1000


def test_the_first_line_says_what_and_why() -> None:
    assert first_line(ValueError("no\nmore")) == "ValueError: no"
    assert first_line(ValueError()) == "ValueError"
