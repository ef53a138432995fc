"""Errors keep their reason and their words on the way between processes."""

from __future__ import annotations

import pickle

import pytest

from trainer.errors import CheckpointError, SpecError, StorageError, TrainerError, UserError


@pytest.mark.parametrize("kind", [TrainerError, UserError, CheckpointError, StorageError])
def test_pickle_keeps_class_reason_and_message(kind: type[TrainerError]) -> None:
    copied = pickle.loads(pickle.dumps(kind("DATA_EMPTY", "x.csv holds no rows")))
    assert (type(copied), copied.reason, str(copied)) == (kind, "DATA_EMPTY", "x.csv holds no rows")


def test_a_wrong_job_file_is_the_users_affair() -> None:
    assert issubclass(SpecError, UserError)
