"""A model comes over whole or not at all: checked by hash, resumed where it was cut, never outside its directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from athanor.v1 import model_service_pb2
from fake_server import FakeControlPlane, serving

from cluster.client import AsyncAthanorClient, AthanorClient, RequestFailed
from cluster.errors import DataLoss, InvalidInput
from trainer.errors import UserError

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 8, "extra/notes.txt": b"words"}


def register(plane: FakeControlPlane, files: dict[str, bytes], listed: dict[str, str] | None = None) -> None:
    """A version of these files, with a manifest that lists them as they are, or as `listed` says."""
    hashes = listed or {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = json.dumps({"files": hashes}).encode()
    plane.files = {**files, "athanor.json": manifest}
    plane.models["bot@1"] = plane.models["bot"] = model_service_pb2.ModelVersion(
        name="bot", version=1, manifest_sha256=hashlib.sha256(manifest).hexdigest()
    )


@pytest.fixture
def plane() -> FakeControlPlane:
    plane = FakeControlPlane()
    register(plane, FILES)
    return plane


@pytest.fixture
def client(plane: FakeControlPlane) -> Iterator[AthanorClient]:
    server, address = serving(plane)
    with AthanorClient(address, patience_s=20.0) as client:
        yield client
    server.stop(None).wait()


def test_all_files_come_with_their_manifest(client: AthanorClient, plane: FakeControlPlane, tmp_path: Path) -> None:
    place = client.download_model_version("bot", tmp_path / "bot")
    assert {name: (place / name).read_bytes() for name in plane.files} == plane.files
    assert [path.name for path in tmp_path.iterdir()] == ["bot"]


async def test_the_asynchronous_client_brings_the_same(plane: FakeControlPlane, tmp_path: Path) -> None:
    server, address = serving(plane)
    async with AsyncAthanorClient(address) as client:
        place = await client.download_model_version("bot", tmp_path / "bot")
    server.stop(None).wait()
    assert (place / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_cut_stream_goes_on_at_its_byte(client: AthanorClient, plane: FakeControlPlane, tmp_path: Path) -> None:
    plane.cut_after = {512, 1024}
    place = client.download_model_version("bot@1", tmp_path / "bot")
    assert (place / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [at for name, at in plane.reads if name == "model.safetensors"] == [0, 768, 1280]


def test_a_second_try_asks_for_the_rest_alone(client: AthanorClient, plane: FakeControlPlane, tmp_path: Path) -> None:
    plane.refused_after = 1024
    with pytest.raises(RequestFailed):
        client.download_model_version("bot", tmp_path / "bot")
    assert not (tmp_path / "bot").exists()
    plane.refused_after, plane.reads = None, []
    place = client.download_model_version("bot", tmp_path / "bot")
    assert (place / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert ("model.safetensors", 1280) in plane.reads
    assert "config.json" not in [name for name, _ in plane.reads]


def test_what_is_not_as_the_manifest_says_is_refused(
    client: AthanorClient, plane: FakeControlPlane, tmp_path: Path
) -> None:
    plane.files["config.json"] = b"{!}"
    with pytest.raises(DataLoss, match=r"config\.json of bot@1 arrived"):
        client.download_model_version("bot", tmp_path / "bot")
    assert not (tmp_path / "bot").exists()
    plane.files["config.json"] = FILES["config.json"]
    assert (client.download_model_version("bot", tmp_path / "bot") / "config.json").read_bytes() == b"{}"


def test_a_manifest_that_leads_out_is_refused(client: AthanorClient, plane: FakeControlPlane, tmp_path: Path) -> None:
    register(plane, {}, {"../evil": "0" * 64})
    with pytest.raises(UserError, match="not a plain relative path"):
        client.download_model_version("bot", tmp_path / "bot")


def test_one_file_comes_alone(client: AthanorClient, plane: FakeControlPlane, tmp_path: Path) -> None:
    place = client.download_model_version("bot", tmp_path / "here", file="config.json")
    assert place == tmp_path / "here" / "config.json"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["config.json"]
    with pytest.raises(InvalidInput, match=r"no file 'none'; it has config\.json"):
        client.download_model_version("bot", tmp_path / "here", file="none")


def test_a_directory_with_something_in_it_is_left_alone(client: AthanorClient, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InvalidInput, match="is not empty"):
        client.download_model_version("bot", tmp_path)
