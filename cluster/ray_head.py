"""A Ray head of our own: free ports, own temp dir, own token, ended without touching any other Ray on the machine.

Everything it starts carries a mark, so `process.end` finds exactly those processes. It never calls `ray stop`, which
would end every Ray of the user. It does not attach to a Ray that somebody else started: `local.py` does.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx

from cluster.errors import StartUpError
from cluster.process import ProcessRef, end, spawn, tail

HOST = "127.0.0.1"
LONGEST_TEMP_DIR = 38  # characters: Ray adds up to 69 to it, and a unix socket's path holds 107
MIB = 1024 * 1024
_ATTEMPTS = 3


@dataclass(frozen=True)
class RayHead:
    """A head that runs, and how to reach it and end it again."""

    process: ProcessRef
    address: str
    dashboard_url: str
    temp_dir: str
    token_path: str
    log_path: str

    def client_env(self) -> dict[str, str]:
        """What a process needs in its environment to talk to this Ray."""
        return {"RAY_ADDRESS": self.address, **loopback_env(), **auth_env(Path(self.token_path))}


@dataclass(frozen=True)
class Ports:
    """The ports that Ray does not choose by itself."""

    gcs: int
    dashboard: int
    client_server: int
    autoscaler_metrics: int
    dashboard_metrics: int


def start_head(
    temp_dir: Path,
    *,
    num_cpus: int | None = None,
    log_path: Path,
    token_path: Path,
    env: Mapping[str, str] | None = None,
    object_store_mib: int = 512,
    deadline_s: float = 90.0,
    on_spawn: Callable[[RayHead], None] | None = None,
) -> RayHead:
    """Start a head and wait until it answers; StartUpError when it does not. `env` replaces the inherited one.

    `on_spawn` is told of each head as soon as it is a process. Whatever ends the wait ends that process too.
    """
    write_token(token_path)
    short_dir = short_temp_dir(temp_dir)
    deadline = time.monotonic() + deadline_s
    for attempt in range(1, _ATTEMPTS + 1):
        head = _spawn(short_dir, num_cpus, log_path, token_path, os.environ if env is None else env, object_store_mib)
        if _is_ready(head, deadline, on_spawn):
            return head
        if attempt == _ATTEMPTS or time.monotonic() > deadline:
            break
    raise StartUpError("RAY_NOT_STARTED", f"Ray did not start; the end of {log_path}:\n{tail(log_path)}")


def auth_env(token_path: Path) -> dict[str, str]:
    """The environment that makes Ray and its clients use the token of this file."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}


def loopback_env() -> dict[str, str]:
    """The environment that keeps Ray and its clients on the loopback interface; the variable's name is older."""
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def write_token(token_path: Path) -> None:
    """Make the secret of this cluster, readable by its owner alone, unless there is one."""
    if token_path.exists():
        return
    token_path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def auth_headers(token_path: Path | None) -> dict[str, str]:
    """HTTP headers for Ray's dashboard; none without a token."""
    if token_path is None or not token_path.exists():
        return {}
    return {"Authorization": f"Bearer {token_path.read_text().strip()}"}


def dashboard_answers(dashboard_url: str, token_path: Path | None, *, timeout_s: float = 5.0) -> bool:
    """Whether Ray's dashboard takes our token and its job interface answers."""
    try:
        reply = httpx.get(
            f"{dashboard_url}/api/jobs/", headers=auth_headers(token_path), timeout=timeout_s, trust_env=False
        )
    except httpx.HTTPError:
        return False
    return reply.status_code == httpx.codes.OK


def free_ports(count: int) -> list[int]:
    """So many different ports of the loopback interface that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def short_temp_dir(wanted: Path) -> Path:
    """`wanted`, or a fresh directory of a short name where `wanted` is too long for Ray's sockets."""
    if len(str(wanted)) <= LONGEST_TEMP_DIR:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        return wanted
    root = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="athanor-", dir=root if len(root) <= LONGEST_TEMP_DIR - 16 else "/tmp"))


def _spawn(
    temp_dir: Path,
    num_cpus: int | None,
    log_path: Path,
    token_path: Path,
    env: Mapping[str, str],
    object_store_mib: int,
) -> RayHead:
    ports = Ports(*free_ports(5))
    process = spawn(
        _command(temp_dir, ports, num_cpus, object_store_mib),
        env={**env, **loopback_env(), **auth_env(token_path), **_head_env(ports)},
        mark=secrets.token_hex(8),
        log_path=log_path,
        cwd=temp_dir,
    )
    return RayHead(
        process=process,
        address=f"{HOST}:{ports.gcs}",
        dashboard_url=f"http://{HOST}:{ports.dashboard}",
        temp_dir=str(temp_dir),
        token_path=str(token_path),
        log_path=str(log_path),
    )


def _command(temp_dir: Path, ports: Ports, num_cpus: int | None, object_store_mib: int) -> list[str]:
    options: dict[str, object] = {
        "node-ip-address": HOST,
        "port": ports.gcs,
        "dashboard-host": HOST,
        "dashboard-port": ports.dashboard,
        "include-dashboard": "true",
        "ray-client-server-port": ports.client_server,
        "dashboard-agent-listen-port": 0,  # 0: chosen by Ray itself, free for certain
        "dashboard-agent-grpc-port": 0,
        "runtime-env-agent-port": 0,
        "node-manager-port": 0,
        "object-manager-port": 0,
        "metrics-export-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "temp-dir": temp_dir,
        "object-store-memory": object_store_mib * MIB,
    }
    if num_cpus is not None:
        options["num-cpus"] = num_cpus
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", *flags]


def _head_env(ports: Ports) -> dict[str, str]:
    return {
        "RAY_ADDRESS": f"{HOST}:{ports.gcs}",  # parts of Ray that look for "the" Ray of a machine must find this one
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # idle workers of ~100 MiB each would be started per logical CPU
        "RAY_worker_niceness": "0",  # else Ray gives way to all else on the machine, its own clients included
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
    }


def _is_ready(head: RayHead, deadline: float, on_spawn: Callable[[RayHead], None] | None) -> bool:
    """Whether it came up; otherwise it is ended, on Ctrl-C too."""
    ready = False
    try:
        if on_spawn is not None:
            on_spawn(head)
        ready = _wait_until_ready(head, deadline)
    finally:
        if not ready:
            end(head.process)
    return ready


def _wait_until_ready(head: RayHead, deadline: float) -> bool:
    while time.monotonic() < deadline and head.process.is_alive:
        if dashboard_answers(head.dashboard_url, Path(head.token_path)):
            return True
        time.sleep(0.2)
    return False
