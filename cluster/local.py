"""The cluster of one machine: `up` starts Ray's head and the control plane, `down` ends exactly what `up` started.

Both may be called at any time and again: they look at what is there, and mend or end it. Jobs are not touched: the
control plane picks up those that were running when it is back.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.access import Access
from cluster.client import AthanorClient
from cluster.errors import InvalidInput, StartUpError
from cluster.home import DEFAULT_ADDRESS, ClusterRecord, Home
from cluster.process import ProcessRef, end, spawn, tail
from cluster.ray_head import HOST, RayHead, auth_env, dashboard_answers, free_ports, loopback_env, start_head

SERVE_PORT = 8000
LEAST_NUM_CPUS = 8  # logical: a small machine still gives each worker of a small job its own
_CONTROL_PLANE_GRACE_S = 15.0
_PATIENCE_S = 60.0  # a busy machine answers late, and a Ray that is ended for it takes its running jobs along

Say = Callable[[str], None]


@dataclass(frozen=True)
class UpOptions:
    """What the user fixed; None leaves the choice to us."""

    ray_address: str | None = None
    ray_dashboard_url: str | None = None
    num_cpus: int | None = None
    listen: str | None = None
    deadline_s: float = 120.0
    patience_s: float = _PATIENCE_S


@dataclass(frozen=True)
class UpResult:
    """The cluster that is up, and what had to be started for it."""

    record: ClusterRecord
    started: tuple[str, ...]


def up(home: Home, options: UpOptions, say: Say) -> UpResult:
    """Bring the cluster up, or find it up, or mend what is dead of it."""
    if (options.ray_address is None) != (options.ray_dashboard_url is None):
        raise InvalidInput("RAY_ADDRESS_INCOMPLETE", "give both --ray-address and --ray-dashboard-url, or neither")
    _create(home)
    with home.locked():
        found = home.read_record()
        _refuse_another(found, options)
        record, ray_started = _ensure_ray(home, options, found, say)
        record, server_started = _ensure_control_plane(home, options, record, ray_started, say)
    return UpResult(record, (("ray",) if ray_started else ()) + (("control plane",) if server_started else ()))


def down(home: Home, say: Say) -> tuple[str, ...]:
    """End what `up` started, control plane first; what was ended, empty when nothing was up. Data stays."""
    if not home.root.is_dir():
        return ()
    with home.locked():
        record = home.read_record()
        if record is None:
            return ()
        ended = [name for name, ref, grace_s in _own_processes(record) if _end(name, ref, grace_s, say)]
        _remove_scratch(home, record)
        home.remove_record()
    return tuple(ended)


def _remove_scratch(home: Home, record: ClusterRecord) -> None:
    """Sockets and logs of a Ray of ours that has ended, where they lie outside the home."""
    if record.owns_ray and record.temp_dir and not Path(record.temp_dir).is_relative_to(home.root):
        shutil.rmtree(record.temp_dir, ignore_errors=True)


def control_plane_answers(record: ClusterRecord) -> bool:
    """Whether the recorded control plane says that it serves."""
    with _health_client(record) as client:
        return client.is_serving()


def _health_client(record: ClusterRecord) -> AthanorClient:
    """Health is open to all: no token goes anywhere. A client's certificate may be asked for all the same."""
    own = Access.from_env()
    return AthanorClient(
        record.control_plane, tls_ca=record.tls_ca, client_cert=own.client_cert, client_key=own.client_key
    )


def ray_answers(record: ClusterRecord) -> bool:
    """Whether the recorded Ray takes our token."""
    return dashboard_answers(record.dashboard_url, Path(record.ray_token_path) if record.ray_token_path else None)


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, as far as can be seen without loading torch."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def machine_env(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, in which DeepSpeed is told where there is no GPU."""
    return dict(environ) if has_gpu() else {"DS_ACCELERATOR": "cpu", **environ}


