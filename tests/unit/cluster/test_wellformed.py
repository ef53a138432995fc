from __future__ import annotations

import pytest
from athanor.v1 import job_pb2, job_service_pb2, token_service_pb2, worker_service_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidInput
from cluster.services.wellformed import check_text, check_times


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


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (job_service_pb2.GetJobRequest(uid="a\0b"), "uid"),
        (job_service_pb2.CreateJobRequest(job=job_pb2.Job(labels={"team": "\0"})), "job.labels"),
        (job_service_pb2.CreateJobRequest(job=job_pb2.Job(labels={"\0": "x"})), "job.labels"),
        (job_service_pb2.UpdateJobRequest(update_mask=FieldMask(paths=["labels", "\0"])), "update_mask.paths"),
    ],
)
def test_a_text_with_nul_is_refused(request_: Message, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_text(request_)
    assert caught.value.reason == "INVALID_TEXT"
    assert [violation.path for violation in caught.value.violations] == [path]


def test_nul_deep_inside_a_spec_is_found_and_zeros_are_no_texts() -> None:
    job = job_pb2.Job()
    job.spec.update({"training": {"max_steps": 0.0, "steps": [0.0, {"a": "fine"}]}})
    check_text(job_service_pb2.CreateJobRequest(job=job))
    job.spec.update({"data": {"train": ["x", {"deep": "a\0"}]}})
    with pytest.raises(InvalidInput, match="NUL"):
        check_text(job_service_pb2.CreateJobRequest(job=job))


@pytest.mark.parametrize("text", ["\0", "a\0b", "\\\0"])
def test_a_nul_shows_where_protobuf_prints_the_message(text: str) -> None:
    """The gate walks through a message only then."""
    request = job_service_pb2.CreateJobRequest()
    request.job.spec.update({"a": [{"b": text}]})
    assert r"\000" in str(request)
    request.job.spec.update({"a": 0.0, "b": "\\"})
    request.job.labels[text] = "x"
    assert r"\000" in str(request)
