"""Which directories are models that may enter the registry, and what is said of the others."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
from model_dirs import NUM_PARAMETERS, safetensors_bytes, write_model

from cluster.errors import InvalidInput
from cluster.model_check import check_model, count_parameters


def test_what_save_pretrained_writes_is_a_model(chat_model_dir: Path) -> None:
    names = check_model(chat_model_dir)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chat_model_dir)
    assert count_parameters(chat_model_dir, names) == model.num_parameters()


def test_shards_are_counted_together_and_hidden_files_left_out(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "other.safetensors"}}
    root = write_model(tmp_path / "m", other__safetensors=safetensors_bytes((5,)), LICENSE=b"free")
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    (root / ".git").mkdir()
    (root / ".git" / "hook.py").write_text("")
    names = check_model(root)
    assert "LICENSE" in names
    assert not any(name.startswith(".git") for name in names)
    assert count_parameters(root, names) == NUM_PARAMETERS + 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config__json": b"[]"}, "config.json is no JSON object"),
        ({"config__json": b"{}"}, "config.json has no model_type"),
        ({"config__json": b"[" * 100_000}, "config.json cannot be read as JSON"),
        ({"config__json": b"\xff"}, "config.json cannot be read as JSON"),
        ({"model__safetensors__index__json": b'{"weight_map": {"a": "gone.safetensors"}}'}, "gone.safetensors is miss"),
        ({"model__safetensors__index__json": b"{}"}, "has no weight_map"),
    ],
)
def test_wrong_content_is_told_with_its_file(tmp_path: Path, change: dict[str, bytes], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        check_model(write_model(tmp_path / "m", **change))
    assert caught.value.reason == "MODEL_INVALID"


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_parts_are_named(tmp_path: Path, missing: str) -> None:
    root = write_model(tmp_path / "m")
    (root / missing).unlink()
    with pytest.raises(InvalidInput, match=f"{missing} is missing") as caught:
        check_model(root)
    assert caught.value.reason == "MODEL_INVALID"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pkl", "modeling.py", "weights.gguf", "sub/a.ckpt"])
def test_files_that_only_unpickling_or_code_could_use_are_refused(tmp_path: Path, name: str) -> None:
    root = write_model(tmp_path / "m")
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(pickle.dumps({}))
    with pytest.raises(InvalidInput, match=name) as caught:
        check_model(root)
    assert caught.value.reason == "UNSAFE_MODEL_FILE"


def test_odd_trees_are_refused(tmp_path: Path) -> None:
    root = write_model(tmp_path / "named")
    (root / "\udcff.json").write_text("{}")
    with pytest.raises(InvalidInput, match="cannot be written") as caught:
        check_model(root)
    caught.value.message.encode()
    root = write_model(tmp_path / "deep")
    root.joinpath(*"abcdefghijk").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="too deep") as caught:
        check_model(root)
    assert caught.value.reason == "MODEL_INVALID"


@pytest.mark.parametrize("kind", ["link out", "link in", "directory link", "pipe"])
def test_links_and_pipes_are_refused(tmp_path: Path, kind: str) -> None:
    root, out = write_model(tmp_path / "m"), tmp_path / "secret.json"
    out.write_text("{}")
    odd = root / "odd.json"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"link out": out, "link in": root / "config.json", "directory link": tmp_path}[kind])
    with pytest.raises(InvalidInput, match=r"odd\.json") as caught:
        check_model(root)
    assert caught.value.reason == "UNSAFE_MODEL_FILE"


def header(**tensor: object) -> bytes:
    text = json.dumps({"a": tensor}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"left over",
        struct.pack("<Q", 2) + b"[]",
        safetensors_bytes()[:-1],
        safetensors_bytes() + b"x",
        header(dtype="F32", shape=[2], data_offsets=[0]),
        header(dtype="F32", shape=["2"], data_offsets=[0, 8]),
        header(dtype="F32", shape=[2**70], data_offsets=[0, 8]),
        header(dtype="F32", shape=[-2], data_offsets=[0, 8]),
        header(dtype="F32", data_offsets=[0, 8]),
    ],
)
def test_weights_that_are_torn_or_no_safetensors_are_refused(tmp_path: Path, data: bytes) -> None:
    root = write_model(tmp_path / "m", model__safetensors=data)
    with pytest.raises(InvalidInput, match=r"model\.safetensors") as caught:
        count_parameters(root, check_model(root))
    assert caught.value.reason == "MODEL_INVALID"
