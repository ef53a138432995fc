"""A PostgreSQL of the test session's own: a free port, its own directory, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

_UNPRIVILEGED = ("postgres", "nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _as_user() -> tuple[list[str], int | None]:
    """PostgreSQL refuses to run as root: the words before a command, and who shall own its files."""
    if os.geteuid() != 0:
        return [], None
    for name in _UNPRIVILEGED:
        try:
            return ["runuser", "-u", name, "--"], pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is no user to run it as")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a server, without a database name."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's initdb is not installed")
    prefix, owner = _as_user()
    root = Path(tempfile.mkdtemp(prefix="athpg-"))
    if owner is not None:
        os.chown(root, owner, -1)
    data, port = root / "data", _free_port()
    run = {"check": True, "cwd": root, "stdout": subprocess.DEVNULL}
    subprocess.run([*prefix, binaries / "initdb", "-D", data, "-A", "trust", "-U", "athanor", "-E", "UTF8"], **run)
    options = f"-p {port} -k {root} -c listen_addresses=127.0.0.1 -c fsync=off"
    start = [*prefix, binaries / "pg_ctl", "-D", data, "-o", options, "-l", root / "log", "-w", "start"]
    subprocess.run(start, **run)
    try:
        yield f"postgresql+psycopg://athanor@127.0.0.1:{port}"
    finally:
        subprocess.run([*prefix, binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], **run)
        shutil.rmtree(root)


def new_database(server: str) -> str:
    """URL of an empty database on that server."""
    name = f"t{uuid.uuid4().hex}"
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"
