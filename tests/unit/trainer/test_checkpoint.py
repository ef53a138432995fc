"""Checkpoints: whole or not used; what is damaged is said and passed over."""

import hashlib
import json

import pytest
import torch

from trainer.checkpoint import CheckpointWriter, Progress, Topology, latest_good, read
from trainer.errors import CheckpointError
from trainer.listener import Silent
from trainer.peers import Peers

TOPOLOGY = Topology(world=1, zero_stage=2, precision="fp32", engine="torch")


class Heard(Silent):
    def __init__(self):
        self.events = []

    def event(self, reason, message):
        self.events.append((reason, message))


def save(directory, *steps, keep=9):
    writer = CheckpointWriter(directory, keep=keep, topology=TOPOLOGY, spec={"x": 1}, peers=Peers.alone())
    return [
        writer.save(Progress(step, 10 * step, 1.5, 0.25), {"0.master": torch.full((3,), step)}, {"w": torch.ones(2)})
        for step in steps
    ]


def test_what_was_saved_is_what_is_read(tmp_path):
    torch.manual_seed(4)
    save(tmp_path, 20)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    found = latest_good(tmp_path, Heard())
    assert found is not None
    assert found.progress == Progress(20, 200, 1.5, 0.25)
    assert found.topology == TOPOLOGY
    assert torch.equal(found.weights()["w"], torch.ones(2))
    shard = found.shard(0)
    assert list(shard) == ["0.master"]
    assert torch.equal(torch.rand(3), drawn), "the random state goes on where it was"
    assert json.loads((found.path / "manifest.json").read_text())["spec"] == {"x": 1}


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 2, 4, 6, 8, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_does_not_outlive_what_is_saved_instead(keep, tmp_path):
    _, newest = save(tmp_path, 2, 8, keep=2)
    flip(newest / "model.safetensors")
    save(tmp_path, 4, keep=keep)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000002", "step-00000004"][-keep:]
    found = latest_good(tmp_path, Heard())
    assert found is not None
    assert found.progress.step == 4


def tear(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer-00000.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [tear, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, name, damage):
    _, newest = save(tmp_path, 2, 4)
    damage(newest / name)
    heard = Heard()
    found = latest_good(tmp_path, heard)
    assert found is not None
    assert found.progress.step == 2
    [(reason, message)] = heard.events
    assert reason == "CHECKPOINT_DAMAGED"
    assert "step-00000004" in message


def test_one_altered_bit_is_seen(tmp_path):
    [path] = save(tmp_path, 2)
    flip(path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is torn, altered or missing"):
        read(path)


def test_what_was_being_written_does_not_count(tmp_path):
    save(tmp_path, 2)
    (tmp_path / ".step-00000004.tmp").mkdir()
    found = latest_good(tmp_path, Heard())
    assert found is not None
    assert found.progress.step == 2


def test_no_checkpoint_at_all(tmp_path):
    assert latest_good(tmp_path / "none", Heard()) is None


@pytest.mark.parametrize(
    "malformed",
    [
        [],
        {"files": ["model.safetensors"]},
        {"files": {"../../outside": hashlib.sha256(b"{}").hexdigest()}},
        {"files": {"": "0"}},
        {"files": {"a\0b": "0"}},
        {"files": {"x" * 5000: "0"}},
        {"files": {"model.safetensors": 3}},
        {"progress": []},
        {"progress": {"step": "4"}},
        {"progress": {"stop": 4}},
        {"topology": {"world": "one", "zero_stage": 2, "precision": "fp32", "engine": "torch"}},
    ],
)
def test_a_malformed_manifest_is_damage_and_the_one_before_is_used(tmp_path, malformed):
    _, newest = save(tmp_path / "checkpoints", 2, 4)
    (tmp_path / "outside").write_text("{}")  # whose sha256 is right
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps({**manifest, **malformed} if malformed else malformed))
    heard = Heard()
    found = latest_good(newest.parent, heard)
    assert found is not None
    assert found.progress.step == 2
    assert [reason for reason, _ in heard.events] == ["CHECKPOINT_DAMAGED"]


def test_a_manifest_that_leaves_a_shard_out_is_refused(tmp_path):
    [path] = save(tmp_path, 2)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["optimizer-00000.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="lacks optimizer-00000"):
        read(path)


def test_another_topology_is_refused_with_what_changed(tmp_path):
    [path] = save(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"world was 1 and is 2, zero_stage was 2 and is 3") as error:
        read(path).require(Topology(world=2, zero_stage=3, precision="fp32", engine="torch"))
    assert error.value.reason == "CHECKPOINT_TOPOLOGY"
    read(path).require(TOPOLOGY)
