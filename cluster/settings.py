"""How one control plane is set up: read once from the environment, frozen, with every default on its field.

Says nothing about single jobs: those bring their own spec.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import StartUpError, Violation, in_words
from cluster.home import Home
from cluster.scheduler import Rules
from trainer.violations import did_you_mean, violations

# Variables handed on from the control plane's environment to drivers; nothing else is, so no secret can leak there.
DRIVER_VARIABLES = ("DS_ACCELERATOR",)

EVERY_INTERFACE = ("0.0.0.0", "[::]", "::", "")
"""Hosts to listen on; nobody connects to them."""

VARIABLES = {
    "home": "ATHANOR_HOME",
    "database_url": "ATHANOR_DATABASE_URL",
    "storage": "ATHANOR_STORAGE",
    "listen": "ATHANOR_LISTEN",
    "auth": "ATHANOR_AUTH",
    "insecure": "ATHANOR_INSECURE",
    "tls_cert": "ATHANOR_TLS_CERT",
    "tls_key": "ATHANOR_TLS_KEY",
    "tls_client_ca": "ATHANOR_TLS_CLIENT_CA",
    "tls_ca": "ATHANOR_TLS_CA",
    "tls_driver_cert": "ATHANOR_TLS_CLIENT_CERT",
    "tls_driver_key": "ATHANOR_TLS_CLIENT_KEY",
    "calls_per_second": "ATHANOR_CALLS_PER_SECOND",
    "max_streams": "ATHANOR_MAX_STREAMS",
    "drain_s": "ATHANOR_DRAIN_S",
    "advertise": "ATHANOR_ADVERTISE",
    "ray_dashboard_url": "ATHANOR_RAY_DASHBOARD_URL",
    "serve_host": "ATHANOR_SERVE_HOST",
    "serve_port": "ATHANOR_SERVE_PORT",
    "serve_grpc_port": "ATHANOR_SERVE_GRPC_PORT",
    "serve_gateways": "ATHANOR_SERVE_GATEWAYS",
    "revision_drain_s": "ATHANOR_REVISION_DRAIN_S",
    "revision_timeout_s": "ATHANOR_REVISION_TIMEOUT_S",
    "ray_auth_mode": "RAY_AUTH_MODE",
    "ray_token_path": "RAY_AUTH_TOKEN_PATH",
    "driver_python": "ATHANOR_DRIVER_PYTHON",
    "max_running_jobs": "ATHANOR_MAX_RUNNING_JOBS",
    "lease_s": "ATHANOR_LEASE_S",
    "metrics_listen": "ATHANOR_METRICS_LISTEN",
    "ageing_per_hour": "ATHANOR_AGEING_PER_HOUR",
    "share_points": "ATHANOR_SHARE_POINTS",
    "preempts": "ATHANOR_PREEMPTS",
    "cancel_grace_s": "ATHANOR_CANCEL_GRACE_S",
    "log_versions": "ATHANOR_LOG_VERSIONS",
    "orphan_grace_s": "ATHANOR_ORPHAN_GRACE_S",
    "orphan_files_grace_s": "ATHANOR_ORPHAN_FILES_GRACE_S",
}


OTHERS_VARIABLES = (
    *("ATHANOR_ADDRESS", "ATHANOR_TOKEN", "ATHANOR_TOKEN_FILE", "ATHANOR_PROJECT"),
    *("ATHANOR_SECRETS_DIR", "ATHANOR_PROCESS_MARK"),
)
"""Ours as well: read by clients or by drivers, or set for processes that `athanor up` starts."""
SECRET_VARIABLES = "ATHANOR_SECRET_"


def _absolute(path: Path) -> Path:
    """Drivers on other nodes read these paths, so they must not depend on where this process was started."""
    return path.expanduser().absolute()


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseModel):
    """All of it. Durations are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    home: AbsolutePath = Field(default_factory=lambda: Path.home() / ".athanor")
    """Where the control plane keeps what is its own."""
    database_url: str = Field(default_factory=lambda data: f"sqlite:///{data['home'] / 'athanor.db'}")
    """SQLite file (sqlite:///...) or PostgreSQL (postgresql+psycopg://...)."""
    storage: AbsolutePath = Field(default_factory=lambda data: data["home"] / "storage")
    """Root of jobs and models; every node of the cluster sees it under the same path."""
    listen: str = "127.0.0.1:50051"
    """host:port of the gRPC server; port 0 takes a free one."""
    auth: Literal["token", "none"] = "token"
    """`none` lets everybody in, and is taken on loopback only."""
    insecure: bool = False
    """Whether to listen beyond loopback without TLS, because the network itself is private."""
    tls_cert: AbsolutePath | None = None
    """Certificate of the server with what signed it, PEM; read anew when the file changes."""
    tls_key: AbsolutePath | None = None
    """Its key."""
    tls_client_ca: AbsolutePath | None = None
    """With it only clients are let in that show a certificate signed by it."""
    tls_ca: AbsolutePath | None = None
    """By which drivers know this server; without it by `tls_cert` itself, which is then self-signed."""
    tls_driver_cert: AbsolutePath | None = None
    """With `tls_client_ca`: what drivers show, under the same path on every node."""
    tls_driver_key: AbsolutePath | None = None
    """Its key."""
    calls_per_second: Annotated[float, Field(gt=0)] = 2000.0
    """Calls that one token may make; for two seconds twice as many."""
    max_streams: Annotated[int, Field(ge=1)] = 4000
    """Watches and followed logs that one token may hold open at once."""
    metrics_listen: str = ""
    """host:port of /metrics for Prometheus, which asks without a token; empty: there is none."""
    advertise: str = ""
    """host:port under which drivers reach the server; empty: `listen`."""
    ray_dashboard_url: str = "http://127.0.0.1:8265"
    """Ray's dashboard, which also takes jobs."""
    serve_host: str = "127.0.0.1"
    """Host of the served endpoints."""
    serve_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the served endpoints."""
    serve_grpc_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the same over gRPC; without it there is none. Serve keeps what it was started with."""
    serve_gateways: Annotated[int, Field(ge=1, le=64)] = 1
    """Gateways before the replicas; they need no CPU of their own."""
    revision_drain_s: Annotated[float, Field(ge=0)] = 5.0
    """How long a revision that gets no more requests is left up before it finishes the last ones and goes."""
    revision_timeout_s: Annotated[float, Field(gt=0)] = 900.0
    """How long a new revision, or a judge that Serve starts again, may take to come up before it is given up."""
    unhealthy_grace_s: Annotated[float, Field(ge=0)] = 60.0
    """How long a revision may have no healthy replica before it has failed; Serve replaces those that die."""
    ray_auth_mode: str = ""
    """`token` when Ray wants a bearer token."""
    ray_token_path: AbsolutePath | None = None
    """File with that token; without it Ray's own place, ~/.ray/auth_token."""
    driver_python: str = sys.executable
    """Python that runs drivers on the cluster."""
    driver_env: Mapping[str, str] = {}
    """Variables set for drivers."""
    max_running_jobs: Annotated[int, Field(ge=1)] | None = None
    """Jobs that hold cluster resources at once; without it as many as fit."""
    ageing_per_hour: Annotated[float, Field(ge=0)] = 50.0
    """Points of priority that an hour of waiting is worth."""
    share_points: Annotated[float, Field(ge=0)] = 200.0
    """Points of priority that a project loses which holds the whole cluster."""
    preempts: bool = True
    """Whether jobs of much lower priority make room for others."""
    lease_s: Annotated[float, Field(gt=0)] = 15.0
    """A driver that was not heard for this long has lost its lease."""
    replica_lease_s: Annotated[float, Field(gt=0)] = 10.0
    """A control plane that shares the store with others and was not heard for this long has lost its jobs to them."""
    unknown_grace_s: Annotated[float, Field(ge=0)] = 75.0
    """How long after its lease a driver that Ray does not know is believed to be gone. Longer than the 60 s for which
    processes of a Ray head that died wait for it to come back."""
    cancel_grace_s: Annotated[float, Field(ge=0)] = 20.0
    """How long a driver may take to end by itself when it was asked to, before Ray is told to stop it."""
    pause_grace_s: Annotated[float, Field(ge=0)] = 600.0
    """How long a driver may take to write a checkpoint when its job is paused, before Ray is told to stop it."""
    teardown_grace_s: Annotated[float, Field(ge=0)] = 30.0
    """How long a driver may live on after its terminal record, before Ray is told to stop it."""
    log_versions: Annotated[int, Field(ge=0)] = 100_000
    """How many of the newest changes are kept whole, so that a watch that was cut can go on from there."""
    request_ids_s: Annotated[float, Field(ge=0)] = 7 * 24 * 3600.0
    """For how long a repeated request is known by its id."""
    reconcile_interval_s: Annotated[float, Field(gt=0)] = 1.0
    """The reconciler looks at least this often."""
    orphan_grace_s: Annotated[float, Field(ge=0)] = 600.0
    """How long a Ray job or a Serve application of ours that nothing wants is looked at before it is ended."""
    orphan_files_grace_s: Annotated[float, Field(ge=0)] = 86_400.0
    """How old a directory that no job and no model knows must be before it is removed; `inf` keeps them all."""
    drain_s: Annotated[float, Field(ge=0)] = 0.0
    """How long a server that ends says NOT_SERVING and answers all the same, so that load balancers hear of it."""
    shutdown_grace_s: Annotated[float, Field(ge=0)] = 5.0
    """How long calls in flight may take when the server is told to end."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the variables of `VARIABLES`; an empty one counts as unset."""
        values: dict[str, object] = {field: environ[name] for field, name in VARIABLES.items() if environ.get(name)}
        values["driver_env"] = {name: environ[name] for name in DRIVER_VARIABLES if environ.get(name)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explain(error) from error

    @property
    def scheduling(self) -> Rules:
        """What the scheduler goes by."""
        return Rules(
            ageing_per_hour=self.ageing_per_hour,
            share_points=self.share_points,
            preempts=self.preempts,
            max_running_jobs=inf if self.max_running_jobs is None else self.max_running_jobs,
        )

    @property
    def admin_token_path(self) -> Path:
        """Where the first admin token is written, for its owner alone."""
        return Home(self.home).admin_token_path

    @property
    def listen_host(self) -> str:
        return self.listen.rpartition(":")[0]

    @property
    def serve_url(self) -> str:
        """Base of the served endpoints, as people reach it: Serve listens on the head, as the dashboard does."""
        is_everywhere = self.serve_host in EVERY_INTERFACE
        host = urlsplit(self.ray_dashboard_url).hostname if is_everywhere else self.serve_host
        return f"http://{host}:{self.serve_port}"

    @property
    def token_file(self) -> Path | None:
        """File with Ray's bearer token; None where Ray wants none."""
        if self.ray_token_path is not None:
            return self.ray_token_path
        return Path("~/.ray/auth_token").expanduser() if self.ray_auth_mode == "token" else None

    @property
    def store_kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.database_url.split(":", 1)[0].split("+", 1)[0]

    def job_dir(self, job_uid: str) -> Path:
        """The directory of one job on the storage."""
        return self.storage / "jobs" / job_uid

    def publish_dir(self, model: str, job_uid: str) -> Path:
        """Where a job's finished model is published."""
        return self.storage / "models" / model / job_uid


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that look like ours and say nothing to anybody -> what was probably meant, in words."""
    known = [*VARIABLES.values(), *OTHERS_VARIABLES]
    ours = (name for name in sorted(environ) if name.startswith("ATHANOR_") and not name.startswith(SECRET_VARIABLES))
    return {name: did_you_mean(name, known) for name in ours if name not in known}


def _explain(error: ValidationError) -> StartUpError:
    found = [Violation(VARIABLES.get(each.path, each.path), each.message) for each in violations(error, Settings)]
    return StartUpError("INVALID_SETTINGS", f"wrong settings: {in_words(found)}", found)
