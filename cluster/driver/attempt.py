"""One attempt as its processes see it: what attempt.json says, and the small files by which they talk.

The control plane's own view of the same files is `cluster/attempt_files.py`. Loads no torch, no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from athanor.v1 import worker_service_pb2
from athanor.v1.worker_service_pb2 import TerminalRecord
from google.protobuf import json_format

from cluster.channel import Tls
from trainer import atomic
from trainer.job import JobContext
from trainer.secrets import without_secrets
from trainer.spec import parse_spec

SUCCEEDED = worker_service_pb2.OUTCOME_SUCCEEDED
USER_ERROR = worker_service_pb2.OUTCOME_USER_ERROR
INFRASTRUCTURE_ERROR = worker_service_pb2.OUTCOME_INFRASTRUCTURE_ERROR
CANCELLED = worker_service_pb2.OUTCOME_CANCELLED
PAUSED = worker_service_pb2.OUTCOME_PAUSED

_MESSAGE_LENGTH = 1000


@dataclass(frozen=True)
class Attempt:
    """Picklable; the same in the driver and in every worker."""

    path: Path
    """attempt.json, in `<job directory>/attempts/<number>/`."""
    job_uid: str
    number: int
    lease_token: str = field(repr=False)
    control_planes: Sequence[str]
    """host:port of each that lived when this was written, the nearest first."""
    publish_dir: Path | None
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Attempt:
        document = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            path=path.absolute(),
            job_uid=document["job_uid"],
            number=int(document["attempt"]),
            lease_token=document["lease_token"],
            control_planes=tuple(document["control_planes"]),
            publish_dir=Path(document["publish_dir"]) if document.get("publish_dir") else None,
            document=document,
        )

    @cached_property
    def ctx(self) -> JobContext:
        """The job itself; SpecError when this code does not know its settings."""
        kind, models = self.document["kind"], self.document.get("models", {})
        paths = {reference: model["path"] for reference, model in models.items()}
        return JobContext(self.path.parents[2], kind, parse_spec(kind, self.document["spec"]), paths)

    @property
    def tls(self) -> Tls | None:
        """How the control plane is known; None where it speaks without TLS."""
        files = self.document.get("tls")
        if not files:
            return None
        return Tls.of(str(self.path.with_name(files["ca"])), files.get("certificate", ""), files.get("key", ""))

    @property
    def ray_name(self) -> str:
        """`<uid>-<attempt>`: the name of this attempt wherever Ray shows one."""
        return f"{self.job_uid}-{self.number}"

    @property
    def log_path(self) -> Path:
        return self.path.with_name("driver.log")

    @property
    def terminal_path(self) -> Path:
        """How the attempt ended, for the control plane."""
        return self.path.with_name("terminal.json")

    @property
    def pause_path(self) -> Path:
        """It is there when the workers shall write a checkpoint and end: the driver's word to them."""
        return self.path.with_name("pause")

    @property
    def listening_path(self) -> Path:
        """It is there once a worker looks for that word: before, nothing would be lost with the workers."""
        return self.path.with_name("listening")

    def role_log_path(self, role: str, rank: int) -> Path:
        """What one process of the attempt prints."""
        return self.path.with_name("logs") / f"{role}-{rank}.log"

    def outcome_path(self, rank: int) -> Path:
        """How learning ended, from a worker that knows it to the driver. One per rank: nobody writes over another."""
        return self.path.with_name(f"outcome-{rank}.json")

    @property
    def outcome_paths(self) -> list[Path]:
        """Those that are there."""
        return sorted(self.path.parent.glob("outcome-*.json"))

    def events_path(self, rank: int) -> Path:
        return self.path.with_name(f"events-{rank}.jsonl")


def ended(outcome: worker_service_pb2.Outcome.ValueType, reason: str = "", message: str = "") -> TerminalRecord:
    """A record of an end that has no model to show; of a long message only the beginning is kept."""
    words = without_secrets(message)[:_MESSAGE_LENGTH]
    record = TerminalRecord(outcome=outcome, reason=reason, message=words)
    record.end_time.GetCurrentTime()
    return record


def write_record(path: Path, record: TerminalRecord) -> None:
    """As proto JSON, whole or not at all."""
    atomic.write_text(path, json_format.MessageToJson(record, preserving_proto_field_name=True))


def read_record(path: Path) -> TerminalRecord | None:
    """None while there is none that can be read."""
    try:
        return json_format.Parse(path.read_text(), TerminalRecord())
    except (FileNotFoundError, json_format.ParseError, UnicodeDecodeError):
        return None


def first_line(error: BaseException) -> str:
    """What went wrong, in one line: the class, and the first line of its words."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
