"""Which parts of the files a shard reads, and when it cannot go by parts."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_jobs import TINY_GPT2, TINY_LLAMA
from trainer.errors import UserError
from trainer.models import fresh_model, load_model, write_model
from trainer.peers import Peers
from trainer.sharded_loading import boxes, carried, layer_elements, share, stage3
from trainer.tokenizer import train_tokenizer

MIXTRAL = {
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "vocab_size": 64,
}
shapes = st.lists(st.integers(1, 7), max_size=4).map(tuple)


@given(shapes, st.integers(1, 9), st.integers(1, 40))
def test_shares_put_together_are_the_flat_tensor(shape, world, most):
    tensor = torch.arange(math.prod(shape)).reshape(shape)
    blocks = [tensor[box] for rank in range(world) for box in boxes(shape, *share(tensor.numel(), rank, world), most)]
    assert torch.cat([block.flatten() for block in blocks]).equal(tensor.flatten())
    assert all(0 < block.numel() <= most for block in blocks)


@given(st.integers(0, 1000), st.integers(1, 20))
def test_shares_are_equal_but_for_the_last_ones(numel, world):
    sizes = [end - start for start, end in (share(numel, rank, world) for rank in range(world))]
    full = math.ceil(numel / world)
    assert sizes == sorted(sizes, reverse=True)
    assert all(size == full for size in sizes[: numel // full if full else 0])


def test_an_empty_range_has_no_boxes():
    assert list(boxes((3, 4), 5, 5)) == []
    assert list(boxes((0, 4), 0, 0)) == []


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["where is my card"], 300)


def write(directory, config, tokenizer):
    model = fresh_model(config, tokenizer, 1)
    write_model(directory, model, dict(model.named_parameters()), tokenizer)
    return directory


def reason(directory, dtype=torch.float32):
    return carried(str(directory), dtype, Peers.alone())[2]


@pytest.mark.parametrize("config", [TINY_LLAMA, {**TINY_LLAMA, "tie_word_embeddings": True}, TINY_GPT2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_is_found_behind_its_carrier(config, dtype, tokenizer, tmp_path):
    directory = write(tmp_path / "model", config, tokenizer)
    whole = load_model(str(directory), dtype)
    files, model, why = carried(str(directory), dtype, Peers.alone())
    assert why is None
    for name, tensor in model.state_dict().items():
        assert tensor.untyped_storage().nbytes() <= 8
        read = torch.cat([block.clone() for block in files.behind(tensor).read()])
        assert torch.equal(read.reshape(tensor.shape).to(dtype), whole.state_dict()[name])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, whole.get_buffer(name))
    assert len(list(model.parameters())) == len(list(whole.parameters()))
    assert model.generation_config == whole.generation_config


def test_files_without_the_base_prefix_are_found_too(tokenizer, tmp_path):
    directory = write(tmp_path / "model", TINY_GPT2, tokenizer)
    file = directory / "model.safetensors"
    weights = load_file(file)
    save_file({name.removeprefix("transformer."): tensor for name, tensor in weights.items()}, file, {"format": "pt"})
    assert reason(directory) is None


def test_fused_experts_are_loaded_whole(tmp_path):
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **MIXTRAL)).save_pretrained(tmp_path)
    assert "is not one tensor of the files" in reason(tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_a_tie_whose_both_ends_are_written(same, tokenizer, tmp_path):
    directory = write(tmp_path / "model", {**TINY_LLAMA, "tie_word_embeddings": True}, tokenizer)
    weights = load_file(directory / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    head[-1, -1] += 0 if same else 1
    save_file({**weights, "lm_head.weight": head}, directory / "model.safetensors", {"format": "pt"})
    assert (reason(directory) is None) == same


def test_unknown_number_formats_are_loaded_whole(tokenizer, tmp_path):
    directory = write(tmp_path / "model", TINY_LLAMA, tokenizer)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    assert "is written as F8_E4M3" in reason(directory)


def broken(directory, how):
    file = directory / "model.safetensors"
    weights = load_file(file)
    if how == "missing":
        del weights["model.norm.weight"]
    elif how == "mis-shaped":
        weights["model.norm.weight"] = torch.ones(31)
    save_file(weights, file, {"format": "pt"})
    if how == "torn":
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "no config":
        (directory / "config.json").unlink()
    elif how == "a file of the index is not there":
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "other.safetensors")}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        file.rename(directory / "one.safetensors")


@pytest.mark.parametrize("how", ["missing", "mis-shaped", "torn", "no config", "a file of the index is not there"])
def test_what_cannot_be_loaded_whole_is_refused_alike(how, tokenizer, tmp_path):
    directory = write(tmp_path / "model", TINY_LLAMA, tokenizer)
    broken(directory, how)
    with pytest.raises(UserError) as whole:
        load_model(str(directory), torch.float32)
    with pytest.raises(UserError) as shares:
        reason(directory)
    assert shares.value.reason == whole.value.reason == "MODEL_INVALID"
    if how in ("missing", "mis-shaped"):
        assert str(shares.value) == str(whole.value)


def test_two_layers_are_whole_and_vectors_stay(tokenizer):
    model = fresh_model(TINY_LLAMA, tokenizer, 1)
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert layer_elements(model) == layer
    settings = stage3(model, torch.float32)["zero_optimization"]
    assert settings["stage3_prefetch_bucket_size"] <= layer
    assert settings["stage3_param_persistence_threshold"] == 32
    assert layer_elements(nn.Linear(2, 2)) == 0
