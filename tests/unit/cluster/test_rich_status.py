from __future__ import annotations

import pytest
from google.rpc import error_details_pb2

from cluster.errors import InvalidInput, NotFound, Violation
from cluster.services.status import clipped, rich_status

TRAILER_BYTES = 8192


def fields_of(error: InvalidInput) -> list[error_details_pb2.BadRequest.FieldViolation]:
    for detail in rich_status(error, "req-1").details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            return list(bad.field_violations)
    return []


@pytest.mark.parametrize("letter", ["a", "ü", "%"])
def test_what_is_said_fits_into_a_trailer(letter: str) -> None:
    """The message travels twice: by itself, three characters for each byte, and in the details, in base64."""
    violations = [Violation(f"spec.{letter * 300}[{number}]", letter * 5000) for number in range(200)]
    status = rich_status(InvalidInput("INVALID_SPEC", letter * 100_000, violations), "req-1")
    assert 3 * len(status.message.encode()) + 4 * (status.ByteSize() // 3 + 1) < TRAILER_BYTES


def test_fields_that_do_not_fit_are_counted() -> None:
    violations = [Violation(f"spec.field{number}", "x" * 300) for number in range(50)]
    found = fields_of(InvalidInput("INVALID_SPEC", "many", violations))
    assert [each.field for each in found[:2]] == ["spec.field0", "spec.field1"]
    assert found[-1].field == ""
    assert found[-1].description == f"and {50 - (len(found) - 1)} more; mend these first"


def test_what_fits_is_whole() -> None:
    violations = [Violation("spec.a", "is wrong"), Violation("spec.b", "too")]
    found = fields_of(InvalidInput("INVALID_SPEC", "two", violations))
    assert [(each.field, each.description) for each in found] == [("spec.a", "is wrong"), ("spec.b", "too")]
    assert rich_status(NotFound("JOB_NOT_FOUND", "no job 'x'"), "req-1").message == "no job 'x'"


def test_clipping_breaks_no_character() -> None:
    assert clipped("grüße", 4) == "grü ..."
    assert clipped("grüße", 7) == "grüße"
