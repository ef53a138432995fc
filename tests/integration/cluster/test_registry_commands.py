"""The commands for models, nodes, the queue and projects, in front of a real control plane."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from athanor.v1 import job_service_pb2
from click.testing import Result
from control_plane import ControlPlane
from model_dirs import write_model
from structlog.testing import capture_logs
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.rpc import RequestFailed
from trainer.atomic import sha256_file

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Runs a command as a shell would, and says how it ended. The server's log is no part of its output."""
    monkeypatch.setenv("ATHANOR_ADDRESS", plane.address)
    monkeypatch.setenv("ATHANOR_TOKEN", plane.token)
    monkeypatch.setenv("ATHANOR_HOME", str(tmp_path / "nobody"))

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, arguments)

    with capture_logs():
        yield run


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_model(tmp_path / "source", vocab__txt=b"x" * 3_000_000))


async def output(run: Run, *arguments: str) -> str:
    result = await run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


async def failure(run: Run, *arguments: str) -> str:
    result = await run(*arguments)
    assert result.exit_code != 0
    return result.exception.reason if isinstance(result.exception, RequestFailed) else result.stderr


async def test_a_model_from_its_directory_to_a_download(run: Run, source: str, tmp_path: Path) -> None:
    made = await output(run, "model", "create", "bot", source, "--description", "from the hub", "--request-id", "r-1")
    assert made == "bot@1\n"
    assert await output(run, "model", "create", "bot", source, "--request-id", "r-2", "-o", "name") == "bot@2\n"
    shown = await output(run, "model", "get", "bot@1")
    assert "from the hub" in shown
    path = (await output(run, "model", "path", "bot@1")).strip()
    assert (Path(path) / "config.json").is_file()
    assert "as published" in await output(run, "model", "verify", "bot")
    target = tmp_path / "here"
    assert await output(run, "model", "download", "bot@1", str(target)) == f"{target}\n"
    assert sha256_file(target / "vocab.txt") == sha256_file(Path(path) / "vocab.txt")
    one = await output(run, "model", "download", "bot@1", str(tmp_path / "one"), "--file", "config.json")
    assert Path(one.strip()).read_text() == (target / "config.json").read_text()
    (Path(path) / "vocab.txt").write_bytes(b"")
    assert await failure(run, "model", "verify", "bot@1") == "MODEL_ALTERED"
    assert await failure(run, "model", "download", "bot@1", str(tmp_path / "torn")) == "MODEL_ALTERED"
    assert not (tmp_path / "torn").exists()


async def test_aliases_move_there_and_back(run: Run, source: str) -> None:
    for _ in range(2):
        await output(run, "model", "create", "bot", source)
    await output(run, "model", "alias", "bot@1", "champion")
    await output(run, "model", "alias", "--expected", "1", "bot@2", "champion")
    await output(run, "model", "alias", "set", "bot@1", "stable")
    assert (await output(run, "model", "get", "bot@champion", "-o", "name")) == "bot@2\n"
    await output(run, "model", "rollback", "bot@champion")
    assert await output(run, "model", "alias", "history", "bot@champion", "-o", "name") == "bot@1\nbot@2\nbot@1\n"
    moves = json.loads(await output(run, "model", "alias", "history", "bot@champion", "-o", "json"))
    assert [(move["cause"], move["actor"]) for move in moves] == [
        ("ROLLBACK", "admin"),
        ("SET_ALIAS", "admin"),
        ("SET_ALIAS", "admin"),
    ]
    assert "ROLLBACK" in await output(run, "model", "alias", "history", "bot@champion")
    assert await failure(run, "model", "rollback", "bot@champion") == "NO_EARLIER_VERSION"
    assert await failure(run, "model", "rollback", "bot@stable", "--expected", "2") == "ALIAS_MOVED"
    assert "names no alias" in await failure(run, "model", "rollback", "bot@1")
    assert await failure(run, "model", "alias", "delete", "bot@champion", "--expected", "9") == "ALIAS_MOVED"
    await output(run, "model", "alias", "delete", "bot@champion")
    assert "DELETE_ALIAS" in await output(run, "model", "alias", "history", "bot@champion")
    assert await failure(run, "model", "alias", "delete", "bot@champion") == "MODEL_NOT_FOUND"


async def test_delete_asks_and_keeps_what_is_in_use(run: Run, source: str) -> None:
    for _ in range(2):
        await output(run, "model", "create", "bot", source)
    await output(run, "model", "alias", "bot@1", "champion")
    assert "nothing was deleted" in await failure(run, "model", "delete", "bot@2")
    assert await failure(run, "model", "delete", "bot@1", "--yes") == "MODEL_IN_USE"
    await output(run, "model", "delete", "bot@2", "--yes")
    assert await output(run, "model", "list", "-o", "name") == "bot@1\n"


async def test_cluster_queue_and_projects(run: Run, plane: ControlPlane) -> None:
    assert plane.address in await output(run, "cluster", "info")
    for words, *arguments in (
        ("nobody waits", "queue"),
        ("no models", "model", "list"),
        ("no models of the name bot", "model", "list", "bot"),
        ("no such entries", "audit", "list", "--actor", "nobody"),
    ):
        assert (await run(*arguments)).stderr == f"{words}\n"
    nodes = json.loads(await output(run, "cluster", "nodes", "-o", "json"))
    assert [(node["address"], node["free_cpus"]) for node in nodes] == [("127.0.0.1", 14.5), ("127.0.0.2", 0.0)]
    assert "14.5" in await output(run, "cluster", "nodes")
    await output(run, "project", "set-quota", "care", "--running-jobs", "0", "--weight", "2")
    job = plane.job_message()
    job.project = "care"
    uid = (await plane.jobs.CreateJob(job_service_pb2.CreateJobRequest(job=job))).job.uid
    async with asyncio.timeout(60):
        while json.loads(await output(run, "queue", "-o", "json"))[0]["reason"] != "QUOTA":
            pass
    assert uid in await output(run, "queue", "-o", "wide")
    assert "0 of 0" in await output(run, "project", "list")
    assert await output(run, "project", "list", "-o", "name") == "care\n"
    assert await failure(run, "project", "set-quota", "care", "--cpus", "nan") == "INVALID_QUOTA"