def is_free(address: str) -> bool:
    """Whether nobody listens on this host:port, and we could."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except (OSError, ValueError):
            return False
    return True


def _create(home: Home) -> None:
    try:
        home.create()
    except OSError as error:
        why = f"{home.root} cannot be made: {error.strerror}; set ATHANOR_HOME to a directory that you may write"
        raise StartUpError("HOME_UNUSABLE", why) from error


def _refuse_another(found: ClusterRecord | None, options: UpOptions) -> None:
    if found is None or options.ray_address is None or options.ray_address == found.ray_address:
        return
    raise StartUpError(
        "ANOTHER_RAY", f"this home is up with the Ray at {found.ray_address}; run `athanor down` first, then up again"
    )


def _ensure_ray(home: Home, options: UpOptions, found: ClusterRecord | None, say: Say) -> tuple[ClusterRecord, bool]:
    """The record of a Ray that answers, and whether it had to be started or attached."""
    if found is not None and _ray_is_there(found, options):
        if options.num_cpus is not None:
            say("--num-cpus changes nothing: Ray runs already; run `athanor down` first, then up again")
        return found, False
    attached = _attach(options) if options.ray_dashboard_url else None  # before anything is ended: it may not answer
    if found is not None:
        _end_remains(found, options, say)
        _remove_scratch(home, found)
    control_plane = found.control_plane if found else ""
    record = (
        replace(attached, control_plane=control_plane) if attached else _start_ray(home, options, control_plane, say)
    )
    home.write_record(record)
    return record, True


def _ray_is_there(found: ClusterRecord, options: UpOptions) -> bool:
    if found.owns_ray:
        return is_there("Ray", found.ray_process, lambda: ray_answers(found), options.patience_s)
    return ray_answers(found)  # not ours: it is never ended, at most asked again by whoever attaches


def is_there(name: str, process: ProcessRef | None, answers: Callable[[], bool], patience_s: float) -> bool:
    """Whether it answers; False only when its process is gone. StartUpError when it lives and stays silent."""
    deadline = time.monotonic() + patience_s
    while not answers():
        if process is None or not process.is_alive:
            return False
        if time.monotonic() > deadline:
            raise StartUpError(
                "NO_ANSWER",
                f"{name} (pid {process.pid}) lives, but has not answered for {patience_s:g} s; nothing was ended. "
                "The machine may be busy: try again later, or end it all with `athanor down`",
            )
        time.sleep(0.2)
    return True


def _end_remains(found: ClusterRecord, options: UpOptions, say: Say) -> None:
    if not found.owns_ray and options.ray_address is None:
        raise StartUpError(
            "RAY_UNREACHABLE",
            f"the Ray at {found.ray_address} does not answer and is not ours to start; start it, or run `athanor down` "
            "and `athanor up` for a Ray of our own",
        )
    say("Ray is gone; starting again" if found.owns_ray else "attaching again")
    for name, ref, grace_s in _own_processes(found):
        _end(name, ref, grace_s, say)


def _attach(options: UpOptions) -> ClusterRecord:
    assert options.ray_address is not None
    assert options.ray_dashboard_url is not None
    token_path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    record = ClusterRecord(
        control_plane="",
        ray_address=options.ray_address,
        dashboard_url=options.ray_dashboard_url.rstrip("/"),
        serve_url=f"http://{options.ray_address.rpartition(':')[0]}:{SERVE_PORT}",
        owns_ray=False,
        ray_token_path=token_path,
    )
    if not ray_answers(record):
        hint = (
            "the token of RAY_AUTH_TOKEN_PATH" if token_path else "no token; set RAY_AUTH_TOKEN_PATH if Ray wants one"
        )
        raise StartUpError(
            "RAY_UNREACHABLE", f"Ray's dashboard at {record.dashboard_url} did not answer (asked with {hint})"
        )
    return record


def _start_ray(home: Home, options: UpOptions, control_plane: str, say: Say) -> ClusterRecord:
    num_cpus = options.num_cpus or max(os.cpu_count() or 1, LEAST_NUM_CPUS)
    say(f"starting Ray ({num_cpus} logical CPUs)")
    shutil.rmtree(home.ray_dir, ignore_errors=True)  # what an earlier Ray of ours left
    serve_port = SERVE_PORT if is_free(f"{HOST}:{SERVE_PORT}") else free_ports(1)[0]
    serve_url = f"http://{HOST}:{serve_port}"
    head = start_head(
        home.ray_dir,
        num_cpus=num_cpus,
        log_path=home.ray_log,
        token_path=home.token_path,
        env=machine_env(os.environ),
        deadline_s=options.deadline_s,
        on_spawn=lambda head: home.write_record(_record_of(head, serve_url, control_plane)),
    )
    return _record_of(head, serve_url, control_plane)


def _record_of(head: RayHead, serve_url: str, control_plane: str) -> ClusterRecord:
    return ClusterRecord(
        control_plane=control_plane,
        ray_address=head.address,
        dashboard_url=head.dashboard_url,
        serve_url=serve_url,
        owns_ray=True,
        ray_token_path=head.token_path,
        temp_dir=head.temp_dir,
        ray_process=head.process,
    )


def _ensure_control_plane(
    home: Home, options: UpOptions, record: ClusterRecord, ray_is_new: bool, say: Say
) -> tuple[ClusterRecord, bool]:
    running = record.control_plane_process
    if running is not None and not ray_is_new and _control_plane_is_there(record, running, options):
        if options.listen not in (None, record.control_plane):
            say(f"--listen changes nothing: the control plane runs on {record.control_plane}; run `athanor down` first")
        return record, False
    if running is not None:
        say("the control plane is gone or points at another Ray; starting it again")
        end(running, grace_s=_CONTROL_PLANE_GRACE_S)
    return _start_control_plane(home, options, record, say), True


def _control_plane_is_there(record: ClusterRecord, running: ProcessRef, options: UpOptions) -> bool:
    return is_there("the control plane", running, lambda: control_plane_answers(record), options.patience_s)


def _start_control_plane(home: Home, options: UpOptions, record: ClusterRecord, say: Say) -> ClusterRecord:
    usual = record.control_plane or DEFAULT_ADDRESS  # running drivers know the server by its earlier address
    address = choose_address(options.listen or os.environ.get("ATHANOR_LISTEN"), usual)
    say(f"starting the control plane on {address}")
    record = replace(record, control_plane=address, tls_ca=tls_ca_of(os.environ))
    process = spawn(
        [sys.executable, "-m", "cluster.cli.main", "control-plane"],
        env=control_plane_env(home, record, os.environ),
        mark=secrets.token_hex(8),
        log_path=home.control_plane_log,
        cwd=home.root,
    )
    record = replace(record, control_plane_process=process)
    home.write_record(record)
    _wait_until_serving(home, record, process, options.deadline_s)
    return record


def choose_address(fixed: str | None, usual: str = DEFAULT_ADDRESS) -> str:
    """The address the user fixed, which must be free; else the usual one, or a free one where that is taken."""
    if fixed is None:
        return usual if is_free(usual) else f"{HOST}:{free_ports(1)[0]}"
    if is_free(fixed):
        return fixed
    raise StartUpError(
        "CANNOT_LISTEN",
        f"cannot listen on {fixed}: in use, or no address of this machine; choose another with --listen",
    )


def tls_ca_of(environ: Mapping[str, str]) -> str:
    """By which clients know a control plane with this environment: its CA, else its certificate, which is the CA."""
    certificate = environ.get("ATHANOR_TLS_CERT", "")
    ca = environ.get("ATHANOR_TLS_CA") or certificate
    return str(Path(ca).expanduser().absolute()) if certificate else ""


def control_plane_env(home: Home, record: ClusterRecord, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the control plane: the user's, with this home and this Ray."""
    serve_host, _, serve_port = record.serve_url.removeprefix("http://").rpartition(":")
    env = {
        **machine_env(environ),
        "ATHANOR_HOME": str(home.root),
        "ATHANOR_LISTEN": record.control_plane,
        "ATHANOR_RAY_DASHBOARD_URL": record.dashboard_url,
        "ATHANOR_SERVE_HOST": serve_host,
        "ATHANOR_SERVE_PORT": serve_port,
        **(loopback_env() if record.owns_ray else {}),
        **(auth_env(Path(record.ray_token_path)) if record.ray_token_path else {}),
    }
    env.pop("RAY_ADDRESS", None)
    return env


def _wait_until_serving(home: Home, record: ClusterRecord, process: ProcessRef, deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    with _health_client(record) as client:
        while process.is_alive and time.monotonic() < deadline:
            if client.is_serving():
                return
            time.sleep(0.1)
    end(process, grace_s=_CONTROL_PLANE_GRACE_S)
    log = home.control_plane_log
    raise StartUpError("CONTROL_PLANE_NOT_STARTED", f"the control plane did not start; the end of {log}:\n{tail(log)}")


def _own_processes(record: ClusterRecord) -> list[tuple[str, ProcessRef, float]]:
    """Name, process, and how long it may take to end; the control plane before the Ray it talks to."""
    processes = [
        ("control plane", record.control_plane_process, _CONTROL_PLANE_GRACE_S),
        ("Ray", record.ray_process if record.owns_ray else None, 5.0),
    ]
    return [(name, ref, grace_s) for name, ref, grace_s in processes if ref is not None]


def _end(name: str, ref: ProcessRef, grace_s: float, say: Say) -> bool:
    num_processes = end(ref, grace_s=grace_s)
    if num_processes:
        say(f"ended {name} ({num_processes} process{'es' if num_processes > 1 else ''}, pid {ref.pid})")
    return num_processes > 0
