"""ATHANOR_HOME: where an installation keeps its state, and the record of the local cluster that runs.

Only paths and that one record: starting and ending things is `local.py`'s. Loads neither gRPC nor Ray.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.process import ProcessRef
from trainer.atomic import write_json

DEFAULT_ADDRESS = "127.0.0.1:50051"


@dataclass(frozen=True)
class ClusterRecord:
    """What `athanor up` started or attached to: cluster.json."""

    control_plane: str
    ray_address: str
    dashboard_url: str
    serve_url: str
    owns_ray: bool
    ray_token_path: str | None = None
    tls_ca: str = ""
    """By which clients know the control plane; empty where it speaks without TLS."""
    temp_dir: str | None = None
    ray_process: ProcessRef | None = None
    control_plane_process: ProcessRef | None = None

    def as_document(self) -> dict[str, object]:
        """The JSON of cluster.json."""
        document: dict[str, object] = asdict(self)
        processes = {"ray": document.pop("ray_process"), "control_plane": document.pop("control_plane_process")}
        return {**document, "pids": {name: process for name, process in processes.items() if process}}

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> ClusterRecord:
        """The record of such a JSON."""
        fields = dict(document)
        pids = fields.pop("pids", {})
        if not isinstance(pids, dict):
            raise TypeError("pids is no mapping")
        refs = {name: ProcessRef(**ref) for name, ref in pids.items()}
        return cls(**fields, ray_process=refs.get("ray"), control_plane_process=refs.get("control_plane"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Home:
    """The directory, by its parts."""

    root: Path

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Home:
        """ATHANOR_HOME, or ~/.athanor."""
        return cls(Path(environ.get("ATHANOR_HOME") or Path.home() / ".athanor").expanduser().absolute())

    @property
    def record_path(self) -> Path:
        return self.root / "cluster.json"

    @property
    def token_path(self) -> Path:
        return self.root / "ray-token"

    @property
    def admin_token_path(self) -> Path:
        """The first admin token of a control plane with this home."""
        return self.root / "admin-token"

    @property
    def ray_dir(self) -> Path:
        return self.root / "ray"

    @property
    def logs_dir(self) -> Path:
        return self.root / "logs"

    @property
    def ray_log(self) -> Path:
        return self.logs_dir / "ray.log"

    @property
    def control_plane_log(self) -> Path:
        return self.logs_dir / "control-plane.log"

    @property
    def quickstart_dir(self) -> Path:
        return self.root / "quickstart"

    def create(self) -> None:
        """Make the directory; nobody but its owner may look into it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        self.logs_dir.mkdir(mode=0o700, exist_ok=True)

    def read_record(self) -> ClusterRecord | None:
        """The cluster that was last brought up and not taken down, if any; StartUpError when it cannot be read."""
        try:
            return ClusterRecord.from_document(json.loads(self.record_path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> Exception:
        from cluster.errors import StartUpError  # loads gRPC

        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return StartUpError(
            "RECORD_UNREADABLE",
            f"{self.record_path} cannot be read ({why}). It says which processes are ours, so nothing is started or "
            f"ended without it. Mend it; or end what still runs (`ps -ef | grep -e {self.ray_dir} -e control-plane`) "
            "and delete it",
        )

    def write_record(self, record: ClusterRecord) -> None:
        write_json(self.record_path, record.as_document(), mode=0o600)

    def remove_record(self) -> None:
        self.record_path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one `up` or `down` of this home at a time; the second one waits."""
        with (self.root / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
