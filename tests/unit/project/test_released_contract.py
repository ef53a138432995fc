"""What the last release promised on the wire is kept, and what would break it is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
from check_protos import broken, current, last_release, promises, read_released


def test_the_contract_keeps_what_the_last_release_promised() -> None:
    released = promises(read_released(last_release()))
    assert len(released) > 150
    assert broken(released, promises(current())) == []


def _file(contract: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(file for file in contract.file if file.name.endswith(name))


def _job(contract: FileDescriptorSet) -> DescriptorProto:
    return next(each for each in _file(contract, "/job.proto").message_type if each.name == "Job")


def removes_a_field(contract: FileDescriptorSet) -> None:
    del _job(contract).field[2]


def renumbers_a_field(contract: FileDescriptorSet) -> None:
    _job(contract).field[2].number = 900


def renames_a_field(contract: FileDescriptorSet) -> None:
    _job(contract).field[2].name = "sort"


def retypes_a_field(contract: FileDescriptorSet) -> None:
    _job(contract).field[2].type = FieldDescriptorProto.TYPE_INT64


def repeats_a_field(contract: FileDescriptorSet) -> None:
    _job(contract).field[2].label = FieldDescriptorProto.LABEL_REPEATED


def removes_a_method(contract: FileDescriptorSet) -> None:
    del _file(contract, "/job_service.proto").service[0].method[0]


def makes_a_method_a_stream(contract: FileDescriptorSet) -> None:
    _file(contract, "/job_service.proto").service[0].method[1].server_streaming = True


def renames_a_value(contract: FileDescriptorSet) -> None:
    _file(contract, "/job.proto").enum_type[0].value[1].name = "JOB_STATE_WAITING"


def takes_presence_away(contract: FileDescriptorSet) -> None:
    canary = next(
        each for each in _file(contract, "/deployment_service.proto").message_type if each.name == "SetTrafficRequest"
    )
    canary.field[2].proto3_optional = False


def removes_a_message(contract: FileDescriptorSet) -> None:
    del _file(contract, "/job.proto").message_type[0]


BREAKS = [
    removes_a_field,
    renumbers_a_field,
    renames_a_field,
    retypes_a_field,
    repeats_a_field,
    removes_a_method,
    makes_a_method_a_stream,
    renames_a_value,
    takes_presence_away,
    removes_a_message,
]


@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__)
def test_what_breaks_the_promise_is_named(change: Callable[[FileDescriptorSet], None]) -> None:
    contract = current()
    released = promises(contract)
    change(contract)
    assert broken(released, promises(contract))


def test_what_is_new_breaks_nothing() -> None:
    contract = current()
    released = promises(contract)
    _job(contract).field.add(
        name="mood", number=901, type=FieldDescriptorProto.TYPE_STRING, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    _file(contract, "/job.proto").enum_type[0].value.add(name="JOB_STATE_DREAMING", number=99)
    assert broken(released, promises(contract)) == []


def test_a_number_of_which_zero_comes_to_mean_something_breaks_nothing() -> None:
    contract = current()
    released = promises(contract)
    field = next(each for each in _job(contract).field if each.type == FieldDescriptorProto.TYPE_INT32)
    field.proto3_optional = True
    assert broken(released, promises(contract)) == []
