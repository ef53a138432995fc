"""ModelService over a real channel: models come in, are moved, compared, sent and deleted."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from athanor.v1 import deployment_service_pb2, job_pb2, job_service_pb2, model_service_pb2
from control_plane import ControlPlane
from model_dirs import NUM_PARAMETERS, write_model
from test_job_service import refused

from cluster import model_import
from cluster.model_files import open_plain
from cluster.services import model_content
from cluster.services.pages import make_token
from serving.model_dir import verify


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source", LICENSE=b"", vocab__txt=b"x" * (2 * 1024 * 1024 + 5))


async def create(plane: ControlPlane, path: Path, **fields: Any) -> model_service_pb2.ModelVersion:
    request = model_service_pb2.CreateModelVersionRequest(**{"name": "bot", "path": str(path), **fields})
    return (await plane.models.CreateModelVersion(request)).model_version


async def download(plane: ControlPlane, **fields: Any) -> list[model_service_pb2.DownloadModelVersionResponse]:
    request = model_service_pb2.DownloadModelVersionRequest(**{"reference": "bot@1", **fields})
    return [piece async for piece in plane.models.DownloadModelVersion(request)]


async def set_alias(plane: ControlPlane, version: int, alias: str = "champion") -> None:
    await plane.models.SetAlias(model_service_pb2.SetAliasRequest(name="bot", alias=alias, version=version))


def rollback(plane: ControlPlane, **fields: Any) -> Any:
    request = model_service_pb2.RollbackAliasRequest(name="bot", alias="champion", **fields)
    return plane.models.RollbackAlias(request)


def delete(plane: ControlPlane, reference: str = "bot@1") -> Any:
    return plane.models.DeleteModelVersion(model_service_pb2.DeleteModelVersionRequest(reference=reference))


def verified(plane: ControlPlane, reference: str = "bot@1") -> Any:
    return plane.models.VerifyModelVersion(model_service_pb2.VerifyModelVersionRequest(reference=reference))


def directories(plane: ControlPlane) -> list[str]:
    return sorted(path.name for path in (plane.settings.storage / "models").glob("*/*"))


async def test_directory_becomes_a_version_once(plane: ControlPlane, source: Path) -> None:
    made = await create(plane, source, request_id="r-1", description="from the hub")
    assert (made.name, made.version, made.num_parameters) == ("bot", 1, NUM_PARAMETERS)
    assert (made.description, made.job_uid, list(made.aliases)) == ("from the hub", "", [])
    verify(Path(made.path), made.manifest_sha256)
    assert await create(plane, source, request_id="r-1", description="from the hub") == made
    again = await refused(create(plane, source, request_id="r-1"))
    assert (again.code, again.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert (await create(plane, source)).version == 2
    assert len(directories(plane)) == 2


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"name": "Bot"}, "INVALID_NAME", "name"),
        ({"path": ""}, "MODEL_INVALID", "path"),
        ({"path": "relative"}, "MODEL_INVALID", "path"),
        ({"path": "/etc"}, "MODEL_INVALID", "path"),
        ({"description": "x" * 5000}, "MODEL_INVALID", "description"),
        ({"request_id": "a b"}, "INVALID_REQUEST_ID", "request_id"),
    ],
)
async def test_wrong_requests_are_refused_with_their_field(
    plane: ControlPlane, source: Path, fields: dict[str, str], reason: str, field: str
) -> None:
    error = await refused(create(plane, **{"path": source, **fields}))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert field in error.fields
    assert directories(plane) == []


async def test_pickles_do_not_come_in(plane: ControlPlane, source: Path) -> None:
    (source / "pytorch_model.bin").write_bytes(b"")
    error = await refused(create(plane, source))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNSAFE_MODEL_FILE")


async def test_directory_of_an_unknown_job_is_no_source(plane: ControlPlane) -> None:
    inside = write_model(plane.settings.job_dir("ghost-abcdefgh") / "model")
    error = await refused(create(plane, inside))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND")


async def test_caller_that_goes_away_and_asks_again_gets_the_one_copy(
    plane: ControlPlane, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    whole = model_import.importing

    def held(*args: Any) -> Any:
        begun.set()
        may_go_on.wait(30)
        return (yield from whole(*args))

    monkeypatch.setattr(model_content, "importing", held)
    first = asyncio.create_task(create(plane, source, request_id="r-1"))
    await asyncio.to_thread(begun.wait, 30)
    first.cancel()
    await asyncio.wait([first])
    info = await plane.models.ListModelVersions(model_service_pb2.ListModelVersionsRequest())
    assert list(info.model_versions) == [], "nothing is half registered, and the server answers meanwhile"
    second = asyncio.create_task(create(plane, source, request_id="r-1"))
    may_go_on.set()
    assert (await second).version == 1
    assert len(directories(plane)) == 1


async def test_rollback_and_history(plane: ControlPlane, source: Path) -> None:
    for version in (1, 2):
        await create(plane, source)
        await set_alias(plane, version)
    moved = await refused(rollback(plane, expected_version=1))
    assert (moved.code, moved.reason) == (grpc.StatusCode.ABORTED, "ALIAS_MOVED")
    assert (await rollback(plane, expected_version=2)).model_version.version == 1
    end = await refused(rollback(plane))
    assert (end.code, end.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_EARLIER_VERSION")
    request = model_service_pb2.ListAliasHistoryRequest(name="bot", alias="champion")
    moves = (await plane.models.ListAliasHistory(request)).moves
    assert [(move.version, move.previous_version, move.cause) for move in moves] == [
        (1, 2, "ROLLBACK"),
        (2, 1, "SET_ALIAS"),
        (1, 0, "SET_ALIAS"),
    ]
    assert moves[0].create_time.seconds > 0
    ghost = model_service_pb2.ListAliasHistoryRequest(name="bot", alias="ghost")
    assert (await refused(plane.models.ListAliasHistory(ghost))).reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("name", ["", "Bot", "a\0b", "x" * 1_000_000, "é"])
async def test_names_that_are_none_are_refused_in_few_words(plane: ControlPlane, name: str) -> None:
    calls = [
        plane.models.ListAliasHistory(model_service_pb2.ListAliasHistoryRequest(name=name, alias="x")),
        plane.models.ListAliasHistory(model_service_pb2.ListAliasHistoryRequest(name="x", alias=name)),
        plane.models.RollbackAlias(model_service_pb2.RollbackAliasRequest(name=name, alias="x")),
        plane.models.SetAlias(model_service_pb2.SetAliasRequest(name=name, alias="x", version=1)),
        plane.models.DeleteAlias(model_service_pb2.DeleteAliasRequest(name=name, alias="x")),
        create(plane, Path("/none"), name=name),
        plane.models.CreateModelVersion(model_service_pb2.CreateModelVersionRequest(name="x", path=f"/none/{name}")),
        delete(plane, name),
        verified(plane, name),
        download(plane, reference=name),
    ]
    for call in calls:
        error = await refused(call)
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT
        assert len(error.message) < 2000


async def test_page_tokens_that_somebody_wrote_himself(plane: ControlPlane) -> None:
    for cursor in (["a\0b", 1], ["bot", 2**70], ["bot", -1], ["\ud800", 1], [1, "bot"]):
        token = make_token(cursor, ("models", ""))
        request = model_service_pb2.ListModelVersionsRequest(page_token=token)
        assert (await refused(plane.models.ListModelVersions(request))).reason == "INVALID_PAGE_TOKEN"


async def test_deleted_version_is_gone_with_its_files_and_one_in_use_is_not(plane: ControlPlane, source: Path) -> None:
    await create(plane, source)
    await set_alias(plane, 1)
    held = await refused(delete(plane))
    assert (held.code, held.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_IN_USE")
    assert "bot@champion" in held.message
    assert (await refused(delete(plane, "bot@champion"))).reason == "INVALID_REFERENCE"
    await create(plane, source)
    await set_alias(plane, 2)
    await delete(plane)
    assert (await refused(delete(plane))).reason == "MODEL_NOT_FOUND"
    assert len(directories(plane)) == 1
    assert (await create(plane, source)).version == 3


async def test_model_that_is_served_or_waited_for_is_kept(plane: ControlPlane, source: Path) -> None:
    await create(plane, source)
    wish = deployment_service_pb2.Deployment(name="desk", model="bot@1")
    await plane.deployments.CreateDeployment(deployment_service_pb2.CreateDeploymentRequest(deployment=wish))
    assert "the deployment desk" in (await refused(delete(plane))).message


async def test_altered_version_is_told_file_by_file(plane: ControlPlane, source: Path) -> None:
    made = await create(plane, source)
    whole = await verified(plane)
    assert (whole.model_version.version, whole.num_files) == (1, 6)
    assert whole.num_bytes == sum(path.stat().st_size for path in Path(made.path).iterdir())
    (Path(made.path) / "model.safetensors").write_bytes(b"x")
    (Path(made.path) / "added.json").write_bytes(b"{}")
    (Path(made.path) / "vocab.txt").unlink()
    error = await refused(verified(plane))
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "MODEL_ALTERED")
    assert error.fields == {"model.safetensors": "altered", "added.json": "added", "vocab.txt": "missing"}


async def test_storage_that_is_not_there_is_no_loss_of_data(plane: ControlPlane, source: Path) -> None:
    await create(plane, source)
    models = plane.settings.storage / "models"
    models.rename(models.with_name("away"))
    for call in (verified(plane), download(plane)):
        error = await refused(call)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_UNAVAILABLE")
    models.with_name("away").rename(models)
    await verified(plane)


async def test_download_is_whole_in_small_pieces(plane: ControlPlane, source: Path) -> None:
    made = await create(plane, source)
    files: dict[str, bytes] = {}
    for piece in await download(plane):
        assert len(piece.data) <= 1024 * 1024
        files[piece.file] = files.get(piece.file, b"") + piece.data
        assert (piece.next_offset, piece.size) == (
            len(files[piece.file]),
            (Path(made.path) / piece.file).stat().st_size,
        )
    assert list(files) == sorted(path.name for path in Path(made.path).iterdir())
    assert all((Path(made.path) / name).read_bytes() == data for name, data in files.items())
    assert hashlib.sha256(files["athanor.json"]).hexdigest() == made.manifest_sha256


@pytest.mark.parametrize("offset", [0, 1, 1024 * 1024, 2 * 1024 * 1024 + 5])
async def test_download_goes_on_behind_what_is_there(plane: ControlPlane, source: Path, offset: int) -> None:
    await create(plane, source)
    pieces = await download(plane, file="vocab.txt", after_offset=offset)
    assert {piece.file for piece in pieces} == {"vocab.txt"}
    assert b"".join(piece.data for piece in pieces) == (source / "vocab.txt").read_bytes()[offset:]
    assert pieces[-1].next_offset == pieces[-1].size == 2 * 1024 * 1024 + 5


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"file": "../../../athanor.db"}, "MODEL_FILE_UNKNOWN"),
        ({"file": "/etc/passwd"}, "MODEL_FILE_UNKNOWN"),
        ({"after_offset": 4}, "INVALID_OFFSET"),
        ({"file": "config.json", "after_offset": -1}, "INVALID_OFFSET"),
        ({"file": "config.json", "after_offset": 10**9}, "OFFSET_TOO_LARGE"),
        ({"reference": "bot@2"}, "MODEL_NOT_FOUND"),
        ({"reference": "../x"}, "INVALID_REFERENCE"),
    ],
)
async def test_what_cannot_be_downloaded(
    plane: ControlPlane, source: Path, fields: dict[str, Any], reason: str
) -> None:
    await create(plane, source)
    assert (await refused(download(plane, **fields))).reason == reason


async def test_altered_file_does_not_come_out_as_if_it_were_whole(plane: ControlPlane, source: Path) -> None:
    made = await create(plane, source)
    path = Path(made.path) / "vocab.txt"
    path.write_bytes(b"y" * path.stat().st_size)
    error = await refused(download(plane, file="vocab.txt"))
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "MODEL_ALTERED")
    path.unlink()
    path.symlink_to(source / "vocab.txt")
    assert (await refused(download(plane))).fields == {"vocab.txt": "altered"}


@pytest.fixture
def open_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    opened: list[Any] = []

    def opening(root: Path, name: str) -> Any:
        opened.append(open_plain(root, name))
        return opened[-1]

    monkeypatch.setattr(model_content, "open_plain", opening)
    return opened


async def test_download_that_nobody_reads_any_more_closes_its_file(
    plane: ControlPlane, source: Path, open_files: list[Any]
) -> None:
    (source / "vocab.txt").write_bytes(b"x" * (32 * 1024 * 1024))
    await create(plane, source)
    request = model_service_pb2.DownloadModelVersionRequest(reference="bot@1", file="vocab.txt")
    stream = plane.models.DownloadModelVersion(request)
    await stream.read()
    assert not open_files[0].closed
    stream.cancel()
    async with asyncio.timeout(30):
        while not open_files[0].closed:
            await asyncio.sleep(0.01)


async def test_job_that_waits_keeps_its_teacher(plane: ControlPlane, source: Path) -> None:
    await create(plane, source)
    held = {"hold_until": "2999-01-01T00:00:00Z"}
    student = plane.job_message("next", student={"model": "bot@1"}, schedule=held)
    uid = (await plane.jobs.CreateJob(job_service_pb2.CreateJobRequest(job=student))).job.uid
    assert uid in (await refused(delete(plane))).message
    await plane.jobs.CancelJob(job_service_pb2.CancelJobRequest(uid=uid))
    await plane.until(uid, job_pb2.JOB_STATE_CANCELLED)
    await delete(plane)
