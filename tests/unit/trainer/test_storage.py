"""A storage that is full: said with its path, nothing half-written stays, and with room again all goes on (I4)."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from full_disk import files_up_to
from safetensors.torch import load_file

from tests.tiny_jobs import fine_tune_job
from trainer.checkpoint import CheckpointWriter, Progress, Topology, latest_good
from trainer.errors import StorageError
from trainer.fit import fit
from trainer.job import JobContext
from trainer.listener import Silent
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.publishing import publish_model
from trainer.step_log import StepLog
from trainer.storage import storage_error, writing

SMALL = 20_000
"""Bytes: more than logs and configs, less than weights or optimizer."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(("shard", "weights"), [(10_000, 2), (2, 10_000)], ids=["shard", "weights"])
def test_a_checkpoint_that_finds_no_room_leaves_the_one_before_alone(tmp_path, shard, weights):
    topology = Topology(world=1, zero_stage=2, precision="fp32", engine="torch")
    writer = CheckpointWriter(tmp_path, keep=1, topology=topology, spec={}, peers=Peers.alone())
    tensors = {"0.master": torch.ones(shard)}, {"w": torch.ones(weights)}
    writer.save(Progress(2), *tensors)
    with files_up_to(SMALL), pytest.raises(StorageError, match=r"step-00000004 cannot be written: File too large"):
        writer.save(Progress(4), *tensors)
    assert names(tmp_path) == ["step-00000002"]
    found = latest_good(tmp_path, Silent())
    assert found is not None
    assert found.progress.step == 2
    writer.save(Progress(4), *tensors)
    assert names(tmp_path) == ["step-00000004"]


class FullAfter(Silent):
    """Lets the storage be full from this many checkpoints on, until `room` is closed."""

    def __init__(self, checkpoints: int) -> None:
        self.left, self.room = checkpoints, ExitStack()

    def event(self, reason: str, message: str) -> None:
        self.left -= reason == "CHECKPOINT_SAVED"
        if self.left == 0:
            self.room.enter_context(files_up_to(SMALL))


def learn(ctx: JobContext, listener: Silent) -> None:
    prepare(ctx)
    fit(ctx, "student", Peers.alone(), None, listener, engine="torch")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> JobContext:
    ctx = fine_tune_job(tmp_path_factory.mktemp("undisturbed"))
    learn(ctx, Silent())
    return ctx


@pytest.mark.parametrize(("checkpoints", "path"), [(1, "checkpoints/step-00000004"), (2, "model")])
def test_with_room_again_a_learner_goes_on_as_if_nothing_had_been(tmp_path, undisturbed, checkpoints, path):
    ctx, full = fine_tune_job(tmp_path), FullAfter(checkpoints)
    with full.room, pytest.raises(StorageError) as caught:
        learn(ctx, full)
    assert caught.value.reason == "STORAGE_FULL"
    assert str(ctx.role_dir("student") / path) in str(caught.value)
    assert names(ctx.role_dir("student")) == ["checkpoints", "metrics.jsonl", "tensorboard"]
    assert names(ctx.checkpoints_dir("student")) == [f"step-{2 * n:08d}" for n in range(1, checkpoints + 1)]
    learn(ctx, Silent())
    ours, theirs = (load_file(one.model_dir("student") / "model.safetensors") for one in (ctx, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_model_that_finds_no_room_is_not_published(tmp_path, undisturbed):
    source, target = undisturbed.model_dir("student"), tmp_path / "models" / "bot"
    with files_up_to(SMALL), pytest.raises(StorageError, match=f"{target} cannot be written") as caught:
        publish_model(undisturbed, source, target, {})
    assert caught.value.reason == "STORAGE_FULL"
    assert names(target.parent) == []
    publish_model(undisturbed, source, target, {})
    assert (target / "athanor.json").is_file()


def test_a_disk_without_space_is_named_where_the_error_names_no_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught:
        Path("/dev/full").write_text("word")
    assert caught.value.filename is None
    found = storage_error(caught.value, tmp_path)
    assert found is not None
    assert found.reason == "STORAGE_FULL"
    assert str(found).startswith(f"{tmp_path} cannot be written: No space left on device.")


def test_what_is_broken_is_told_from_what_is_full_and_from_other_errors(tmp_path):
    broken = storage_error(OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/x"), tmp_path)
    assert broken is not None
    assert broken.reason == "STORAGE_FAILED"
    assert str(broken).startswith("/data/x cannot be used: Read-only file system.")
    assert storage_error(FileNotFoundError(errno.ENOENT, "no such file"), tmp_path) is None
    assert storage_error(ConnectionResetError(errno.ECONNRESET, "reset"), tmp_path) is None


def test_an_error_about_something_else_stays_what_it_is_and_leaves_nothing_either(tmp_path):
    temporary = tmp_path / ".x.tmp"
    temporary.mkdir()
    with pytest.raises(FileNotFoundError), writing(tmp_path / "x", temporary):
        (tmp_path / "nowhere" / "x").read_text()
    assert names(tmp_path) == []


def test_a_line_that_a_full_disk_cut_is_dropped_with_its_step(tmp_path):
    path = tmp_path / "samples-0.jsonl"
    log = StepLog(path, step=0)
    log.write({"step": 1})
    with files_up_to(path.stat().st_size + 5), pytest.raises(OSError, match="File too large"):
        log.write({"step": 2})
    assert path.read_text().count("\n") == 1
    StepLog(path, step=1).write({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
