"""The gRPC contract: generated code is fresh, everything in it is explained, and it keeps to one form."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[3]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))

# Field numbers of the descriptors: a source location's path is made of them.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, VALUES, METHODS = 2, 2, 2


@pytest.fixture(scope="module")
def files() -> list[FileDescriptorProto]:
    """The proto files as protoc reads them, comments included."""
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "set.bin"
        names = [path.relative_to(ROOT / "protos").as_posix() for path in PROTOS]
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-Iprotos",
            "--include_source_info",
            f"--descriptor_set_out={target}",
        ]
        subprocess.run([*command, *names], cwd=ROOT, check=True)
        return list(FileDescriptorSet.FromString(target.read_bytes()).file)


def commented(file: FileDescriptorProto) -> set[tuple[int, ...]]:
    locations = file.source_code_info.location
    return {
        tuple(where.path) for where in locations if where.leading_comments.strip() or where.trailing_comments.strip()
    }


def declared(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """(path, name) of all that must carry a comment; a request or a response is explained by its method."""
    for i, message in enumerate(file.message_type):
        if not message.name.endswith(("Request", "Response")):
            yield (MESSAGES, i), message.name
        for j, field in enumerate(message.field):
            yield (MESSAGES, i, FIELDS, j), f"{message.name}.{field.name}"
    for i, enum in enumerate(file.enum_type):
        yield (ENUMS, i), enum.name
        yield from (((ENUMS, i, VALUES, j), value.name) for j, value in enumerate(enum.value))
    for i, service in enumerate(file.service):
        yield (SERVICES, i), service.name
        for j, method in enumerate(service.method):
            yield (SERVICES, i, METHODS, j), f"{service.name}.{method.name}"


def test_the_generated_code_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_protos.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_everything_is_explained(files: list[FileDescriptorProto]) -> None:
    bare = [f"{file.name}: {name}" for file in files for path, name in declared(file) if path not in commented(file)]
    assert bare == []


def test_every_file_says_what_it_is_about(files: list[FileDescriptorProto]) -> None:
    first_lines = {path.name: path.read_text("utf-8").splitlines()[0] for path in PROTOS}
    assert all(line.startswith("// ") for line in first_lines.values()), first_lines
    assert {file.package for file in files} == {"athanor.v1"}


def test_enum_values_carry_the_enums_name_and_zero_says_nothing(files: list[FileDescriptorProto]) -> None:
    for enum in (enum for file in files for enum in file.enum_type):
        prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in enum.name).lstrip("_")
        assert [value.name for value in enum.value if value.number == 0] == [f"{prefix}_UNSPECIFIED"]
        assert all(value.name.startswith(f"{prefix}_") for value in enum.value), enum.name


def test_every_method_has_a_request_and_a_response_of_its_own(files: list[FileDescriptorProto]) -> None:
    methods = [method for file in files for service in file.service for method in service.method]
    for method in methods:
        assert method.input_type == f".athanor.v1.{method.name}Request"
        assert method.output_type == f".athanor.v1.{method.name}Response"


def test_reading_methods_are_marked_as_such(files: list[FileDescriptorProto]) -> None:
    safe = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    for method in (method for file in files for service in file.service for method in service.method):
        reads = method.name.startswith(("Get", "List", "Watch", "Stream", "Verify", "Download"))
        assert (method.options.idempotency_level == safe) == reads, method.name


def test_names_are_in_the_usual_case(files: list[FileDescriptorProto]) -> None:
    for file in files:
        assert all(service.name.endswith("Service") for service in file.service)
        for message in file.message_type:
            assert all(field.name == field.name.lower() for field in message.field), message.name
            numbers = [field.number for field in message.field]
            assert len(set(numbers)) == len(numbers)
