from __future__ import annotations

import pickle

import grpc
import pytest

from cluster import errors
from cluster.errors import ClusterError, RayError, Violation, status_of

TREE = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ClusterError) and value not in (ClusterError, RayError)
]


@pytest.mark.parametrize("kind", TREE)
def test_errors_survive_pickle(kind: type[ClusterError]) -> None:
    error = kind("A_REASON", "one sentence", [Violation("spec.x", "is wrong")])
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.reason, str(copy), copy.violations) == ("A_REASON", "one sentence", error.violations)


@pytest.mark.parametrize("kind", [kind for kind in TREE if kind is not errors.StartUpError])
def test_every_error_has_a_status(kind: type[ClusterError]) -> None:
    assert status_of(kind("R", "m")) is not grpc.StatusCode.INTERNAL


def test_cannot_reach_is_not_refused() -> None:
    assert status_of(errors.RayUnreachable("R", "m")) is grpc.StatusCode.UNAVAILABLE
    assert status_of(errors.RayRefused("R", "m")) is grpc.StatusCode.FAILED_PRECONDITION
    assert not issubclass(errors.RayUnreachable, errors.RayRefused)


def test_tree_is_drawn_in_the_docstring() -> None:
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in TREE)
