"""A directory from outside becomes one of the registry's, whole or not at all; and is compared with its manifest."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from athanor.v1.model_service_pb2 import CreateModelVersionRequest
from model_dirs import NUM_PARAMETERS, write_model

from cluster import model_files
from cluster.errors import ClusterError, DataLoss, InvalidInput, PreconditionFailed, ResourceExhausted
from cluster.model_files import comparing, manifest_files, open_plain
from cluster.model_import import Imported, find_source, importing, job_of, remove
from cluster.security.caller import Caller, Role, calling
from cluster.services.model_content import ModelContent
from cluster.settings import Settings
from cluster.store.records import StoredModel
from cluster.store.store import Store
from serving.model_dir import verify
from trainer.atomic import sha256_file

T = TypeVar("T")


def ended(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home")
    for name in ("jobs", "models"):
        (settings.storage / name).mkdir(parents=True)
    return settings


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source", chat_template__jinja=b"")


def imported(settings: Settings, source: Path) -> Imported:
    return ended(importing(settings, "bot", source, {"source": str(source), "actor": "me"}))


def stored(found: Imported) -> StoredModel:
    return StoredModel("bot", 1, str(found.path), found.manifest_sha256, None, (), 6, {}, 0)


def left(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.storage / "models").glob("*/*"))


def test_copy_is_whole_and_what_serving_wants(settings: Settings, source: Path) -> None:
    found = imported(settings, source)
    assert found.path.parent == settings.storage / "models" / "bot"
    assert found.num_parameters == NUM_PARAMETERS
    manifest = json.loads((found.path / "athanor.json").read_text())
    assert set(manifest["files"]) == {path.name for path in source.iterdir()}
    assert manifest["report"]["parameters"]["student"] == NUM_PARAMETERS
    assert verify(found.path, found.manifest_sha256).lineage.job_uid is None
    for path in source.iterdir():
        assert (found.path / path.name).read_bytes() == path.read_bytes()
    assert left(settings) == [found.path.name], "nothing temporary stays"


def test_import_that_is_given_up_leaves_nothing(
    settings: Settings, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "PIECE", 7)
    count = sum(1 for _ in importing(settings, "bot", source, {}))
    assert count > 10
    whole = left(settings)
    for step in range(1, count + 1):
        steps = importing(settings, "bot", source, {})
        for _ in range(step):
            next(steps)
        assert [name for name in left(settings) if name.startswith(".")] != []
        steps.close()
        assert left(settings) == whole


def test_source_that_changes_under_the_copy_is_not_registered(
    settings: Settings, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "PIECE", 7)
    steps = importing(settings, "bot", source, {})
    next(steps)
    (source / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        ended(steps)
    assert left(settings) == []
    steps = importing(settings, "bot", write_model(source), {})
    next(steps)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match=r"tokenizer\.json"):
        ended(steps)
    assert left(settings) == []


def test_published_model_keeps_its_lineage_and_must_be_as_it_was(settings: Settings, source: Path) -> None:
    first = imported(settings, source)
    manifest = json.loads((first.path / "athanor.json").read_text())
    (first.path / "athanor.json").write_text(json.dumps({**manifest, "job": "bot-aaaaaaaa", "kind": "Distill"}))
    second = imported(settings, first.path)
    assert json.loads((second.path / "athanor.json").read_text())["origin"]["job"] == "bot-aaaaaaaa"
    (first.path / "chat_template.jinja").write_text("other")
    with pytest.raises(InvalidInput, match=r"chat_template\.jinja is not the file"):
        imported(settings, first.path)


def test_full_storage_is_told_before_anything_is_copied(
    settings: Settings, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(settings.storage)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(PreconditionFailed, match="room for 10") as caught:
        imported(settings, source)
    assert caught.value.reason == "STORAGE_FULL"
    assert left(settings) == []


@pytest.mark.parametrize("path", ["", "relative", "/a/../b", "/none/there", "~/x", "/dev/null", "/a\0b", "/"])
def test_paths_that_are_no_directory_of_a_model(settings: Settings, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        find_source(settings, path)
    assert (caught.value.reason, caught.value.violations[0].path) == ("MODEL_INVALID", "path")


def test_source_in_the_directory_of_a_job_is_that_jobs(settings: Settings, source: Path) -> None:
    inside = write_model(settings.job_dir("bot-abcdefgh") / "student" / "model")
    assert job_of(settings, find_source(settings, str(inside))) == "bot-abcdefgh"
    link = source.with_name("link")
    link.symlink_to(inside)
    assert job_of(settings, find_source(settings, str(link))) == "bot-abcdefgh", "a link hides nothing"
    assert job_of(settings, find_source(settings, str(source))) == ""
    with pytest.raises(InvalidInput, match="the storage itself"):
        find_source(settings, str(settings.storage))


def test_version_that_is_as_published_is_read_whole(settings: Settings, source: Path) -> None:
    found = imported(settings, source)
    read = ended(comparing(stored(found)))
    sizes = [path.stat().st_size for path in found.path.iterdir()]
    assert (read.num_files, read.num_bytes) == (len(sizes), sum(sizes))


def change_a_byte(root: Path) -> None:
    data = bytearray((root / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (root / "model.safetensors").write_bytes(data)


def link_away(root: Path) -> None:
    (root / "config.json").rename(root.parent / "config.json")
    (root / "config.json").symlink_to(root.parent / "config.json")


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (change_a_byte, {"model.safetensors": "altered"}),
        (lambda root: (root / "config.json").unlink(), {"config.json": "missing"}),
        (lambda root: (root / "x.json").write_text("{}"), {"x.json": "added"}),
        (link_away, {"config.json": "altered"}),
        (lambda root: (root / "athanor.json").write_text('{"files": {}}'), {"athanor.json": "altered"}),
        (lambda root: (root / "athanor.json").unlink(), {"athanor.json": "cannot be read"}),
        (shutil.rmtree, {"athanor.json": "cannot be read"}),
    ],
)
def test_each_difference_is_named(
    settings: Settings, source: Path, harm: Callable[[Path], Any], expected: dict[str, str]
) -> None:
    found = imported(settings, source)
    harm(found.path)
    with pytest.raises(DataLoss) as caught:
        ended(comparing(stored(found)))
    assert caught.value.reason == "MODEL_ALTERED"
    assert {each.path: each.message for each in caught.value.violations} == expected


def test_only_so_many_differences_are_told_and_names_that_are_no_text_can_be(settings: Settings, source: Path) -> None:
    found = imported(settings, source)
    for number in range(50):
        (found.path / f"added-{number}.json").write_text("{}")
    (found.path / "\udcff.json").write_text("{}")
    with pytest.raises(DataLoss, match="and 31 more") as caught:
        ended(comparing(stored(found)))
    assert len(caught.value.violations) == 20
    caught.value.message.encode()
    for number in range(50):
        (found.path / f"added-{number}.json").unlink()
    with pytest.raises(DataLoss, match=r"\\udcff\.json added") as caught:
        ended(comparing(stored(found)))
    caught.value.message.encode()


def test_manifest_cannot_name_what_lies_outside(settings: Settings, source: Path) -> None:
    found = imported(settings, source)
    (found.path / "athanor.json").write_text('{"files": {"../../x": "00", "/etc/passwd": "00"}}')
    model = replace(stored(found), manifest_sha256=sha256_file(found.path / "athanor.json"))
    assert len(manifest_files(model)) == 3
    with pytest.raises(DataLoss, match=r"/etc/passwd altered"):
        ended(comparing(model))


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "link/x", "x\0", "directory"])
def test_names_that_are_no_plain_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "root" / "directory").mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    (tmp_path / "x").write_text("")
    with pytest.raises(ClusterError) as caught:
        open_plain(tmp_path / "root", name)
    assert caught.value.reason == "UNSAFE_MODEL_FILE"


def test_only_what_lies_in_the_registrys_place_is_removed(settings: Settings, source: Path) -> None:
    found = imported(settings, source)
    for path in (source, settings.storage / "models", settings.storage / "models" / "bot", settings.storage / "jobs"):
        remove(settings, path)
        assert path.is_dir()
    remove(settings, settings.storage / "models" / "x" / ".." / ".." / ".." / source.name)
    assert source.is_dir()
    remove(settings, found.path)
    remove(settings, found.path)
    assert left(settings) == []


async def test_who_asks_and_goes_away_again_and_again_is_told_to_wait(settings: Settings, tmp_path: Path) -> None:
    """Each import goes on without its caller, who has no request id to find it again by."""
    store = Store.open(settings.database_url)
    source = write_model(tmp_path / "source")
    content = ModelContent(settings, store)
    request = CreateModelVersionRequest(name="bot", path=str(source))
    for _ in range(2):
        await content._room.acquire()  # nothing is brought in meanwhile
    with calling(Caller("ann", Role.SUBMITTER, token_id="a")):
        asked = [asyncio.create_task(content.create(request)) for _ in range(12)]
        refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        while len(refused) < 4:
            refused, _ = await asyncio.wait(asked, timeout=0.05)
    assert {type(task.exception()) for task in refused} == {ResourceExhausted}
    with calling(Caller("bob", Role.SUBMITTER, token_id="b")):
        other = asyncio.create_task(content.create(request))
    content._room.release()
    content._room.release()
    assert (await other).name == "bot"
    assert {(await task).name for task in asked if task not in refused} == {"bot"}
    assert not content._asked_by
    store.close()
