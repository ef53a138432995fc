"""Which directories are served."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil

import pytest
from safetensors.torch import load_file, save_file

from serving.errors import ModelDirectoryError
from serving.loading import load
from serving.model_dir import Lineage, verify
from trainer.job import JobContext
from trainer.publishing import publish_model
from trainer.spec import FineTuneSpec

WEIGHTS = "model.safetensors"


@pytest.fixture
def directory(chat_model_dir, tmp_path):
    return shutil.copytree(chat_model_dir, tmp_path / "model")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def publish(directory, **changes):
    """Write the manifest that a job would have written."""
    files = {path.name: sha256(path) for path in directory.iterdir() if path.is_file() and path.name != "athanor.json"}
    (directory / "athanor.json").write_text(json.dumps({"job": "support-bot-7k2m9qxa", "files": files, **changes}))


def test_a_plain_directory_has_no_lineage(directory):
    found = verify(directory)
    assert found.path == directory.resolve()
    assert found.lineage == Lineage()


def test_what_a_job_published_tells_where_it_comes_from(directory, tmp_path):
    document = {"student": {"config": {"model_type": "llama"}}, "data": {"train": "x"}, "training": {"max_steps": 1}}
    ctx = JobContext(tmp_path / "support-bot-7k2m9qxa", "FineTune", FineTuneSpec.model_validate(document))
    report = {"lineage": {"teacher": "support-teacher@3"}}
    target = tmp_path / "published"
    manifest_sha256 = publish_model(ctx, directory, target, {"report": report})
    assert verify(target).lineage == Lineage("support-bot-7k2m9qxa", ("support-teacher@3",), manifest_sha256)


@pytest.mark.parametrize("report", [None, [], {"lineage": {"teacher": None}}, {"lineage": 3}])
def test_a_model_without_a_teacher_names_none(directory, report):
    publish(directory, report=report)
    assert verify(directory).lineage.teachers == ()


def refused(directory, words):
    with pytest.raises(ModelDirectoryError, match=words):
        verify(directory)


def test_no_directory(tmp_path):
    refused(tmp_path / "nowhere", "there is no model directory")


def test_no_config(directory):
    (directory / "config.json").unlink()
    refused(directory, "has no config.json")


def test_a_config_that_is_not_json(directory):
    (directory / "config.json").write_text("{")
    refused(directory, "cannot be read as JSON")


def test_pickles_only(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    refused(directory, r"only pickled ones \(pytorch_model.bin\)")


def test_no_weights(directory):
    (directory / "model.safetensors").unlink()
    refused(directory, "there are none")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_altered_file(directory, name):
    publish(directory)
    with (directory / name).open("ab") as file:
        file.write(b" ")
    refused(directory, f"{name} .* its sha256 differs")


def test_a_missing_file(directory):
    publish(directory)
    (directory / "tokenizer.json").unlink()
    refused(directory, "tokenizer.json is missing")


def test_a_file_that_was_added(directory):
    publish(directory)
    (directory / "adapter_config.json").write_text("{}")
    refused(directory, "adapter_config.json .* was added after publishing")


@pytest.mark.parametrize("name", ["chat_templates/default.jinja", "original/deep/model.safetensors"])
def test_a_file_that_was_added_further_down(directory, name):
    publish(directory)
    (directory / name).parent.mkdir(parents=True)
    (directory / name).write_text("{}")
    refused(directory, f"{name} .* was added after publishing")


def test_a_directory_that_was_linked_in(directory, tmp_path):
    publish(directory)
    (directory / "chat_templates").symlink_to(tmp_path)
    refused(directory, "chat_templates .* was added after publishing")


def test_files_further_down_that_are_listed(directory):
    (directory / "chat_templates").mkdir()
    (directory / "chat_templates" / "default.jinja").write_text("x")
    files = {path.relative_to(directory).as_posix(): sha256(path) for path in directory.rglob("*") if path.is_file()}
    publish(directory, files=files)
    assert verify(directory).lineage.job_uid == "support-bot-7k2m9qxa"


def test_the_registrys_manifest_is_required(directory):
    with pytest.raises(ModelDirectoryError, match=r"has no athanor\.json; the registry knows one"):
        verify(directory, "0" * 64)
    publish(directory)
    registered = sha256(directory / "athanor.json")
    assert verify(directory, registered).lineage.manifest_sha256 == registered
    publish(directory, job="another")  # as whole as the first
    with pytest.raises(ModelDirectoryError, match="not the one that was registered"):
        verify(directory, registered)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname", "..", "", "a\0b"])
def test_a_manifest_that_names_what_lies_outside(directory, name):
    (directory.parent / "outside.json").write_text("{}")
    publish(directory, files={name: "0" * 64})
    refused(directory, "leads out of the model directory|is no file name")


def test_a_link_that_leads_out(directory):
    outside = directory.parent / "outside.json"
    outside.write_text("{}")
    (directory / "link.json").symlink_to(outside)
    publish(directory)
    refused(directory, "leads out of the model directory")


def test_an_index_that_names_what_lies_outside(directory):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../x.safetensors"}}))
    refused(directory, "leads out of the model directory")


def test_an_index_without_its_map(directory):
    (directory / "model.safetensors.index.json").write_text("{}")
    refused(directory, "has no object `weight_map`")


def test_weights_that_lack_a_tensor(directory):
    tensors = load_file(directory / WEIGHTS)
    save_file({name: each for name, each in tensors.items() if name != "model.norm.weight"}, directory / WEIGHTS)
    with pytest.raises(ModelDirectoryError, match=r"no weights for model.norm.weight"):
        load(verify(directory))


def test_weights_of_another_shape(directory):
    tensors = load_file(directory / WEIGHTS)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"][:3].clone()}, directory / WEIGHTS)
    with pytest.raises(ModelDirectoryError, match="cannot be loaded"):
        load(verify(directory))


def test_weights_that_are_not_safetensors_inside(directory):
    (directory / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}")
    with pytest.raises(ModelDirectoryError, match="cannot be loaded"):
        load(verify(directory))
