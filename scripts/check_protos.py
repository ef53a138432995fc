"""Whether the contract keeps what the last release promised: `protos/released/<version>.json` against the protos.

A client of the last release must be able to talk to this server, and the reverse: no method, message, field or value
may go away or change its number, name or type. New ones are welcome, and a field may become `optional`: that changes
nothing on the wire, and whoever does not know it sends and reads what it did. `--release` writes the promise of a
release.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
RELEASED = PROTOS / "released"
_OPTIONAL = ", optional"
Promise = Mapping[str, str]
"""Path of a part of the contract -> what is promised of it."""


def current() -> FileDescriptorSet:
    """The contract of this tree, without comments."""
    found = FileDescriptorSet()
    for path in sorted((PROTOS / "athanor" / "v1").glob("*.proto")):
        module = importlib.import_module(f"athanor.v1.{path.stem}_pb2")
        module.DESCRIPTOR.CopyToProto(found.file.add())
    return found


def read_released(path: Path) -> FileDescriptorSet:
    """The contract as a release had it."""
    return json_format.Parse(path.read_text(encoding="utf-8"), FileDescriptorSet(), ignore_unknown_fields=True)


def last_release() -> Path:
    """The newest file, by version."""
    return max(RELEASED.glob("*.json"), key=lambda path: [int(part) for part in path.stem.split(".")])


def promises(contract: FileDescriptorSet) -> Promise:
    """All that others may rely on."""
    return dict(line for file in contract.file for line in _of_file(file))


def broken(released: Promise, now: Promise) -> list[str]:
    """What does not hold any more, one line each."""
    gone = [f"gone: {path} ({promise})" for path, promise in released.items() if path not in now]
    changed = [
        f"changed: {path} was `{promise}` and is `{now[path]}`"
        for path, promise in released.items()
        if path in now and now[path] not in (promise, f"{promise}{_OPTIONAL}")
    ]
    return sorted(gone + changed)


def _of_file(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    for message in file.message_type:
        yield from _of_message(f"{file.package}.{message.name}", message)
    for enum in file.enum_type:
        yield from _of_enum(f"{file.package}.{enum.name}", enum)
    for service in file.service:
        yield from _of_service(f"{file.package}.{service.name}", service)


def _of_message(path: str, message: DescriptorProto) -> Iterator[tuple[str, str]]:
    yield path, "message"
    for field in message.field:
        yield f"{path}/{field.number}", _in_words(field)
    for nested in message.nested_type:
        yield from _of_message(f"{path}.{nested.name}", nested)
    for enum in message.enum_type:
        yield from _of_enum(f"{path}.{enum.name}", enum)


def _in_words(field: FieldDescriptorProto) -> str:
    kind = field.type_name.removeprefix(".") or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    return f"{label}{kind} {field.name}{_OPTIONAL if field.proto3_optional else ''}"


def _of_enum(path: str, enum: EnumDescriptorProto) -> Iterator[tuple[str, str]]:
    for value in enum.value:
        yield f"{path}/{value.number}", value.name


def _of_service(path: str, service: ServiceDescriptorProto) -> Iterator[tuple[str, str]]:
    for method in service.method:
        streams = ("stream " if method.client_streaming else "", "stream " if method.server_streaming else "")
        sent, answered = method.input_type.removeprefix("."), method.output_type.removeprefix(".")
        yield f"{path}/{method.name}", f"{streams[0]}{sent} -> {streams[1]}{answered}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", metavar="VERSION", help="write this tree's contract as that of a release")
    args = parser.parse_args()
    if args.release:
        RELEASED.mkdir(exist_ok=True)
        document = json_format.MessageToDict(current())
        (RELEASED / f"{args.release}.json").write_text(
            json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n"
        )
        return
    path = last_release()
    found = broken(promises(read_released(path)), promises(current()))
    if found:
        sys.exit("\n".join([*found, f"the contract breaks what {path.stem} promised; add beside it, never change it"]))
    sys.stdout.write(f"contract keeps what {path.stem} promised\n")


if __name__ == "__main__":
    main()
