"""Errors travel between processes."""

from __future__ import annotations

import pickle

import pytest

from serving import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.ModelDirectoryError("no config"),
        errors.EngineFailed("broke"),
        errors.InvalidRequest("wrong", param="n", code="unsupported"),
        errors.ModelNotFound("not here", param="model"),
        errors.Overloaded("later"),
    ],
)
def test_an_error_survives_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
