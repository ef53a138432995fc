"""The two files by which control plane and driver meet on the storage: attempt.json going, terminal.json coming back.

attempt.json holds the attempt's lease token, so only its owner may read it. Nothing here decides anything.
"""

from __future__ import annotations

import errno
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from athanor.v1 import worker_service_pb2
from google.protobuf import json_format

from cluster.errors import InvalidInput
from cluster.ids import hash_token
from cluster.settings import Settings
from cluster.store.records import StoredAttempt, StoredJob, StoredModel, Terminal
from cluster.wire import terminal_from_proto
from trainer.atomic import write_bytes, write_json

log = structlog.get_logger(__name__)


def attempt_dir(settings: Settings, attempt: StoredAttempt) -> Path:
    """`<storage>/jobs/<uid>/attempts/<n>`."""
    return settings.job_dir(attempt.job_uid) / "attempts" / str(attempt.number)


def log_path(settings: Settings, attempt: StoredAttempt) -> Path:
    """What driver and workers print."""
    return attempt_dir(settings, attempt) / "driver.log"


def attempt_document(
    settings: Settings, job: StoredJob, models: Mapping[str, StoredModel], token: str, control_planes: Sequence[str]
) -> dict[str, Any]:
    """What attempt.json says of the job's last attempt."""
    return {
        "job_uid": job.uid,
        "attempt": len(job.attempts),
        "lease_token": token,
        "control_planes": list(control_planes),
        "tls": _driver_tls(settings),
        "kind": job.kind,
        "name": job.name,
        "spec": job.spec,
        "models": {text: {"reference": model.reference, "path": model.path} for text, model in models.items()},
        "publish_dir": _publish_dir(settings, job),
    }


def _driver_tls(settings: Settings) -> dict[str, str] | None:
    """How the driver knows this server: by a CA that lies beside attempt.json. Keys stay where they are."""
    if settings.tls_cert is None:
        return None
    client = {"certificate": settings.tls_driver_cert, "key": settings.tls_driver_key}
    return {"ca": "ca.pem", **{name: str(path) for name, path in client.items() if path}}


def _publish_dir(settings: Settings, job: StoredJob) -> str:
    publish = job.spec.get("publish")
    return str(settings.publish_dir(publish["model"], job.uid)) if publish else ""


def write_attempt(settings: Settings, attempt: StoredAttempt, document: Mapping[str, Any]) -> Path:
    """Write attempt.json whole or not at all, for its owner's eyes only."""
    jobs = settings.storage / "jobs"
    if not jobs.is_dir():  # it was made at start-up
        raise FileNotFoundError(errno.ENOENT, "no such directory; is the storage mounted?", str(jobs))
    path = attempt_dir(settings, attempt) / "attempt.json"
    if settings.tls_cert is not None:
        write_bytes(path.with_name("ca.pem"), (settings.tls_ca or settings.tls_cert).read_bytes())
    write_json(path, document, mode=0o600)
    return path


def stored_token(settings: Settings, attempt: StoredAttempt) -> str | None:
    """The token of an attempt.json that was written before, if it is the one the store knows."""
    try:
        written = (attempt_dir(settings, attempt) / "attempt.json").read_text(encoding="utf-8")
        token = str(json.loads(written)["lease_token"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return token if hash_token(token) == attempt.lease_token_sha256 else None


def entrypoint(settings: Settings, path: Path) -> str:
    """The command line that runs an attempt on Ray."""
    return shlex.join([settings.driver_python, "-m", "cluster.driver", "--attempt-file", str(path)])


def with_parameters(terminal: Terminal) -> Terminal:
    """The record, with the size of its model as the model directory tells it; 0 where it tells nothing."""
    if not terminal.model_path:
        return terminal
    try:
        manifest = json.loads((Path(terminal.model_path) / "athanor.json").read_text())
        count = manifest["report"]["parameters"]["student"]
    except (OSError, ValueError, KeyError, TypeError):
        return terminal
    return replace(terminal, num_parameters=count) if isinstance(count, int) else terminal


def checked(settings: Settings, job: StoredJob, terminal: Terminal) -> Terminal:
    """The record, if what it names lies where this job may write: InvalidInput / INVALID_RECORD otherwise."""
    if terminal.model_path not in ("", _publish_dir(settings, job)):
        raise InvalidInput("INVALID_RECORD", f"{terminal.model_path} is not where {job.uid} publishes its model")
    report = Path(terminal.report_path)
    if terminal.report_path and (".." in report.parts or not report.is_relative_to(settings.job_dir(job.uid))):
        raise InvalidInput("INVALID_RECORD", f"{report} is not inside the directory of {job.uid}")
    return with_parameters(terminal)


def _check_visible(settings: Settings, attempt: StoredAttempt) -> None:
    """What lies beside it is there too: a storage that is not mounted says nothing about any record."""
    was_written = attempt.start_time_us is not None or attempt.lease_expires_us is not None
    if was_written and not (attempt_dir(settings, attempt) / "attempt.json").exists():
        raise FileNotFoundError(
            errno.ENOENT, "its attempt.json is gone; is the storage mounted?", str(settings.storage)
        )


def read_terminal(settings: Settings, job: StoredJob, attempt: StoredAttempt) -> Terminal | None:
    """The driver's terminal record, None while there is none."""
    path = attempt_dir(settings, attempt) / "terminal.json"
    try:
        message = json_format.Parse(path.read_text(), worker_service_pb2.TerminalRecord(), ignore_unknown_fields=True)
        return checked(settings, job, terminal_from_proto(message))
    except FileNotFoundError:
        _check_visible(settings, attempt)
        return None
    except (json_format.ParseError, ValueError, InvalidInput) as error:
        log.warning("terminal.unreadable", path=str(path), error=str(error))
        return None
