"""What a machine needs to run Athanor, checked one by one; each finding says how to mend it. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from cluster.errors import StartUpError
from cluster.home import DEFAULT_ADDRESS, ClusterRecord, Home
from cluster.local import SERVE_PORT, control_plane_answers, has_gpu, is_free, ray_answers
from cluster.ray_head import HOST

GIB = 1024**3
_PACKAGES = ("torch", "ray", "deepspeed", "transformers", "datasets", "grpcio", "protobuf", "sqlalchemy", "pydantic")


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    message: str
    mend: str = ""


def examine(home: Home) -> list[Finding]:
    """Every check, in the order in which people would mend."""
    checks: tuple[Callable[[], Finding], ...] = (
        _python,
        _packages,
        _memory,
        lambda: _disk(home),
        _shared_memory,
        _accelerator,
        lambda: _home_writable(home),
    )
    return [*(check() for check in checks), *_cluster(home)]


def is_fit(findings: list[Finding]) -> bool:
    """Whether nothing failed; warnings are allowed."""
    return all(finding.status is not Status.FAIL for finding in findings)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    return _finding("python", fits, f"{version} at {sys.executable}", "install Python 3.11, 3.12 or 3.13")


def _packages() -> Finding:
    versions = {name: _version(name) for name in _PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    message = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        return Finding("packages", Status.FAIL, f"not installed: {', '.join(missing)}", "install Athanor again")
    return Finding("packages", Status.OK, message)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    message = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    return _least("memory", memory.available / GIB, 3, 6, message, "the quickstart takes up to 6 GiB; close programs")


def _disk(home: Home) -> Finding:
    place = next(path for path in (home.root, *home.root.parents) if path.exists())
    free = shutil.disk_usage(place).free / GIB
    return _least(
        "disk", free, 2, 10, f"{free:.1f} GiB free at {place}", "free some space, or set ATHANOR_HOME elsewhere"
    )


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", Status.WARN, "no /dev/shm", "Ray will use /tmp, which is slower")
    free = shutil.disk_usage(place).free / GIB
    mend = "Ray keeps 0.5 GiB of objects there; in a container use --shm-size=2g"
    return _least("shared memory", free, 0.1, 0.6, f"{free:.1f} GiB free at {place}", mend)


def _accelerator() -> Finding:
    return Finding("accelerator", Status.OK, "an NVIDIA GPU" if has_gpu() else "no GPU: everything runs on CPUs")


def _home_writable(home: Home) -> Finding:
    place = next(path for path in (home.root, *home.root.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding("home", Status.OK, f"{home.root} can be written")
    except OSError as error:
        mend = "give yourself the right to write there, or set ATHANOR_HOME elsewhere"
        return Finding("home", Status.FAIL, f"{home.root} cannot be written: {error.strerror}", mend)


def _cluster(home: Home) -> list[Finding]:
    """What the record says, looked at; a record that cannot be read hides the rest."""
    try:
        record = home.read_record()
    except StartUpError as error:
        mend = "mend it, or end what still runs and delete it; then: athanor up"
        return [Finding("record", Status.FAIL, error.message, mend)]
    return [_ports(record), _ray(record), _control_plane(home, record)]


def _ports(record: ClusterRecord | None) -> Finding:
    ours = {record.control_plane, record.serve_url.removeprefix("http://")} if record else set()
    addresses = {"control plane": DEFAULT_ADDRESS, "serving": f"{HOST}:{SERVE_PORT}"}
    foreign = {what: address for what, address in addresses.items() if address not in ours}
    taken = [f"{address} ({what})" for what, address in foreign.items() if not is_free(address)]
    if not taken:
        return Finding("ports", Status.OK, "in use by the local cluster" if record else "the usual ones are free")
    if record is not None:
        return Finding("ports", Status.OK, f"in use by others: {', '.join(taken)}; the local cluster has its own")
    return Finding("ports", Status.WARN, f"in use: {', '.join(taken)}", "`athanor up` takes free ones instead")


def _ray(record: ClusterRecord | None) -> Finding:
    if record is None:
        return Finding("ray", Status.WARN, "not up", "athanor up")
    return _finding("ray", ray_answers(record), f"dashboard {record.dashboard_url}", "it does not answer: athanor up")


def _control_plane(home: Home, record: ClusterRecord | None) -> Finding:
    if record is None or not record.control_plane:
        return Finding("control plane", Status.WARN, "not up", "athanor up")
    mend = f"it does not answer: athanor up; its log is {home.control_plane_log}"
    return _finding("control plane", control_plane_answers(record), record.control_plane, mend)


def _finding(name: str, fits: bool, message: str, mend: str) -> Finding:
    return Finding(name, Status.OK, message) if fits else Finding(name, Status.FAIL, message, mend)


def _least(name: str, value: float, fail_below: float, warn_below: float, message: str, mend: str) -> Finding:
    if value >= warn_below:
        return Finding(name, Status.OK, message)
    return Finding(name, Status.FAIL if value < fail_below else Status.WARN, message, mend)
