from __future__ import annotations

import pytest
from athanor.v1 import job_service_pb2, token_service_pb2, worker_service_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidInput
from cluster.services.wellformed import check_times


def passes(message: object) -> bool:
    try:
        check_times(message)
    except InvalidInput:
        return False
    return True


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_what_passes_can_be_used(seconds: int, nanos: int) -> None:
    for message in (Timestamp(seconds=seconds, nanos=nanos), Duration(seconds=seconds, nanos=nanos)):
        if passes(message):
            message.ToMicroseconds()
            message.ToJsonString()


@pytest.mark.parametrize("message", [Timestamp(), Timestamp(seconds=1, nanos=1), Duration(seconds=-1, nanos=-1)])
def test_times_pass(message: object) -> None:
    assert passes(message)


def test_a_wrong_one_is_named_by_its_path() -> None:
    report = worker_service_pb2.ReportProgressRequest()
    report.progress.eta.nanos = 2**31 - 1
    with pytest.raises(InvalidInput, match=r"progress\.eta: 0 s and 2147483647 ns") as refused:
        check_times(report)
    assert [each.path for each in refused.value.violations] == ["progress.eta"]
    wish = token_service_pb2.CreateTokenRequest()
    wish.ttl.seconds = 2**62
    assert not passes(wish)


def test_blocks_within_blocks_are_not_walked_for_nothing() -> None:
    request = job_service_pb2.CreateJobRequest()
    request.job.spec.update({"a": {"b": [1, {"c": None}]}})
    check_times(request)
